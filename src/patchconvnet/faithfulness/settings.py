"""What an audit measures, by which methods, and how much of it."""

from dataclasses import dataclass, fields
from typing import Literal

from patchconvnet.errors import UserError
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import AttributionOptions

FAITHFULNESS = ("deletion", "insertion", "road", "completeness")
LOCALISATION = ("pointing", "energy", "boxes", "pixels")  # these need boxes or masks
MOSAICS = {"grid_pointing_2": 2, "grid_pointing_3": 3}
CLOSE = ("sanity", "stability")
MEASURES = (*FAITHFULNESS, *MOSAICS, *LOCALISATION, *CLOSE)


@dataclass(frozen=True)
class AuditSettings:
    """What an audit measures, and how much of it.

    Args:
        methods: of evidence, lead, attention, gradcam, gradcam++, layercam, gradcam_lead, integrated_gradients, rise,
            edges, centre, random, random_pixels; all by default.
        measures: of deletion, insertion, road, completeness, grid_pointing_2, grid_pointing_3, pointing, energy, boxes,
            pixels, sanity, stability; by default all that the data allows.
        limit: images to explain, drawn at random; all by default.
        target: the class that maps are asked for: the "predicted" one, or the image's "label".
        steps: parts that deletion and insertion divide an image into.
        mosaics: of each size, for grid pointing.
        close: images for the measures that make many maps of each, sanity and stability.
        examples: images shown in the report.
        rise_masks: RISE's random masks for each image.
        gradient_steps: points of integrated gradients.
        batch_size: images explained at a time.
        forward_batch: images in one forward pass.
        seed: of everything that is drawn.

    Raises:
        UserError: a value is not allowed.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    measures: tuple[str, ...] | None = None
    limit: int | None = None
    target: Literal["predicted", "label"] = "predicted"
    steps: int = 32
    mosaics: int = 100
    close: int = 32
    examples: int = 6
    rise_masks: int = 1000
    gradient_steps: int = 50
    batch_size: int = 16
    forward_batch: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", tuple(self.methods))
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("seed", "examples") else 1
            if field.type in (int, int | None) and value is not None and value < least:
                raise UserError(f"audit {field.name} is {value}; it must be {least} or more.")
        if self.target not in ("predicted", "label"):
            raise UserError(f"audit target is {self.target!r}; known: predicted, label.")
        if self.measures is not None:
            object.__setattr__(self, "measures", tuple(self.measures))
            if unknown := [name for name in self.measures if name not in MEASURES]:
                raise UserError(f"unknown measure {unknown[0]!r}; known: {', '.join(MEASURES)}.")
            if not self.measures:
                raise UserError(f"no measure is named; known: {', '.join(MEASURES)}.")
        if self.forward_batch < self.batch_size:
            raise UserError(
                f"audit forward_batch is {self.forward_batch}; it must be at least batch_size, {self.batch_size}."
            )

    @property
    def options(self) -> AttributionOptions:
        """What the methods need of it."""
        return AttributionOptions(self.seed, self.forward_batch, self.rise_masks, self.gradient_steps)
