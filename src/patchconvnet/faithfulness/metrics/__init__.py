"""Metrics, one file a family: each is a `Metric` record, and `METRICS` is all an audit knows of them."""

from patchconvnet.faithfulness.metrics import (
    completeness,
    deletion,
    grid_pointing,
    localisation,
    road,
    sanity,
    stability,
)
from patchconvnet.faithfulness.metrics.metric import Case, Column, Metric

FAMILIES = (deletion, road, completeness, grid_pointing, localisation, sanity, stability)
METRICS = {metric.name: metric for family in FAMILIES for metric in family.METRICS}

__all__ = ["METRICS", "Case", "Column", "Metric"]
