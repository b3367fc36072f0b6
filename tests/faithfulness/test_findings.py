"""What a report says follows from the figures, in both directions, and its statistics are the textbook's."""

from dataclasses import replace

import numpy as np
import pytest

from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.report.findings import findings
from patchconvnet.faithfulness.report.report import csv_report, html_report
from patchconvnet.faithfulness.statistics import COLUMNS, Figure, Summary, _of_maps

COLUMN = {column.name: column for column in COLUMNS}


def figure(values) -> Figure:
    values = np.asarray(values, dtype=float)
    deviation = float(values.std(ddof=1))
    return Figure(
        float(values.mean()), deviation, deviation / np.sqrt(len(values)), len(values), 0, dict(enumerate(values))
    )


def summary(figures: dict[tuple[str, str], Figure], **options) -> Summary:
    names = {method for method, _ in figures}
    columns = {column for _, column in figures}
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
        figures=figures,
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
    assert any("Evidence</b> is ahead" in text and "Grad-CAM is 0.100 ± 0.000 behind" in text for text in strong)
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
    assert any("Attention</b> is behind RISE on deletion (by 0.200 ± 0.000)" in text for text in weak)


def test_a_control_that_is_not_beaten_is_named(noise):
    figures = {
        ("attention", "pointing"): figure(0.5 + noise),
        ("centre", "pointing"): figure(0.6 + noise),
        ("random", "pointing"): figure(0.1 + noise),
    }
    _, weak = findings(summary(figures))
    assert any("no better than a map that knows no network on pointing 0.500 (centre 0.600)" in text for text in weak)


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
    assert any("Too few images" in text for text in weak)


def test_gaps_are_paired(noise):
    large = np.random.default_rng(1).normal(0, 1, 50)
    s = summary(
        {("evidence", "road"): figure(large + 0.1 + noise / 10), ("gradcam", "road"): figure(large)},
    )
    gap, error = s.gap("evidence", "gradcam", COLUMN["road"])
    assert gap == pytest.approx(0.1 + noise.mean() / 10)
    assert error == pytest.approx(noise.std(ddof=1) / 10 / np.sqrt(50))
    assert s.gap("gradcam", "evidence", COLUMN["road"])[0] == pytest.approx(-gap)
    assert s.gap("evidence", "rise", COLUMN["road"]) is None
    assert s.best(COLUMN["road"]) == ["evidence"]


def test_lower_is_better_where_it_is(noise):
    s = summary({("evidence", "deletion"): figure(0.2 + noise), ("gradcam", "deletion"): figure(0.3 - noise)})
    assert s.best(COLUMN["deletion"]) == ["evidence"]
    assert s.gap("evidence", "gradcam", COLUMN["deletion"])[0] > 0
    s = summary(
        {
            ("evidence", "sanity_rank_correlation"): figure(-0.5 + noise),
            ("gradcam", "sanity_rank_correlation"): figure(0.1 + noise),
        }
    )
    assert s.best(COLUMN["sanity_rank_correlation"]) == ["gradcam"]
    # |a| − |b| of means of opposite signs is their sum, whose noise adds up
    gap, error = s.gap("gradcam", "evidence", COLUMN["sanity_rank_correlation"])
    assert gap == pytest.approx(0.4 - 2 * noise.mean())
    assert error == pytest.approx(2 * noise.std(ddof=1) / np.sqrt(50))


def test_what_few_images_say_of_all_together_is_not_sure():
    histograms = np.zeros((2, 2, 11))
    histograms[0, 0, -1] = histograms[:, 1, 0] = 5  # only the first has an object, and the map finds it
    records = [{"image": i, "pixels": histograms[i].tolist(), "boxes": [90, 80, 20]} for i in range(2)]
    figures = _of_maps(records[:1])
    assert figures["pixel_average_precision"].error == figures["max_box_accuracy"].error == np.inf
    both = _of_maps(records)["pixel_average_precision"]  # half of the resamples have no pixel of an object
    assert (both.mean, both.error) == (1.0, 0.0)
    assert "pixel_average_precision" not in _of_maps(records[1:])


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
    assert any("Deletion rewards scatter: noise by pixels has 0.2" in text for text in weak)
    assert any("Stability is no merit" in text for text in weak)
    assert any("disagree: deletion prefers Evidence, insertion Grad-CAM" in text for text in weak)


def test_time_is_beside_rises(noise):
    s = summary(
        {("evidence", "road"): figure(noise), ("rise", "road"): figure(noise)}, seconds={"evidence": 0.002, "rise": 1.0}
    )
    assert any("2 ms an image here; RISE takes 1,000 ms, 500 times" in text for text in findings(s)[0])


def test_missing_and_odd_figures_are_shown_as_such():
    s = summary(
        {
            ("evidence", "road"): Figure(0.5, 0.0, float("inf"), 1, 0, {0: 0.5}),
            ("gradcam", "sanity_similarity"): Figure(0.1, 0.1, 0.05, 4, 3, {0: 0.1}),
        },
        left_out={"pixels": "the data has no masks"},
    )
    page = html_report(s, [])
    assert "3 missing" in page
    assert "the data has no masks" in page
    assert "inf" not in csv_report(s)
