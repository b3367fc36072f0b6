"""Training: the recipe, the optimizer and its schedule, the loop, its evaluation and its monitor."""

from patchconvnet.training.evaluation import Evaluation, evaluate
from patchconvnet.training.loop import train
from patchconvnet.training.recipe import Recipe

__all__ = ["Evaluation", "Recipe", "evaluate", "train"]
