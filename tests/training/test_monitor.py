"""The monitor: which images, which epochs, and what it leaves."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import MICRO, events, micro, rows, run
from torch import Tensor

from patchconvnet import PatchConvNet
from patchconvnet.data.labelled_images import Images
from patchconvnet.training import monitor as monitor_module
from patchconvnet.training.monitor import AttentionMonitor
from patchconvnet.training.progress import TrainingProgress
from patchconvnet.training.recipe import MonitorOptions
from patchconvnet.training.sources import build_model, load_data

CPU = torch.device("cpu")


def frames(path: Path) -> int:
    with Image.open(path) as animation:
        for i in range(animation.n_frames):
            animation.seek(i)
            animation.load()
        return animation.n_frames


def drawn(folder: Path) -> list[int]:
    return sorted(int(path.stem.split("_")[1]) for path in (folder / "attention").glob("epoch_*.png"))


@pytest.mark.parametrize(
    ("every", "expected"),
    [(1, [1, 2, 3, 4, 5, 6, 7]), (2, [2, 4, 6, 7]), (3, [3, 6, 7]), (5, [5, 7]), (7, [7]), (100, [7]), (0, [])],
)
def test_any_interval_is_kept_and_the_last_epoch_always_drawn(every: int, expected: list[int], tmp_path: Path) -> None:
    monitor = AttentionMonitor(digits(), MICRO.preprocessing, MonitorOptions(every=every), tmp_path, 0)
    assert [epoch + 1 for epoch in range(7) if monitor.is_due(epoch, 6)] == expected


def digits() -> Any:
    return load_data(MICRO).validation


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(micro(epochs=5, monitor={"every": 2, "images": 4}), tmp_path_factory.mktemp("watched"))


def test_a_run_leaves_images_maps_a_figure_and_an_animation(watched: Path) -> None:
    assert drawn(watched) == [2, 4, 5]
    assert frames(watched / "attention" / "evolution.gif") == 3
    for name in ("epoch_002.png", "evolution.png"):
        with Image.open(watched / "attention" / name) as image:
            assert np.asarray(image.convert("RGB")).std() > 10  # something is on it
    logged = events(watched).Images("attention")
    assert [image.step for image in logged] == [12, 24, 30]
    with Image.open(watched / "attention" / "epoch_005.png") as image:
        assert (logged[-1].width, logged[-1].height) == image.size


def test_maps_are_those_of_the_network_after_that_epoch(watched: Path) -> None:
    maps = np.load(watched / "attention" / "maps_00005.npy")
    assert maps.shape == (4, 4, 4)  # images, height and width in patches
    data, recipe = load_data(MICRO), micro(monitor={"images": 4})
    model = build_model(recipe, 10)
    model.load_state_dict(torch.load(watched / "checkpoints" / "last.ckpt", weights_only=True)["model"])
    monitor = AttentionMonitor(data.require("validation"), recipe.preprocessing, recipe.monitor, watched, recipe.seed)
    images = recipe.preprocessing.batch(data.require("validation").images[monitor.indices])
    with torch.inference_mode():
        expected = model.eval()(images, return_attention=True).attention[:, 0]
    np.testing.assert_allclose(maps, expected, atol=1e-6)
    assert maps.sum((1, 2)) == pytest.approx(1.0, abs=1e-5)


def test_validation_images_are_shown_and_never_test_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    make = AttentionMonitor.__init__

    def spying(self: AttentionMonitor, split: Any, *arguments: Any) -> None:
        shown.append(split)
        make(self, split, *arguments)

    monkeypatch.setattr(AttentionMonitor, "__init__", spying)
    for validation in (200, 0):
        recipe = micro(data={"validation": validation}, epochs=1, monitor={"every": 1})
        run(recipe, tmp_path / str(validation))
        data = load_data(recipe)
        expected = data.validation or data.require("train")
        assert torch.equal(shown[-1].images, expected.images)
    assert len(shown) == 2


def test_images_are_spread_over_the_classes() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 40)
    images = Images(torch.zeros(93, 3, 8, 8, dtype=torch.uint8), labels, ["a", "b", "c"])

    def chosen(count: int, seed: int = 0) -> Tensor:
        options = MonitorOptions(images=count)
        return AttentionMonitor(images, MICRO.preprocessing, options, Path("unused"), seed).indices

    for count, expected in ((3, [1, 1, 1]), (6, [2, 2, 2]), (13, [5, 3, 5]), (93, [50, 3, 40]), (500, [50, 3, 40])):
        places = chosen(count)
        assert labels[places].bincount(minlength=3).tolist() == expected
        assert len(places.unique()) == len(places)
    assert sorted(labels[chosen(2)].unique().tolist()) == labels[chosen(2)].tolist()  # two classes, one each
    assert torch.equal(chosen(6), chosen(6))
    assert not torch.equal(chosen(6), chosen(6, seed=1))


def test_class_wise_heads_show_the_predicted_class(tmp_path: Path) -> None:
    recipe = micro(model={"options": {"pooling": "additive_multi"}})
    torch.manual_seed(0)
    model = build_model(recipe, 10)
    torch.nn.init.normal_(model.get_parameter("pooling.query"), std=5.0)
    monitor = AttentionMonitor(digits(), recipe.preprocessing, recipe.monitor, tmp_path, 0)
    image = monitor.draw(model, 0, CPU)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    with torch.inference_mode():
        output = model.eval()(recipe.preprocessing.batch(digits().images[monitor.indices]), return_attention=True)
    expected = output.attention[range(3), output.logits.argmax(1)]
    np.testing.assert_allclose(np.load(tmp_path / "maps_00001.npy"), expected, atol=1e-6)


def test_drawing_leaves_the_model_in_its_mode(tmp_path: Path) -> None:
    model: PatchConvNet = build_model(MICRO, 10)
    monitor = AttentionMonitor(digits(), MICRO.preprocessing, MICRO.monitor, tmp_path, 0)
    for training in (True, False):
        model.train(training)
        monitor.draw(model, 0, CPU)
        assert model.training is training


def test_a_resumed_run_has_all_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = micro(epochs=4, monitor={"every": 1})
    done: list[int] = []

    def interrupt(self: TrainingProgress, row: dict, is_best: bool) -> None:
        done.append(row["epoch"])
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(TrainingProgress, "epoch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path)
    # as if epoch 3 had been drawn with other weights, or half a file been written, when it was killed
    (tmp_path / "attention" / "maps_00003.npy").write_bytes(b"half")
    shutil.copy(tmp_path / "attention" / "maps_00001.npy", tmp_path / "attention" / "maps_00009.npy")
    run(recipe, tmp_path, resume="yes")
    assert drawn(tmp_path) == [1, 2, 3, 4]
    assert frames(tmp_path / "attention" / "evolution.gif") == 4
    assert not (tmp_path / "attention" / "maps_00009.npy").exists()
    assert len(rows(tmp_path)) == 4


def test_a_long_run_makes_an_animation_of_limited_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor_module, "MOST_FRAMES", 3)
    monitor = AttentionMonitor(digits(), MICRO.preprocessing, MICRO.monitor, tmp_path, 0)
    model = build_model(MICRO, 10)
    assert monitor.draw_evolution(model) == []
    generator = np.random.default_rng(0)
    for epoch in range(1, 8):
        np.save(tmp_path / f"maps_{epoch:05d}.npy", generator.random((3, 4, 4), dtype=np.float32))
    figure, animation = monitor.draw_evolution(model)
    assert figure.is_file()
    assert frames(animation) == 3


def test_evidence_is_drawn_where_attention_is_nearly_uniform(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model(MICRO, 10)
    monitor = AttentionMonitor(digits(), MICRO.preprocessing, MICRO.monitor, tmp_path, 0)
    for epoch, spread in enumerate((0.0, 0.0, 500.0)):
        torch.nn.init.normal_(model.get_parameter("pooling.query"), std=spread)
        monitor.draw(model, epoch, CPU)
        figure, _ = monitor.draw_evolution(model)
        if epoch == 1:
            as_evidence = figure.read_bytes()
    assert [path.name for path in sorted(tmp_path.glob("evidence_*"))] == ["evidence_00001.npy", "evidence_00002.npy"]
    assert len(list(tmp_path.glob("maps_*"))) == 3
    evidence = np.load(tmp_path / "evidence_00002.npy")
    torch.nn.init.zeros_(model.get_parameter("pooling.query"))
    with torch.no_grad():
        images = MICRO.preprocessing.batch(digits().images[monitor.indices])
        logits, _, all_of_it = model.eval()(images, return_evidence=True)
    np.testing.assert_allclose(evidence, all_of_it[range(len(images)), logits.argmax(1)], atol=1e-6)
    # one epoch had a map to show, so all are shown as attention
    assert figure.read_bytes() != as_evidence
    monitor.forget_after(1)
    assert sorted(path.name for path in tmp_path.glob("*.npy")) == ["evidence_00001.npy", "maps_00001.npy"]
    monitor.draw_evolution(model)


def test_first_order_heads_have_evidence_to_draw(tmp_path: Path) -> None:
    recipe = micro(model={"options": {"pooling": "keras"}})
    model = build_model(recipe, 10)
    monitor = AttentionMonitor(digits(), recipe.preprocessing, recipe.monitor, tmp_path, 0)
    monitor.draw(model, 0, CPU)
    evidence = np.load(tmp_path / "evidence_00001.npy")
    assert evidence.shape == np.load(tmp_path / "maps_00001.npy").shape
    assert np.abs(evidence).max() > 0
    assert not any(p.grad is not None for p in model.parameters())
