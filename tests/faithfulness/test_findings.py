"""What a report says follows from the figures, in both directions, and its statistics are the textbook's."""

from dataclasses import replace

import numpy as np
import pytest

from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.metrics import METRICS
from patchconvnet.faithfulness.report.findings import findings
from patchconvnet.faithfulness.report.page import html_report
from patchconvnet.faithfulness.report.report import csv_report
from patchconvnet.faithfulness.statistics import LEAST_VALUES, Estimate, estimate_of
from patchconvnet.faithfulness.summary import Summary

COLUMNS = [column for metric in METRICS.values() for column in metric.columns]
COLUMN = {column.name: column for column in COLUMNS}


def figure(values) -> Estimate:
    values = np.asarray(values, dtype=float)
    deviation = float(values.std(ddof=1))
    return Estimate(
        float(values.mean()), deviation, deviation / np.sqrt(len(values)), len(values), 0, dict(enumerate(values))
    )


def summary(estimates: dict[tuple[str, str], Estimate], **options) -> Summary:
    names = {method for method, _ in estimates}
    columns = {column for _, column in estimates}
    header = {
        "package": {"version": "0"},
        "model": {"name": "m", "weights": "0"},
        "data": {"name": "d", "images": 9},
        "preprocessing": {"size": [8, 8]},
        "device": "cpu",
        "settings": {"target": "predicted"},
    }
    rest = {"seconds": {}, "uninformative": {}, "curves": {}, "cascade": {}, "left_out": {}, "class_names": ["a"]}
    return Summary(
        methods=[method for name, method in METHODS.items() if name in names],
        columns=[column for column in COLUMNS if column.name in columns],
        estimates=estimates,
        header=header,
        images=9,
        top1=1.0,
        **{**rest, **options},
    )


@pytest.fixture
def noise() -> np.ndarray:
    values = np.random.default_rng(0).normal(0, 0.05, 50)
    return values - values.mean()


def test_being_ahead_is_said_with_the_gap(noise):
    strong, weak = findings(
        summary(
            {
                ("evidence", "insertion"): figure(0.8 + noise),
                ("gradcam", "insertion"): figure(0.7 + noise),
                ("centre", "insertion"): figure(0.5 + noise),
            }
        )
    )
    assert any("Evidence is ahead" in text and "Grad-CAM is 0.100 ± 0.000 behind" in text for text in strong)
    assert not weak


def test_being_behind_is_said_with_the_gap(noise):
    strong, weak = findings(
        summary(
            {
                ("attention", "deletion"): figure(0.4 + noise),
                ("gradcam", "deletion"): figure(0.3 + noise),
                ("rise", "deletion"): figure(0.2 + noise),
                ("centre", "deletion"): figure(0.9 + noise),
            }
        )
    )
    assert not strong
    assert any("Attention is behind RISE on deletion (by 0.200 ± 0.000)" in text for text in weak)


def test_a_control_that_is_not_beaten_is_named(noise):
    figures = {
        ("attention", "pointing"): figure(0.5 + noise),
        ("centre", "pointing"): figure(0.6 + noise),
        ("random", "pointing"): figure(0.1 + noise),
    }
    _, weak = findings(summary(figures))
    assert any(
        "no better than a map that ignores the network on pointing 0.500 (centre 0.600)" in text for text in weak
    )


def test_a_difference_within_chance_is_not_called_one():
    draw = np.random.default_rng(0)
    figures = {
        ("attention", "pointing"): figure(draw.normal(0.5, 0.4, 12)),
        ("centre", "pointing"): figure(draw.normal(0.4, 0.4, 12)),
        ("gradcam", "pointing"): figure(draw.normal(0.45, 0.4, 12)),
    }
    figures["attention", "pointing"] = figure(np.array([*figures["centre", "pointing"].values.values()])[::-1] + 0.01)
    strong, weak = findings(summary(figures))
    assert not any("ahead" in text or "behind" in text for text in strong + weak)
    assert any("too few images" in text for text in weak)


