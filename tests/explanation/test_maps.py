"""Which map is shown, contrast, and what is written of it."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from made import bump, flat, made, words
from PIL import Image

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError
from patchconvnet.explanation import explanation as explanation_module
from patchconvnet.explanation.maps import FLAT, flatness


def test_flatness_is_the_share_of_patches_that_attention_is_even_over():
    assert flatness(np.full((7, 7), 1 / 49)) == pytest.approx(1)
    assert flatness(np.full((7, 7), 0.5 / 49)) == pytest.approx(1)  # the class token keeps the other half
    half = np.zeros((4, 4))
    half[:2] = 1 / 8
    assert flatness(half) == pytest.approx(0.5)
    one = np.zeros((4, 4))
    one[1, 1] = 1
    assert flatness(one) == pytest.approx(1 / 16)
    assert flatness(np.stack([half, one])) == pytest.approx((1 / 2 + 1 / 16) / 2)


def test_evidence_is_shown_where_attention_is_flat():
    assert made().shown() == "attention"
    assert flat().shown() == "evidence"
    assert flat().shown("attention") == "attention"
    nearly = 1 + 0.5 * bump(5, 5, 2)
    assert FLAT < flatness(nearly) < 1
    assert made(attention=(nearly / nearly.sum())[None]).shown() == "evidence"
    assert flat(evidence=np.zeros((0, 12, 12), np.float32), evidence_classes=()).shown() == "attention"


def test_a_class_without_attention_of_its_own_is_shown_by_its_evidence():
    explanation = made()
    assert explanation.shown(target="dog") == "evidence"
    assert explanation.overlay("dog").tobytes() == explanation.overlay("dog", "evidence").tobytes()
    class_wise = replace(explanation, attention=np.repeat(explanation.attention, 5, 0))
    assert class_wise.shown(target="dog") == "attention"


def test_several_queries_that_share_a_decision_are_shown_by_evidence():
    several = np.stack([bump(2, 2, 1), bump(9, 9, 1), bump(2, 9, 1)])
    several /= several.sum((1, 2), keepdims=True)
    explanation = made(attention=several)
    assert explanation.shown() == "evidence"
    np.testing.assert_allclose(explanation.map_for(), several.mean(0), rtol=1e-6)
    assert explanation.class_token_share == pytest.approx(0, abs=1e-6)
    assert "3 queries share the attention" in words(explanation.figure(evidence=0))


def test_contrast_is_against_the_likeliest_other_class():
    explanation = made()
    cat, dog, frog = (explanation.evidence_for(name) for name in ("cat", "dog", "frog"))
    np.testing.assert_array_equal(explanation.map_for(kind="contrast"), cat - dog)
    np.testing.assert_array_equal(explanation.map_for("frog", "contrast"), frog - cat)
    np.testing.assert_array_equal(replace(explanation, target=1).map_for(kind="contrast"), dog - cat)
    # where the patches are all that differs, it sums to the logits' difference
    bias = explanation.bias[0] - explanation.bias[1]
    assert explanation.map_for(kind="contrast").sum() + bias == pytest.approx(1.5, abs=1e-5)
    alone = replace(explanation, evidence=explanation.evidence[:1], evidence_classes=(0,))
    with pytest.raises(UserError, match="evidence for a second class"):
        alone.overlay(map="contrast")


def test_what_was_not_seen_is_darker_than_what_was():
    image = Image.new("RGB", (300, 200), "white")
    explanation = flat(image=image, geometry=Preprocessing((48, 48), "crop").geometry(200, 300))
    for kind in ("attention", "evidence", "contrast"):
        shown = np.asarray(explanation.attended(map=kind), float).mean(-1)
        assert np.median(shown[:, :45]) < np.percentile(shown[:, 52:248], 60), kind
        assert shown[:, :45].max() < 220, kind  # of an image that was white all over


@pytest.mark.parametrize("only", [("json", "overlay"), ["map"], ("figure",), {"json"}])
def test_only_the_files_asked_for_are_written(only, tmp_path):
    saved = made().save(tmp_path, "cat", only=only)
    names = {"figure": "cat_figure.png", "overlay": "cat_overlay.png", "map": "cat_map.npy", "json": "cat.json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[what] for what in only)
    for what, path in saved._asdict().items():
        assert (path == tmp_path / names[what]) if what in only else path is None


@pytest.mark.parametrize("only", [(), "json", ("jpg",)])
def test_files_that_there_are_not_are_refused(only, tmp_path):
    with pytest.raises(UserError, match="must name some of figure, overlay, map, json"):
        made().save(tmp_path / "new", only=only)
    assert not (tmp_path / "new").exists()


def test_files_are_of_the_map_that_is_shown(tmp_path):
    for explanation, options, kind in (
        (made(), {}, "attention"),
        (flat(), {}, "evidence"),
        (flat(), {"map": "attention"}, "attention"),
        (made(), {"map": "contrast"}, "contrast"),
    ):
        saved = explanation.save(tmp_path, only=("json", "overlay", "map"), **options)
        np.testing.assert_array_equal(np.load(saved.map), explanation.map_for(kind=kind))
        assert json.loads(saved.json.read_text())["shown"] == kind
        with Image.open(saved.overlay) as overlay:
            assert overlay.tobytes() == explanation.overlay(map=kind).tobytes()


def test_a_file_that_cannot_be_finished_is_not_there(tmp_path, monkeypatch):
    explanation = made()
    before = explanation.save(tmp_path, only=("json",)).json.read_bytes()

    def full(path, text, **options):
        path.write_bytes(text[:100].encode())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(explanation_module.Path, "write_text", full)
    with pytest.raises(UserError, match="No space left"):
        explanation.save(tmp_path, only=("json",))
    assert [path.name for path in tmp_path.iterdir()] == ["chelsea.json"]
    assert (tmp_path / "chelsea.json").read_bytes() == before


def test_who_draws_no_figure_does_not_wait_for_matplotlibs_figures():
    code = "import sys, patchconvnet.explanation; print('matplotlib.figure' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "False"
