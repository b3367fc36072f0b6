"""The loop on real but small data: what it computes, what it leaves behind, and what it refuses."""

import errno
import itertools
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small_runs import (
    LAYER_NORM,
    MICRO,
    assert_same_weights,
    checkpoint,
    events,
    kept,
    micro,
    rows,
    run,
    step_losses,
    untimed,
)
from torch import Tensor

from patchconvnet import PatchConvNet, hardware
from patchconvnet.data.augmentation import Augmentation
from patchconvnet.errors import UserError
from patchconvnet.models.model_card import CARD_FILE, EXAMPLE_FILE
from patchconvnet.training import learner, loop
from patchconvnet.training import run as run_module
from patchconvnet.training.epoch_batches import mix
from patchconvnet.training.evaluation import Evaluation, evaluate
from patchconvnet.training.learner import Learner
from patchconvnet.training.loop import train
from patchconvnet.training.optimization import warmup_cosine
from patchconvnet.training.progress import TrainingProgress
from patchconvnet.training.recipe import Recipe
from patchconvnet.training.run_folder import RunFolder
from patchconvnet.training.sources import batch_source, build_model, load_data


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `MICRO`, with attention figures."""
    return run(micro(monitor={"every": 1}), tmp_path_factory.mktemp("whole_run"))


# What it computes


def test_the_same_seed_gives_the_same_bits(whole_run: Path, tmp_path: Path) -> None:
    again = run(MICRO, tmp_path / "again")
    assert_same_weights(kept(again), kept(whole_run))
    assert "![" not in (again / "best" / CARD_FILE).read_text()  # it draws no images
    assert not (again / "best" / EXAMPLE_FILE).exists()
    assert untimed(again) == untimed(whole_run)
    assert step_losses(again) == step_losses(whole_run)
    other = run(micro(seed=1), tmp_path / "other")
    assert step_losses(other)[0] != step_losses(whole_run)[0]


@pytest.mark.parametrize("augmentation", [{}, {"mixup": 0.4}, {"cutmix": 1.0}], ids=["labels", "mixup", "cutmix"])
def test_first_step_by_hand(augmentation: dict, tmp_path: Path) -> None:
    recipe = micro(epochs=1, augmentation=augmentation, optimization={"label_smoothing": 0.1})
    recorded = step_losses(run(recipe, tmp_path))[0]

    data = load_data(recipe).require("train")
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, 10)
    order = torch.randperm(397, generator=torch.Generator().manual_seed(mix(recipe.seed, 0)))[:64]
    augment = Augmentation(recipe.augmentation, recipe.preprocessing, 10, label_smoothing=0.1, seed=recipe.seed)
    images, targets = augment(
        data.images[order],
        data.labels[order],
        indices=order,
        epoch=0,
        generator=torch.Generator().manual_seed(mix(recipe.seed, 0, 0)),
    )
    if targets.ndim == 1:  # smoothing as a formula
        targets = 0.9 * F.one_hot(targets, 10) + 0.1 / 10
    expected = -(targets * model(images).log_softmax(1)).sum(1).mean()
    assert recorded == pytest.approx(expected.item(), abs=1e-6)
    assert torch.allclose(targets.sum(1), torch.ones(64))


def test_parts_of_a_batch_give_the_losses_of_the_undivided_one(tmp_path: Path) -> None:
    whole = step_losses(run(micro(model=LAYER_NORM), tmp_path / "1"))
    for parts in (2, 4):
        recipe = micro(model=LAYER_NORM, optimization={"accumulate": parts})
        divided = step_losses(run(recipe, tmp_path / str(parts)))
        assert divided == pytest.approx(whole, abs=1e-5)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum((one[name] - other[name]).square().sum() for name in one) ** 0.5)


def floats(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in weights.items() if value.is_floating_point()}


def test_clipping_limits_each_step(tmp_path: Path) -> None:
    plain_descent = {"optimizer": "momentum", "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.5, "warmup": 0.0}
    one_step = {"epochs": 1, "batch_size": 256}
    torch.manual_seed(MICRO.seed)
    start = {name: p.detach() for name, p in build_model(MICRO, 10).named_parameters()}
    rate = warmup_cosine(1, 2, 0, 0.5)
    moved = {}
    for limit in (None, 0.01, 100.0):
        recipe = micro(**one_step, optimization={**plain_descent, "clip_gradient": limit})
        moved[limit] = distance(start, checkpoint(run(recipe, tmp_path / str(limit)))["model"])
    assert moved[0.01] == pytest.approx(0.01 * rate, rel=1e-3)
    assert moved[None] > 2 * moved[0.01]
    assert moved[100.0] == moved[None]


def test_learning_rate_goes_through_the_whole_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[list[float]] = []
    build = learner.build_optimizer

    def spying(*arguments: Any) -> torch.optim.Optimizer:
        optimizer = build(*arguments)
        optimizer.register_step_pre_hook(lambda o, *_: used.append([group["lr"] for group in o.param_groups]))
        return optimizer

    monkeypatch.setattr(learner, "build_optimizer", spying)
    recipe = micro(optimization={"optimizer": "muon", "learning_rate": 0.02, "fallback_learning_rate": 0.005})
    folder = run(recipe, tmp_path)
    expected = [warmup_cosine(step + 1, 19, int(0.2 * 18), 1.0) for step in range(18)]
    assert min(expected) > 0
    for rates, share in zip(used, expected, strict=True):
        assert sorted(set(rates)) == pytest.approx([0.005 * share, 0.02 * share])
    at_ends = [0.02 * expected[i] for i in (5, 11, 17)]
    assert [float(row["learning_rate"]) for row in rows(folder)] == pytest.approx(at_ends)


def test_the_average_of_the_weights_is_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[dict[str, Tensor]] = []
    update = learner.ModelEmaV3.update

    def spying(self: Any, model: PatchConvNet, step: int) -> None:
        passed.append({name: value.clone() for name, value in model.state_dict().items()})
        update(self, model, step)

    monkeypatch.setattr(learner.ModelEmaV3, "update", spying)
    folder = run(micro(data={"validation": 0}, optimization={"ema_decay": 0.7}), tmp_path)
    average = passed[0]
    for step, weights in enumerate(passed[1:], start=1):
        decay = min(0.7, 1 - step ** (-2 / 3))  # timm's warm-up of the decay, for steps counted from 0
        average = {name: decay * average[name] + (1 - decay) * value for name, value in weights.items()}
    for name, value in floats(kept(folder)).items():
        torch.testing.assert_close(value, average[name], atol=1e-6, rtol=1e-5)
    assert distance(floats(kept(folder)), checkpoint(folder)["model"]) > 0.01


# What it leaves behind


def test_metrics_file_has_a_row_an_epoch(whole_run: Path) -> None:
    table = rows(whole_run)
    assert [(row["epoch"], row["step"]) for row in table] == [("1", "6"), ("2", "12"), ("3", "18")]
    assert list(table[0]) == [
        "epoch", "step", "learning_rate", "train_loss", "train_top1", "train_top5", "val_loss", "val_top1", "val_top5",
        "images_per_second", "seconds",
    ]  # fmt: skip
    for row in table:
        assert 0 < float(row["train_top1"]) < float(row["train_top5"]) <= 1
        assert 0 < float(row["val_top1"]) < float(row["val_top5"]) <= 1
        assert float(row["train_top1"]) * 384 == pytest.approx(round(float(row["train_top1"]) * 384))
        assert float(row["images_per_second"]) > 0
    assert float(table[0]["seconds"]) < float(table[1]["seconds"])
    assert float(table[2]["train_loss"]) < float(table[0]["train_loss"]) - 0.2


def test_tensorboard_reads_the_events(whole_run: Path) -> None:
    log = events(whole_run)
    assert {"step_loss", "train_loss", "val_top1", "val_top5", "learning_rate"} <= set(log.Tags()["scalars"])
    steps = log.Scalars("step_loss")
    assert [event.step for event in steps] == list(range(1, 19))
    for i, row in enumerate(rows(whole_run)):
        assert log.Scalars("train_loss")[i].step == 6 * (i + 1)
        assert log.Scalars("val_top1")[i].value == pytest.approx(float(row["val_top1"]))
        mean = np.mean([event.value for event in steps[6 * i : 6 * (i + 1)]])
        assert float(row["train_loss"]) == pytest.approx(mean, abs=1e-6)
    assert [image.step for image in log.Images("attention")] == [6, 12, 18]
    assert log.Images("attention")[0].encoded_image_string.startswith(b"\x89PNG")


def test_the_model_folder_is_measured_and_described(whole_run: Path) -> None:
    model = PatchConvNet.from_pretrained(whole_run / "best")
    data = load_data(MICRO)
    metrics = model.metadata.metrics
    for split in ("validation", "test"):
        again = evaluate(model, data.require(split), MICRO.preprocessing)
        assert metrics[split] == pytest.approx(again.to_dict(), abs=1e-6)
    assert metrics["validation"]["top1"] == pytest.approx(max(float(row["val_top1"]) for row in rows(whole_run)))
    assert model.metadata.class_names == [str(digit) for digit in range(10)]
    assert model.metadata.preprocessing == MICRO.preprocessing.to_dict()
    provenance = model.metadata.provenance
    assert provenance["data"].pop("fingerprint") == data.fingerprint()
    assert provenance["data"] == {"name": "digits", "train": 397, "validation": 200, "test": 1200}
    assert provenance["recipe"]["optimization"] == MICRO.to_dict()["optimization"]
    assert {"patchconvnet", "torch", "date", "devices", "precision", "seconds"} <= set(provenance)
    assert f"]({EXAMPLE_FILE})" in (whole_run / "best" / CARD_FILE).read_text()
    with Image.open(whole_run / "best" / EXAMPLE_FILE) as example:  # an explained validation image
        assert example.format == "JPEG"
        assert min(example.size) > 200


class Judge:
    """Stands in for `evaluate`: says given accuracies of the validation set, and notes what was asked."""

    def __init__(self, top1: list[float]):
        self.top1 = iter(top1)
        self.asked: list[int] = []
        self.tested: dict[str, Tensor] = {}

    def __call__(self, model: PatchConvNet, split: Any, *_: Any, **__: Any) -> Evaluation:
        self.asked.append(len(split))
        if len(split) == 1200:
            self.tested = {name: value.clone() for name, value in model.state_dict().items()}
        top1 = next(self.top1) if len(split) == 200 else 0.5
        return Evaluation(1.0, top1, 1.0, 0.1, torch.eye(10, dtype=torch.int64), split.class_names)


def test_the_first_best_epoch_is_kept_and_the_test_set_touched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge([0.3, 0.8, 0.5, 0.8, 0.8])
    monkeypatch.setattr(run_module, "evaluate", judge)
    weights: list[dict[str, Tensor]] = []
    save = RunFolder.save_checkpoint

    def spying(self: RunFolder, state: dict[str, Any]) -> None:
        weights.append({name: value.clone() for name, value in state["model"].items()})
        save(self, state)

    monkeypatch.setattr(RunFolder, "save_checkpoint", spying)
    folder = run(micro(epochs=4), tmp_path)
    assert judge.asked == [200, 200, 200, 200, 200, 1200]
    assert_same_weights(kept(folder), weights[1])
    assert_same_weights(judge.tested, weights[1])
    metrics = json.loads((folder / "best" / "config.json").read_text())["metrics"]
    assert metrics["epoch"] == 2
    assert metrics["validation"]["top1"] == 0.8
    assert metrics["test"]["top1"] == 0.5
    run(micro(epochs=4), tmp_path, resume="yes")  # a finished run is not tested again
    assert judge.asked.count(1200) == 1


def test_without_a_validation_set_the_last_epoch_is_kept(tmp_path: Path) -> None:
    folder = run(micro(data={"validation": 0, "test": 1400}), tmp_path)
    assert_same_weights(kept(folder), checkpoint(folder)["model"])
    metrics = json.loads((folder / "best" / "config.json").read_text())["metrics"]
    assert metrics["epoch"] == 3
    assert metrics["test"]["images"] == 1400
    assert rows(folder)[0]["val_top1"] == ""


def test_half_weights_are_what_is_kept_and_tested(tmp_path: Path, whole_run: Path) -> None:
    folder = run(micro(half_weights=True), tmp_path)
    half, single = kept(folder), kept(whole_run)
    assert {value.dtype for value in half.values() if value.ndim > 1} == {torch.float16}
    assert {value.dtype for value in floats(half).values() if value.ndim <= 1} == {torch.float32}
    size = [(f / "best" / "model.safetensors").stat().st_size for f in (folder, whole_run)]
    assert size[0] < 0.65 * size[1]
    model = PatchConvNet.from_pretrained(folder / "best")
    assert torch.equal(model.head.weight, single["head.weight"].half().float())
    again = evaluate(model, load_data(MICRO).require("test"), MICRO.preprocessing)
    assert model.metadata.metrics["test"] == pytest.approx(again.to_dict(), abs=1e-6)


def test_progress_shows_loss_accuracy_speed_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.delenv("TERM", raising=False)
    with TrainingProgress(epochs=3, steps=10, first_epoch=1, enabled=True) as progress:
        progress.step(1, 4, loss=1.2345, top1=0.5, images_per_second=12345.6)
        progress.bar.refresh()
    shown = capsys.readouterr().out
    for words in ("epoch 2/3", "14/30", "loss 1.234", "top-1 50.0%", "12,346 images/s", "-:--:--"):
        assert words in shown
    with TrainingProgress(epochs=3, steps=10, first_epoch=1, enabled=False) as progress:
        progress.say("nothing")
    assert capsys.readouterr().out == ""


# Data from a folder


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some digits as files of several shapes and kinds, with train/ and test/."""
    root = tmp_path_factory.mktemp("images")
    data = load_data(micro(data={"validation": 0}))
    for split, count in (("train", 90), ("test", 30)):
        images = data.require(split)
        for i in range(count):
            folder = root / split / f"digit_{int(images.labels[i])}"
            folder.mkdir(parents=True, exist_ok=True)
            side = 20 + i % 3
            image = Image.fromarray(images.images[i, 0].numpy()).resize((side, side + i % 2))
            image.save(folder / f"{i}.{'jpg' if i % 5 == 0 else 'png'}")
    return root


