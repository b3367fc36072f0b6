"""An exported file as a network: for `load`, `explain` and `evaluate` where PyTorch is at hand."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from patchconvnet.deploy.description import Description
from patchconvnet.deploy.runtime import OnnxModel
from patchconvnet.errors import UserError
from patchconvnet.models.classifier import AttentionClassifier, Output, WholeAnswer, check_image
from patchconvnet.models.weights import Metadata

Run = Callable[[np.ndarray], Mapping[str, np.ndarray]]


class ExportedClassifier(AttentionClassifier):
    """What an exported file answers, with the contract of a network that only runs as a whole, on the CPU.

    Args:
        run: prepared images (B, C, H, W) float32 → outputs by name.
        about: what the file says about itself.
        name: what it is called in messages.
    """

    kind = "exported"

    def __init__(self, run: Run, about: Description, name: str):
        super().__init__()
        if about.input != "image":
            raise UserError(
                f"{name} preprocesses images itself, and takes no others here; patchconvnet explain and serve run it "
                "as it is, and export without --preprocessing inside writes one for load and evaluate"
            )
        self._run, self.about, self.name = run, about, name
        self.config = SimpleNamespace(pooling="exported", num_classes=len(about.class_names))
        self.num_classes = len(about.class_names)
        self.in_chans = about.preprocessing.channels
        self.patch_size = about.patch_size
        self.class_wise = about.queries == self.num_classes > 1
        self.metadata = Metadata(
            class_names=list(about.class_names),
            preprocessing=about.preprocessing.to_dict(),
            provenance=dict(about.provenance),
            metrics=dict(about.metrics),
            temperature=about.temperature,
        )
        self.pooling = nn.Identity()
        self.head = _Bias(torch.tensor(about.bias))
        self.eval()

    @property
    def has_exact_evidence(self) -> bool:
        """Whether patches' shares sum to logit − bias by construction."""
        return self.about.evidence == "exact"

    @property
    def knows_all_evidence(self) -> bool:
        """Whether the file was exported with evidence for all classes, or with none."""
        return "evidence_classes" not in self.about.outputs

    def whole_answer(self, image: Tensor) -> WholeAnswer:
        """All of what the file answers."""
        check_image(image, self.in_chans, 1)
        self.about.check_size((image.shape[2], image.shape[3]))
        given = image.detach().to("cpu", torch.float32).contiguous().numpy()
        answers = {key: torch.from_numpy(values).to(image.device) for key, values in self._run(given).items()}
        attention = answers["attention"]
        batch, _, rows, columns = attention.shape
        evidence = answers.get("evidence", attention.new_zeros(batch, 0, rows, columns))
        classes = torch.arange(evidence.shape[1], device=image.device).expand(batch, -1)
        return WholeAnswer(answers["logits"], attention, answers.get("evidence_classes", classes), evidence)

    def forward(self, image: Tensor, return_attention: bool = False, return_evidence: bool = False) -> Any:
        """As every network here; evidence is returned where it is exact."""
        answer = self.whole_answer(image)
        if not (return_attention or return_evidence):
            return answer.logits
        if return_evidence and not self.has_exact_evidence:
            raise UserError(f"{self.name} has no exact evidence; explain() gives what there is")
        return Output(answer.logits, answer.attention, answer.evidence if return_evidence else None)

    def forward_features(self, image: Tensor) -> Tensor:
        """Refused: the file has no such part."""
        raise UserError(
            f"{self.name} is an exported file, which is asked as a whole; load the network it was made from"
        )

    def patch_positions(
        self, size: tuple[int, int], shape: tuple[int, int]
    ) -> tuple[tuple[float, float], tuple[float, float]]:
        """As the file describes them."""
        grid = self.about.placement.grid(size, shape)
        return grid.first, grid.step

    def fuse(self, dtype: Any = None) -> Self:
        """Itself: a file is as fast as it is."""
        return self

    def save_pretrained(self, folder: str | Path, dtype: str = "float32") -> Path:
        """Refused: the network's weights are not to be had from the file."""
        raise UserError(f"{self.name} is an exported file and makes no model folder; save the network it was made from")


class _Bias(nn.Module):
    """The classifier, of which no more than the bias is known."""

    def __init__(self, bias: Tensor):
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=False)


def load_exported(path: Path) -> ExportedClassifier:
    """The network in an `.onnx` file.

    Raises:
        UserError: there is no such file, it is damaged, or not one of this package.
    """
    model = OnnxModel(path)
    return ExportedClassifier(model.run, model.description, str(path))