def test_gaps_are_paired(noise):
    large = np.random.default_rng(1).normal(0, 1, 50)
    s = summary(
        {("evidence", "road"): figure(large + 0.1 + noise / 10), ("gradcam", "road"): figure(large)},
    )
    found = s.gap("evidence", "gradcam", COLUMN["road"])
    gap, error = found.mean, found.error
    assert found.count == 50
    assert gap == pytest.approx(0.1 + noise.mean() / 10)
    assert error == pytest.approx(noise.std(ddof=1) / 10 / np.sqrt(50))
    assert s.gap("gradcam", "evidence", COLUMN["road"]).mean == pytest.approx(-gap)
    assert s.gap("evidence", "rise", COLUMN["road"]) is None
    assert s.best(COLUMN["road"]) == ["evidence"]


def test_lower_is_better_where_it_is(noise):
    s = summary({("evidence", "deletion"): figure(0.2 + noise), ("gradcam", "deletion"): figure(0.3 - noise)})
    assert s.best(COLUMN["deletion"]) == ["evidence"]
    assert s.gap("evidence", "gradcam", COLUMN["deletion"]).mean > 0
    s = summary(
        {
            ("evidence", "sanity_rank_correlation"): figure(-0.5 + noise),
            ("gradcam", "sanity_rank_correlation"): figure(0.1 + noise),
        }
    )
    assert s.best(COLUMN["sanity_rank_correlation"]) == ["gradcam"]
    # |a| − |b| of means of opposite signs is their sum, whose noise adds up
    found = s.gap("gradcam", "evidence", COLUMN["sanity_rank_correlation"])
    gap, error = found.mean, found.error
    assert gap == pytest.approx(0.4 - 2 * noise.mean())
    assert error == pytest.approx(2 * noise.std(ddof=1) / np.sqrt(50))


def test_a_value_of_few_images_together_is_not_sure():
    histograms = np.zeros((2, 2, 11))
    histograms[0, 0, -1] = histograms[:, 1, 0] = 5  # only the first has an object, and the map finds it
    pixels = dict(enumerate(histograms.tolist()))
    boxes = {i: [90, 80, 20] for i in range(2)}

    def of(*images):
        values = {name: {i: rows[i] for i in images} for name, rows in (("pixels", pixels), ("boxes", boxes))}
        return METRICS["pixels"].estimated(values) | METRICS["boxes"].estimated(values)

    one = of(0)
    assert one["pixel_average_precision"].error == one["max_box_accuracy"].error == np.inf
    both = of(0, 1)["pixel_average_precision"]  # half of the resamples have no pixel of an object
    assert (both.mean, both.error) == (1.0, 0.0)
    assert "pixel_average_precision" not in of(1)


def test_insertion_less_deletion_is_missing_where_one_is():
    rows = {"insertion": [0.5, None, 0.7], "deletion": [0.2, 0.1, None]}
    values = {name: {i: {"score": v} for i, v in enumerate(scores)} for name, scores in rows.items()}
    estimate = METRICS["insertion"].estimated(values)["insertion_minus_deletion"]
    assert (estimate.mean, estimate.count, estimate.missing) == (pytest.approx(0.3), 3, 2)


def test_a_method_without_most_values_is_not_the_best():
    scarce = replace(figure(np.array([0.001, 0.002])), count=12, missing=10)
    s = summary(
        {
            ("layercam", "sanity_similarity"): scarce,
            ("evidence", "sanity_similarity"): figure(np.full(12, 0.05) + np.arange(12) / 1000),
            ("rise", "sanity_similarity"): figure(np.full(12, 0.4) + np.arange(12) / 10),
        }
    )
    assert s.best(COLUMN["sanity_similarity"]) == ["evidence"]


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("sanity_rank_correlation", 0.7, "depends little on what was learned"),
        ("stability_shift", 0.4, "when the image moves by a pixel (rank correlation 0.40)"),
        ("stability_noise", 0.4, "when faint noise is added"),
        ("completeness", 0.25, "25% of what the map shows is unaccounted for"),
    ],
)
def test_weaknesses_of_a_map_itself(noise, column, value, words):
    bad, good = ({("evidence", column): figure(v + noise / 100)} for v in (value, {"completeness": 0}.get(column, 0.9)))
    assert any(words in text for text in findings(summary(bad))[1])
    if column != "sanity_rank_correlation":
        assert not findings(summary(good))[1]