def from_folder(root: Path, **data: Any) -> Recipe:
    options = {"name": f"folder:{root}", "validation": 20, "test": None, "workers": 0, **data}
    return micro(data=options, batch_size=16, augmentation={"random_crop_padding": 0, "canvas": 20})


@pytest.mark.slow
def test_images_in_memory_and_from_files_give_the_same_bits(image_folder: Path, tmp_path: Path) -> None:
    in_memory = run(from_folder(image_folder), tmp_path / "memory")
    assert (len(step_losses(in_memory)), rows(in_memory)[0]["step"]) == (12, "4")  # 70 images in batches of 16
    from_files = run(from_folder(image_folder, memory_gb=0.0), tmp_path / "files")
    assert_same_weights(kept(in_memory), kept(from_files))
    by_workers = run(from_folder(image_folder, memory_gb=0.0, workers=2), tmp_path / "workers")
    assert_same_weights(kept(in_memory), kept(by_workers))
    assert untimed(in_memory) == untimed(from_files) == untimed(by_workers)


def test_random_boxes_are_taken_from_larger_images(image_folder: Path) -> None:
    recipe = micro(
        data={"name": f"folder:{image_folder}", "validation": 20, "test": None},
        augmentation={"random_crop_padding": 0, "random_resized_crop_scale": (0.3, 1.0)},
    )
    source = batch_source(load_data(recipe).require("train"), recipe, torch.device("cpu"), show_progress=False)
    images, labels = next(source([torch.tensor([3, 1])]))
    assert images.shape == (2, 3, 18, 18)  # 16 · 8/7
    assert images.dtype == torch.uint8
    assert labels.shape == (2,)


