"""Does a map add up to what it claims? Measured by `Attribution.completeness_error`."""

from typing import Any

from patchconvnet.faithfulness.metrics.metric import Case, Metric, Values
from patchconvnet.faithfulness.statistics import Estimate, estimate_of

UNCLAIMED = "no claim"  # of a map that claims no sum; a claim without a finite value is missing


def _completeness(case: Case) -> list[Any]:
    assert case.attribution is not None
    error = case.attribution.completeness_error()
    return [UNCLAIMED] * len(case.images) if error is None else error[:, 0].tolist()


def _estimates(values: Values) -> dict[str, Estimate]:
    claimed = {image: value for image, value in values["completeness"].items() if value != UNCLAIMED}
    return {"completeness": estimate_of(claimed)} if claimed else {}


METRICS = (
    Metric(
        "completeness",
        "Completeness error",
        "low",
        "How far the map misses the sum it claims (for evidence the logit less its bias), relative to all it shows. "
        "Only for methods that claim a sum",
        "axiom of Sundararajan et al. 2017, arXiv 1703.01365",
        _completeness,
        chance=0.0,
        contest=False,
        estimates=_estimates,
    ),
)