def test_what_the_measures_themselves_show(noise):
    figures = {
        ("random", "deletion"): figure(0.4 + noise),
        ("random_pixels", "deletion"): figure(0.2 + noise),
        ("centre", "stability_noise"): figure(1 + 0 * noise),
        ("evidence", "deletion"): figure(0.1 + noise),
        ("gradcam", "deletion"): figure(0.3 + noise),
        ("evidence", "insertion"): figure(0.1 + noise),
        ("gradcam", "insertion"): figure(0.3 + noise),
    }
    _, weak = findings(summary(figures))
    assert any("Deletion rewards scattered holes: noise by pixels has 0.2" in text for text in weak)
    assert any("Stability is no merit" in text for text in weak)
    assert any("disagree: deletion prefers Evidence, insertion Grad-CAM" in text for text in weak)


def test_time_is_beside_rises(noise):
    s = summary(
        {("evidence", "road"): figure(noise), ("rise", "road"): figure(noise)}, seconds={"evidence": 0.002, "rise": 1.0}
    )
    assert any("2 ms an image here; RISE takes 1,000 ms, 500 times" in text for text in findings(s)[0])


def test_one_survivor_of_twelve_is_no_finding():
    """Eleven values are missing: no sentence, in either direction, about either method."""
    survivor = estimate_of({0: -0.021, **dict.fromkeys(range(1, 12))})
    names = ("evidence", "gradcam", "centre")
    for few in names:
        others = {name: figure((0.4 if name == "evidence" else 0.2) + np.arange(12) / 1000) for name in names}
        strong, weak = findings(summary({(n, "road"): e for n, e in (others | {few: survivor}).items()}))
        assert not any("0.021" in text for text in strong + weak)
        if few == "evidence":
            assert not strong + weak
    weaknesses = {
        "sanity_rank_correlation": 0.9,
        "stability_shift": 0.1,
        "stability_noise": 0.1,
        "completeness": 0.5,
    }
    for column, value in weaknesses.items():
        values = {("evidence", column): estimate_of({0: value, **dict.fromkeys(range(1, 12))})}
        assert findings(summary(values)) == ([], [])


@pytest.mark.parametrize(("known", "missing", "said"), [(9, 0, False), (10, 0, True), (10, 10, True), (10, 11, False)])
def test_sentences_need_enough_values(known, missing, said):
    assert LEAST_VALUES == 10
    values = {i: 0.9 + i / 1000 for i in range(known)} | dict.fromkeys(range(100, 100 + missing))
    _, weak = findings(summary({("evidence", "sanity_rank_correlation"): estimate_of(values)}))
    assert any("depends little" in text for text in weak) == said
    if said and missing:
        assert "10 of 20 values missing" in weak[0]


def test_sentences_count_missing_values(noise):
    def scarce(values):
        return estimate_of(dict(enumerate(values)) | dict.fromkeys(range(100, 105)))

    strong, _ = findings(
        summary({("evidence", "insertion"): scarce(0.8 + noise), ("gradcam", "insertion"): scarce(0.7 + noise)})
    )
    assert "insertion 0.800 (5 of 55 values missing) (Grad-CAM (5 of 55 values missing) is 0.100" in strong[0]
    few = estimate_of({0: 0.1, 1: 0.2})
    strong, _ = findings(
        summary(
            {
                ("evidence", "insertion"): figure(0.8 + noise),
                ("gradcam", "insertion"): figure(0.7 + noise),
                ("rise", "insertion"): few,
            }
        )
    )
    assert "RISE not compared, for too few values" in strong[0]


def test_tables_and_charts_count_missing_values(noise):
    nothing = estimate_of(dict.fromkeys(range(12)))
    point = estimate_of({0: 0.5, 1: None, 2: None})
    s = summary(
        {
            ("evidence", "road"): Estimate(0.5, 0.0, float("inf"), 1, 0, {0: 0.5}),
            ("gradcam", "road"): nothing,
            ("rise", "road"): replace(figure(noise), count=53, missing=3),
        },
        left_out={"pixels": "the data has no masks"},
        curves={("evidence", "deletion"): [point, point]},
        cascade={"gradcam": (["head", "stem"], [point, nothing])},
    )
    page = html_report(s, [])
    assert "the data has no masks" in page
    for words in ("<small>3 missing", "<small>12 missing", "up to 2 of 3 values missing", "up to 12 of 12 values"):
        assert words in page, words
    assert page.count('<td class="few"') == 2
    table = csv_report(s)
    assert "nan" not in table
    assert "inf" not in table
    assert "gradcam,method,road,high,,0,,12,12" in table