def test_grey_images_make_a_network_of_one_channel(image_folder: Path, tmp_path: Path) -> None:
    grey = {"mean": (0.3,), "std": (0.38,)}
    folder = run(micro(data=from_folder(image_folder).data, preprocessing=grey, batch_size=16), tmp_path)
    assert PatchConvNet.from_pretrained(folder / "best").in_chans == 1


def test_fewer_images_than_a_batch_make_one_step(image_folder: Path, tmp_path: Path) -> None:
    folder = run(micro(data=from_folder(image_folder).data, batch_size=128), tmp_path)
    assert [row["step"] for row in rows(folder)] == ["1", "2", "3"]


def test_a_model_folder_can_be_gone_on_from(whole_run: Path, image_folder: Path, tmp_path: Path) -> None:
    recipe = micro(model={"name": str(whole_run / "best"), "options": {"drop_rate": 0.1}}, epochs=1)
    assert step_losses(run(recipe, tmp_path / "same"))[0] < step_losses(whole_run)[0] - 0.1


# What it refuses


def test_a_loss_that_is_not_a_number_stops_with_what_to_try(tmp_path: Path) -> None:
    for i, options in enumerate(({"optimizer": "sgd"}, {"optimizer": "sgd", "clip_gradient": 1e30})):
        recipe = micro(optimization={"learning_rate": 1e20, "warmup": 0.0, **options})
        with pytest.raises(
            UserError, match=r"from epoch 1, step \d on; there is no checkpoint yet.*learning_rate \(now"
        ):
            run(recipe, tmp_path / str(i))
        assert not (tmp_path / str(i) / "best").exists()


