"""What an audit measures, by which methods, and how much of it."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from patchconvnet.errors import UserError
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.methods import AttributionOptions
from patchconvnet.faithfulness.metrics import METRICS

# What `quick` takes where nothing else is said: 17,000 passes for 50 images, four to five minutes of two cores with
# EfficientNet-Lite0 at 224 pixels (31 ms a pass on one). RISE, integrated gradients and ROAD would cost more than all
# others together, and the finest mosaics need nine confident classes.
QUICK: dict[str, Any] = {
    "methods": tuple(name for name, method in METHODS.items() if not method.is_costly(AttributionOptions())),
    "without": ("road", "grid_pointing_3"),
    "limit": 50,
    "steps": 12,
    "mosaics": 10,
    "robustness": 10,
}

# beyond all use: a typing error is refused instead of running for years
AT_MOST = {
    "steps": 100_000,
    "mosaics": 1_000_000,
    "rise_masks": 1_000_000,
    "gradient_steps": 100_000,
    "batch_size": 1_000_000,
    "forward_batch": 1_000_000,
    "seed": 2**63 - 1,
}


@dataclass(frozen=True)
class AuditSettings:
    """What an audit measures, and how much of it.

    Args:
        methods: of {methods}; all by default.
        measures: of {measures}; by default all that the data allows.
        limit: images to explain, drawn at random; all by default.
        target: the class that maps are made for: the "predicted" one, or the image's "label".
        steps: parts that deletion and insertion divide an image into.
        mosaics: of each size, for grid pointing.
        robustness: images for sanity and stability, which make 18 maps of each.
        robustness_methods: methods for sanity and stability; by default those named, without RISE and integrated
            gradients, whose maps take hundreds of forward passes each.
        examples: images shown in the report.
        rise_masks: RISE's random masks for each image.
        gradient_steps: points of integrated gradients.
        batch_size: images explained at a time.
        forward_batch: images in one forward pass.
        seed: of everything that is drawn.
        quick: a first answer in minutes: cheap methods and measures, 50 images, 12 steps, 10 images for sanity and
            stability; whatever is given beside it stays.

    Raises:
        UserError: a value is not allowed.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    measures: tuple[str, ...] | None = None
    limit: int | None = None
    target: Literal["predicted", "label"] = "predicted"
    steps: int = 32
    mosaics: int = 100
    robustness: int = 32
    robustness_methods: tuple[str, ...] | None = None
    examples: int = 6
    rise_masks: int = 1000
    gradient_steps: int = 50
    batch_size: int = 16
    forward_batch: int = 256
    seed: int = 0
    quick: bool = False

    def __post_init__(self) -> None:
        for name in ("methods", "measures", "robustness_methods"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        if self.quick:
            defaults = {field.name: field.default for field in fields(self)}
            for name, value in QUICK.items():
                if name in defaults and getattr(self, name) == defaults[name]:
                    object.__setattr__(self, name, value)
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name in ("seed", "examples") else 1
            if field.type in (int, int | None) and value is not None and value < least:
                raise UserError(f"audit {field.name} is {value}; it must be {least} or more.")
            if (most := AT_MOST.get(field.name)) is not None and value > most:
                raise UserError(f"audit {field.name} is {value}; it must be at most {most:,}.")
        if self.target not in ("predicted", "label"):
            raise UserError(f"audit target is {self.target!r}; known: predicted, label.")
        if self.measures is not None:
            if unknown := [name for name in self.measures if name not in METRICS]:
                raise UserError(f"unknown measure {unknown[0]!r}; known: {', '.join(METRICS)}.")
            if not self.measures:
                raise UserError(f"no measure is named; known: {', '.join(METRICS)}.")
        if strange := [name for name in self.robustness_methods or () if name not in self.methods]:
            raise UserError(
                f"audit robustness_methods names {strange[0]!r}, which is not among methods: {', '.join(self.methods)}."
            )
        if self.forward_batch < self.batch_size:
            raise UserError(
                f"audit forward_batch is {self.forward_batch}; it must be at least batch_size, {self.batch_size}."
            )

    @property
    def options(self) -> AttributionOptions:
        """What the methods need of it."""
        return AttributionOptions(self.seed, self.forward_batch, self.rise_masks, self.gradient_steps)

    def robust(self, name: str) -> bool:
        """Whether a method takes part in sanity and stability."""
        if self.robustness_methods is not None:
            return name in self.robustness_methods
        return not METHODS[name].is_costly(self.options)


# names come from the records, so that one more needs no change here
AuditSettings.__doc__ = (AuditSettings.__doc__ or "").format(methods=", ".join(METHODS), measures=", ".join(METRICS))
