"""A probe's run folder: a head fitted in seconds on a backbone that stays as it was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file
from small_runs import MICRO, kept, run

from patchconvnet import UserError, explain, load
from patchconvnet.models.model_card import CARD_FILE, EXAMPLE_FILE
from patchconvnet.training.launch import Hardware
from patchconvnet.training.loop import train
from patchconvnet.training.probing import FEATURES_FILE
from patchconvnet.training.recipe import ModelOptions, MonitorOptions, ProbeOptions, read_recipe
from patchconvnet.training.sources import build_model

PROBE = replace(MICRO, method="probe", probe=ProbeOptions(views=2, queries=4), monitor=MonitorOptions(every=1))


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(PROBE, tmp_path_factory.mktemp("probe") / "run")


def test_the_head_is_fitted_and_the_backbone_is_not(probed: Path) -> None:
    model, weights = load(probed / "best"), kept(probed)
    assert model.metadata.metrics["test"]["top1"] > 0.3  # of a trunk that was never trained; chance is 0.1
    assert model.config.pooling == "additive_sliced"
    torch.manual_seed(PROBE.seed)
    for name, value in build_model(PROBE, 10).state_dict().items():
        if name.startswith(("stem.", "trunk.")):
            assert torch.equal(weights[name], value), name


def test_its_evidence_is_exact(probed: Path) -> None:
    model = load(probed / "best")
    explanation = explain(model, torch.rand(3, 16, 16))
    assert explanation.exact
    assert max(map(abs, explanation.remainder.values())) < 1e-4


@pytest.mark.parametrize("queries", [0, 2, 4])
def test_a_model_folder_gets_the_pooling_that_is_fitted(tmp_path: Path, probed: Path, queries: int) -> None:
    """Whichever it had: here the example's own, and a probe's with four queries."""
    build_model(MICRO, 10).save_pretrained(tmp_path / "plain")
    for folder in (tmp_path / "plain", probed / "best"):
        recipe = replace(PROBE, model=ModelOptions(str(folder)), probe=replace(PROBE.probe, queries=queries), epochs=1)
        out = run(recipe, tmp_path / f"{folder.name}{queries}")
        model = load(out / "best")
        assert model.config.pooling == ("additive_sliced" if queries else "additive")
        assert len(model.pooling.query) == max(queries, 1)
        assert explain(model, torch.rand(3, 16, 16)).exact


def test_its_probabilities_are_calibrated(probed: Path) -> None:
    metadata = load(probed / "best").metadata
    assert metadata.temperature != 1.0
    assert metadata.provenance["calibration"] == "fitted to the validation images"


def test_the_card_has_an_explained_image(probed: Path) -> None:
    card = ModelCard.load(probed / "best" / CARD_FILE)
    assert f"]({EXAMPLE_FILE})" in card.text
    with Image.open(probed / "best" / EXAMPLE_FILE) as example:
        assert example.format == "JPEG"
        assert min(example.size) > 200


def test_features_are_computed_once(probed: Path) -> None:
    features = load_file(probed / "checkpoints" / FEATURES_FILE)
    assert features["train"].shape[:2] == (2, 397)
    stamp = (probed / "checkpoints" / FEATURES_FILE).stat().st_mtime_ns
    before = kept(probed)
    run(PROBE, probed, resume="auto")
    assert (probed / "checkpoints" / FEATURES_FILE).stat().st_mtime_ns == stamp
    for name, value in kept(probed).items():
        assert torch.equal(value, before[name])


def test_features_of_other_images_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    folder = run(PROBE, tmp_path / "run")
    file = folder / "checkpoints" / FEATURES_FILE
    save_file(load_file(file), file, {"images": "others"})
    with pytest.raises(UserError, match="the images of digits are not those that the run in"):
        run(PROBE, folder, resume="auto")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="is damaged"):
        run(PROBE, folder, resume="auto")


def test_features_that_do_not_fit_are_refused_in_words(tmp_path: Path) -> None:
    recipe = replace(PROBE, data=replace(PROBE.data, memory_gb=1e-6))
    with pytest.raises(UserError, match=r"data\.memory_gb is 1e-06; raise it, lower probe\.views"):
        train(recipe, tmp_path / "run", hardware=Hardware("cpu"))


def test_the_shipped_recipe_is_a_probe() -> None:
    assert read_recipe("probe").method == "probe"
