"""A metric as a record: everything an audit knows about it. To add one, add a record to one of the files here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor, nn

from patchconvnet.faithfulness.annotations import Located
from patchconvnet.faithfulness.methods import Attribution, AttributionOptions, Method
from patchconvnet.faithfulness.metrics.ends import Ends
from patchconvnet.faithfulness.statistics import Estimate, estimate_of

Better = Literal["high", "low", "near zero"]
Values = Mapping[str, Mapping[Any, Any]]  # by metric, then by image or mosaic: what `Metric.compute` gave for it


@dataclass(frozen=True)
class Column:
    """A column of the report.

    Attributes:
        name: in JSON and CSV.
        title: in the report.
        better: which way is better.
        about: what it means, in a sentence or two, with its source.
        chance: what a random map scores, where that is known beforehand.
        contest: whether being ahead is a merit by itself.
        group: of the report's tables.
    """

    name: str
    title: str
    better: Better
    about: str
    chance: float | None = None
    contest: bool = True
    group: Literal["faithfulness", "annotations", "robustness"] = "faithfulness"

    def gain(self, values: Any) -> Any:
        """Values turned so that higher is better."""
        return {"high": values, "low": -values, "near zero": -abs(values)}[self.better]


@dataclass(frozen=True)
class Case:
    """A batch of images with one method's maps of them: what a metric is computed from.

    Attributes:
        model: in eval mode, without gradients for its parameters.
        method: that made the maps.
        images: (B, C, H, W), preprocessed; or B mosaics.
        classes: (B, T) int64, the classes that maps are asked for; T is 1, but the number of cells for mosaics.
        options: the method's, with the seed and the number of images in a forward pass.
        steps: parts that an image's pixels are divided into where they are exchanged.
        attribution: what the method gave; None for metrics that make their maps themselves.
        maps: (B, T, H, W), the same at the resolution of the input; empty likewise.
        located: each image's annotation on the network input; empty where there are none.
        fused: the same network, faster and without gradients, where there is one.
        ends: what the network says of the images as they are, blurred and removed, shared by all methods.
    """

    model: nn.Module
    method: Method
    images: Tensor
    classes: Tensor
    options: AttributionOptions
    steps: int
    attribution: Attribution | None
    maps: Tensor
    located: list[Located]
    fused: nn.Module | None = None
    ends: Ends | None = None

    @property
    def answering(self) -> nn.Module:
        """The network to ask where no gradients are needed."""
        return self.fused or self.model

    @property
    def explained(self) -> nn.Module:
        """The network that the method makes its maps of."""
        return self.model if self.method.differentiates else self.answering


@dataclass(frozen=True, eq=False)
class Metric:
    """A way to measure how good maps are.

    Attributes:
        name: as it is asked for.
        title: as it is shown.
        better: which way is better.
        about: what it means, in a sentence or two.
        source: where it comes from.
        compute: the value of each image or mosaic of a batch, as JSON values; None where there is none.
        stage: computed from the "maps" of all images, from those of "mosaics", or "repeated": from many maps of some
            images, which it makes itself.
        needs: what the data must have.
        cells: of a mosaic's side.
        chance, contest: as those of `Column`.
        passes: forward passes for a map, by the settings' steps.
        maps: maps that it makes itself for an image.
        seconds_per_pixel: of the CPU, beside those passes and maps.
        column: name of its column in JSON and CSV; by default the metric's.
        more_columns: besides that.
        estimates: from the values of one method to the estimates, by column; by default the mean.
    """

    name: str
    title: str
    better: Better
    about: str
    source: str
    compute: Callable[[Case], list[Any]]
    stage: Literal["maps", "mosaics", "repeated"] = "maps"
    needs: Literal["annotations", "masks"] | None = None
    cells: int = 0
    chance: float | None = None
    contest: bool = True
    passes: Callable[[int], float] = lambda _: 0.0
    maps: int = 0
    seconds_per_pixel: float = 0.0
    column: str = ""
    more_columns: tuple[Column, ...] = ()
    estimates: Callable[[Values], dict[str, Estimate]] | None = None

    @property
    def columns(self) -> tuple[Column, ...]:
        """Its columns in the report."""
        about = f"{self.about} ({self.source})."
        own = Column(self.column or self.name, self.title, self.better, about, self.chance, self.contest)
        group: Any = "annotations" if self.needs else "robustness" if self.stage == "repeated" else "faithfulness"
        return tuple(replace(column, group=group) for column in (own, *self.more_columns))

    def estimated(self, values: Values) -> dict[str, Estimate]:
        """The estimates of one method, by name of the column; further ones stand in JSON alone."""
        if not values.get(self.name):
            return {}
        if self.estimates:
            return self.estimates(values)
        return {self.column or self.name: estimate_of(values[self.name])}