def test_weights_that_are_not_numbers_do_not_reach_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_epoch = loop._Loop._train_epoch

    def spoiled(self: Any, progress: Any) -> Any:
        result = train_epoch(self, progress)
        if self.run.standing.epoch == 1:
            self.run.learner.plain.head.bias.data[3] = float("inf")
        return result

    monkeypatch.setattr(loop._Loop, "_train_epoch", spoiled)
    with pytest.raises(
        UserError, match="weights are not finite numbers after epoch 2, step 6; the checkpoint is that of epoch 1"
    ):
        run(MICRO, tmp_path)
    assert checkpoint(tmp_path)["epoch"] == 1
    assert len(rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"name": "patchconvnet_s6"}}, "unknown model 'patchconvnet_s6'; .* patchconvnet_s60"),
        ({"model": {"name": "resnet181"}}, "unknown model 'resnet181'; it is neither a model folder.* resnet18"),
        ({"model": {"options": {"deppth": 2}}}, "unknown option 'deppth'"),
        ({"model": {"options": {"num_classes": 10}}}, r"model\.options can't hold num_classes"),
        (
            {"model": {"options": {"drop_path_rate": "high"}}},
            "drop_path_rate must be .* not 'high'",
        ),
        ({"model": {"options": {"pooling": "none"}}}, "pooling 'none' gives no classes"),
        ({"model": {"options": {"se_ratio": "half"}}}, "se_ratio must be a number"),
        ({"model": {"name": "patchconvnet_s60.nope", "pretrained": True}}, "cannot build 'patchconvnet_s60.nope'"),
        ({"model": {"pretrained": True}}, "no published weights of patchconvnet_micro"),
        ({"model": {"options": {"in_chans": 1}}}, r"expected images of shape \(B, 1, H, W\)"),
        ({"preprocessing": {"size": (3, 16)}, "augmentation": {"random_crop_padding": 0}}, "smaller than one patch"),
        ({"data": {"name": "digit"}}, "unknown dataset 'digit'.*Did you mean 'digits'"),
        ({"optimization": {"optimizer": "adamq"}}, "unknown optimizer"),
    ],
)
def test_mistakes_in_a_recipe_are_said_in_words(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        run(micro(**changes), tmp_path)


@pytest.mark.parametrize(
    ("hardware", "words"),
    [
        ({"strategy": "dpp"}, "unknown strategy 'dpp'; known: auto, ddp, fsdp"),
        ({"devices": 0}, "devices and nodes must be at least 1"),
        ({"devices": 3}, "batch_size 64 cannot be divided into 3 equal parts"),
        ({"accelerator": "quantum"}, "cannot train on 1 × quantum"),
    ],
)
def test_impossible_machines_are_refused(hardware: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        train(MICRO, tmp_path, hardware=loop.Hardware(**{"accelerator": "cpu", **hardware}))


def test_sharded_weights_refuse_what_needs_whole_ones(tmp_path: Path) -> None:
    sharded = loop.Hardware(accelerator="cpu", strategy="fsdp")
    with pytest.raises(UserError, match="'muon' may need whole weight matrices"):
        train(micro(optimization={"optimizer": "muon"}), tmp_path, hardware=sharded)
    with pytest.raises(UserError, match="ema_decay needs whole weights"):
        train(micro(optimization={"ema_decay": 0.9}), tmp_path, hardware=sharded)
    with pytest.raises(UserError, match=r"model\.mirror needs whole weights"):
        train(micro(model={"mirror": True}), tmp_path, hardware=sharded)


# Run folders


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, recipe in enumerate(
        (
            micro(monitor={"every": 1}),
            micro(
                model={"options": {"drop_path_rate": 0.1, "drop_rate": 0.1}},
                optimization={"optimizer": "muon", "ema_decay": 0.9},
            ),
        )
    ):
        whole = whole_run if i == 0 else run(recipe, tmp_path / f"whole{i}")
        stopped = tmp_path / f"stopped{i}"
        with monkeypatch.context() as patch:
            patch.setattr(TrainingProgress, "epoch", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(recipe, stopped)
        assert checkpoint(stopped)["epoch"] == 1
        run(recipe, stopped, resume="yes")
        assert_same_weights(kept(stopped), kept(whole))
        assert_same_weights(checkpoint(stopped)["model"], checkpoint(whole)["model"])
        assert untimed(stopped) == untimed(whole)


@pytest.mark.slow
def test_a_resumed_run_computes_on_as_many_threads_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fixed, automatic = (loop.Hardware(accelerator="cpu", threads=threads) for threads in (2, "auto"))
    torch.set_num_threads(3)
    try:
        whole = run(MICRO, tmp_path / "whole", hardware=fixed)
        monkeypatch.setattr(hardware, "MARKEDLY_SLOWER", 1e9)
        monkeypatch.setattr(hardware, "SECONDS_WITH_FEWER", 1e9)
        monkeypatch.setattr(hardware, "fastest_threads", lambda most, measure: (2, {most: 2.0, 2: 1.0}))
        with monkeypatch.context() as patch:
            patch.setattr(TrainingProgress, "epoch", interrupt)
            with pytest.raises(KeyboardInterrupt):
                run(MICRO, tmp_path / "stopped", hardware=automatic)
        assert "computing on 2 threads (time by number of threads, 2: 1, 3: 2.00)" in capsys.readouterr().out
        assert torch.get_num_threads() == 3  # as the caller had it
        assert checkpoint(tmp_path / "stopped")["threads"] == 2
        monkeypatch.setattr(hardware, "fastest_threads", lambda most, measure: pytest.fail("measured again"))
        run(MICRO, tmp_path / "stopped", resume="yes", hardware=automatic)
        assert checkpoint(tmp_path / "stopped")["threads"] == 2
    finally:
        torch.set_num_threads(before)
    assert_same_weights(checkpoint(tmp_path / "stopped")["model"], checkpoint(whole)["model"])


def interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_run_goes_on_only_with_its_own_recipe(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    with pytest.raises(UserError, match=r"begun with other values of optimization\.learning_rate; resume it"):
        run(micro(epochs=9, optimization={"learning_rate": 1.0}), folder, resume="yes")
    # what does not touch the weights may change
    run(micro(data={"workers": 1, "memory_gb": 1.0}), folder, resume="auto")


def test_a_run_is_not_overwritten(whole_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds a run already; give --resume"):
        run(MICRO, whole_run)
    others = tmp_path / "others"
    others.mkdir()
    (others / "letter.txt").write_text("dear")
    for resume in ("no", "auto"):
        with pytest.raises(UserError, match="holds files, but no run to resume"):
            run(MICRO, others, resume=resume)
    assert os.listdir(others) == ["letter.txt"]


def test_a_recipe_that_a_person_wrote_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"# my own, with remarks\n{MICRO.to_yaml()}")
    (tmp_path / "attention").mkdir()
    (tmp_path / "attention" / "paper.pdf").write_text("to read")
    for resume in ("no", "auto"):
        with pytest.raises(UserError, match="holds files, but no run to resume"):
            run(MICRO, tmp_path, resume=resume)
    assert (tmp_path / "recipe.yaml").read_text().startswith("# my own")
    assert (tmp_path / "attention" / "paper.pdf").is_file()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: (root / "train" / "digit_3").rename(root / "train" / "digit_x"), "class names and "),
        (lambda root: next((root / "train" / "digit_3").glob("*.png")).unlink(), "train images and validation i"),
        (lambda root: next((root / "test" / "digit_3").iterdir()).unlink(), "the test images of folder"),
    ],
)
def test_a_run_goes_on_only_with_its_own_images(
    change: Callable[[Path], object], what: str, image_folder: Path, tmp_path: Path
) -> None:
    """Otherwise they would be divided anew, and what was trained on could be tested on."""
    root = tmp_path / "images"
    shutil.copytree(image_folder, root)
    folder = run(from_folder(root), tmp_path / "run")
    run(from_folder(root), folder, resume="yes")
    if what.startswith("class"):
        (root / "test" / "digit_3").rename(root / "test" / "digit_x")
    change(root)
    with pytest.raises(UserError, match=f"{what}.* are not those that the run in .* was begun with"):
        run(from_folder(root), folder, resume="yes")


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing to resume: there is no .*last\.ckpt"):
        run(MICRO, tmp_path / "nothing", resume="yes")
    assert not (tmp_path / "nothing").exists()


def test_a_run_killed_before_its_first_checkpoint_begins_anew(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="holds files, but no run to resume"):  # a finished model is not overwritten
        run(MICRO, folder, resume="auto")
    shutil.rmtree(folder / "best")
    for file in ("metrics.csv", "curves.png"):  # which follow the first checkpoint
        (folder / file).unlink()
    run(MICRO, folder)
    assert_same_weights(kept(folder), kept(whole_run))
    assert len(step_losses(folder)) == 18
    assert not (folder / "attention").exists()


def test_a_damaged_checkpoint_is_said_so(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    file = folder / "checkpoints" / "last.ckpt"
    file.with_name("previous.ckpt").unlink()
    for content in (file.read_bytes()[:5000], b"", b"not a checkpoint"):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"last\.ckpt is damaged"):
            run(micro(monitor={"every": 1}), folder, resume="yes")


def test_leftovers_of_killed_writers_are_removed(whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    names = [
        "checkpoints/.last.ckpt.part",
        "checkpoints/.previous.ckpt.part",
        ".metrics.csv.part",
        "best/.model.safetensors.part",
        "best/.config.json.part",
    ]
    for name in names:
        (folder / name).write_text("half a fi")
    run(MICRO, folder, resume="yes")
    assert not [name for name in names if (folder / name).exists()]
    assert_same_weights(kept(folder), kept(whole_run))


@pytest.mark.parametrize("damage", ["old", "none", "cut"])
def test_a_kill_between_checkpoint_and_model_folder_is_made_good(damage: str, whole_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    assert json.loads((folder / "best" / "config.json").read_text())["metrics"]["epoch"] == 3
    config = folder / "best" / "config.json"
    if damage == "old":
        config.write_text(config.read_text().replace('"epoch": 3', '"epoch": 1'))
        (folder / "metrics.csv").unlink()
    elif damage == "none":
        shutil.rmtree(folder / "best")
    else:
        config.write_text(config.read_text()[:100])
    run(MICRO, folder, resume="yes")
    assert_same_weights(kept(folder), kept(whole_run))
    before, after = (json.loads((f / "best" / "config.json").read_text())["metrics"] for f in (whole_run, folder))
    assert after == before
    assert untimed(folder) == untimed(whole_run)


# Disks


@pytest.mark.parametrize("name", ["file", "file/run", "/proc/run"])
def test_a_folder_that_cannot_be_made_is_an_error_in_words(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UserError, match=r"is a file; --out must be a folder|cannot write"):
        run(MICRO, tmp_path / name)


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("nothing is unwritable to root")
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        run(MICRO, tmp_path)


@contextmanager
def tiny_disk(folder: Path) -> Iterator[Callable[[], None]]:
    """A real file system of 1 MiB at `folder`; gives a function that fills it and returns one that makes room again."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no disk can be made full: mounting one needs root")
    try:
        yield lambda: fill(folder / "filler")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    return
                raise


@contextmanager
def small_files(folder: Path) -> Iterator[Callable[[], None]]:
    """Gives a function after which no file may grow beyond 20 kB: what a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [tiny_disk, small_files])
def test_a_full_disk_leaves_the_previous_checkpoint_whole(
    limit: Any, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    with limit(disk) as make_full:
        with monkeypatch.context() as patch:
            patch.setattr(TrainingProgress, "epoch", lambda *_: make_full())
            with pytest.raises(UserError, match=r"cannot write.*last\.ckpt is as it was.*--resume auto --out"):
                run(MICRO, disk / "run")
        assert checkpoint(disk / "run")["epoch"] == 1
        assert not list((disk / "run").rglob("*.part"))
        if limit is tiny_disk:
            (disk / "filler").unlink()
            run(MICRO, disk / "run", resume="auto")
            assert_same_weights(kept(disk / "run"), kept(whole_run))


@pytest.mark.parametrize("limit", [tiny_disk, small_files])
def test_a_disk_that_fills_within_an_epoch_leaves_a_whole_checkpoint(
    limit: Any, whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by the thread that writes in the background."""
    recipe, disk, update = micro(checkpoint_every="1 step"), tmp_path / "disk", Learner.update
    with limit(disk) as make_full:

        def filling(learner: Learner, batches: Any, step: int, rate: float) -> Any:
            if step == 3:
                make_full()
            return update(learner, batches, step, rate)

        with monkeypatch.context() as patch:
            patch.setattr(Learner, "update", filling)
            with pytest.raises(UserError, match=r"cannot write.*last\.ckpt is as it was.*--resume auto --out"):
                run(recipe, disk / "run")
        assert 0 < checkpoint(disk / "run")["part"]["images"] <= 3 * 64
        assert not list((disk / "run").rglob("*.part"))
        if limit is tiny_disk:
            (disk / "filler").unlink()
            run(recipe, disk / "run", resume="auto")
            assert_same_weights(kept(disk / "run"), kept(whole_run))


@pytest.mark.slow
def test_compiled_training_gives_the_same_losses(tmp_path: Path) -> None:
    if not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("torch.compile needs a C++ compiler, and there is none")
    strided = {"options": {"stem": "strided"}}  # max pools choose, and so amplify rounding
    eager = run(micro(model=strided), tmp_path / "eager")
    torch.compiler.reset()  # what other tests compiled makes this one dynamic
    compiled = run(micro(model=strided, compile=True), tmp_path / "compiled")
    assert step_losses(compiled) == pytest.approx(step_losses(eager), abs=1e-3)
    assert kept(compiled).keys() == kept(eager).keys()


@pytest.mark.parametrize("recompute", ["pointwise", "blocks"])
def test_recomputing_gives_the_same_losses(tmp_path: Path, recompute: str) -> None:
    kept_activations = run(micro(), tmp_path / "kept")
    recomputed = run(micro(recompute=recompute), tmp_path / "recomputed")
    assert step_losses(recomputed) == step_losses(kept_activations)


def test_progressive_training_shows_small_images_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    forward = PatchConvNet.forward

    def spy(model: PatchConvNet, image: Tensor, *args: Any, **options: Any) -> Any:
        if model.training and tuple(image.shape[2:]) not in sizes:
            sizes.append(tuple(image.shape[2:]))
        return forward(model, image, *args, **options)

    monkeypatch.setattr(PatchConvNet, "forward", spy)
    run(micro(progressive={"start": 0.5, "until": 1.0}), tmp_path / "run")
    assert sizes == [(8, 8), (12, 12)]  # of 16; the last of three epochs is at 13.3 pixels, in whole patches 12


def test_whitening_sets_the_first_filters_and_keeps_them(tmp_path: Path) -> None:
    folder = run(micro(model={"whiten": True}), tmp_path / "run")
    weights = kept(folder)["stem.convs.0.weight"]
    assert torch.equal(weights[:12], -weights[12:])  # untouched by training
    # going on from a trained network leaves its stem alone, and trains it
    onwards = run(micro(model={"whiten": True, "name": str(folder / "best")}), tmp_path / "onwards")
    assert 0 < (kept(onwards)["stem.convs.0.weight"] - weights).abs().max() < 1


def test_the_bias_of_whitening_filters_is_trained_for_three_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    begin_epoch = Learner.begin_epoch

    def spy(learner: Learner, epoch: int) -> None:
        seen.append(learner.plain.stem.convs[0].bias.detach().clone())
        begin_epoch(learner, epoch)

    monkeypatch.setattr(Learner, "begin_epoch", spy)
    folder = run(micro(model={"whiten": True}, epochs=5), tmp_path / "run")
    biases = [*seen, kept(folder)["stem.convs.0.bias"]]
    moved = [not torch.equal(before, after) for before, after in itertools.pairwise(biases)]
    assert moved == [True, True, True, False, False]
    # a first convolution that is trained like the others goes on
    seen.clear()
    folder = run(micro(epochs=5), tmp_path / "plain")
    assert not torch.equal(seen[3], kept(folder)["stem.convs.0.bias"])


def test_whitening_is_refused_where_there_is_no_pooled_stem(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="pooled stem"):
        train(micro(model={"whiten": True, "name": "patchconvnet_keras"}), tmp_path / "run")


@pytest.mark.parametrize(("whiten", "ema_decay"), [(True, None), (False, 0.9)])
def test_mirror_symmetry_is_kept_by_training_and_by_going_on(
    tmp_path: Path, whiten: bool, ema_decay: float | None
) -> None:
    def asked(**model: Any) -> Recipe:
        return micro(model={"mirror": True, "whiten": whiten, **model}, optimization={"ema_decay": ema_decay})

    folder = run(asked(), tmp_path / "run")
    assert_symmetric(folder)
    assert_symmetric(run(asked(name=str(folder / "best")), tmp_path / "onwards"))


def assert_symmetric(folder: Path) -> None:
    model = PatchConvNet.from_pretrained(folder / "best")
    images = torch.rand(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, mirrored = (model(some, return_attention=True) for some in (images, images.flip(3)))
    torch.testing.assert_close(mirrored.logits, output.logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(mirrored.attention.flip(3), output.attention, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(mirrored.attention, output.attention, rtol=1e-3, atol=1e-6)


def test_mirror_symmetry_is_refused_to_weights_that_have_it_not(tmp_path: Path) -> None:
    folder = run(micro(), tmp_path / "run")
    with pytest.raises(UserError, match="comes with weights that are not symmetric"):
        train(micro(model={"mirror": True, "name": str(folder / "best")}), tmp_path / "onwards")
    with pytest.raises(UserError, match="pooled stem of stride 1 and additive pooling"):
        train(micro(model={"mirror": True, "name": "patchconvnet_keras"}), tmp_path / "other")


def test_what_the_model_folder_says_of_its_data_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    recipe = micro(data={"root": str(tmp_path)})
    folder = run(recipe, tmp_path / "run")
    assert str(tmp_path) not in (folder / "best" / "config.json").read_text()
