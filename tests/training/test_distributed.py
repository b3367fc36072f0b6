"""Two and four gloo processes against one: the same losses, the same statistics, every image once, one voice.

Run as a script, this file is one of these processes.
"""

import copy
import faulthandler
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.distributed as dist
from small_runs import (
    CPU,
    LAYER_NORM,
    MICRO,
    NO_MAX_POOL,
    assert_same_weights,
    checkpoint,
    from_files,
    kept,
    micro,
    run,
    step_losses,
    untimed,
    write_digits,
)
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn

from patchconvnet.cli import _quieten
from patchconvnet.data.labelled_images import Images
from patchconvnet.data.sources.shards import write_shards
from patchconvnet.errors import UserError
from patchconvnet.models import with_attention_pooling
from patchconvnet.models.layers import BatchNorm
from patchconvnet.training import launch
from patchconvnet.training.distributed import SyncPatchNorm, synchronise_batch_norm
from patchconvnet.training.evaluation import evaluate
from patchconvnet.training.progress import TrainingProgress
from patchconvnet.training.recipe import Recipe

HERE = Path(__file__)
SECONDS_OF_STANDSTILL = 420  # since their start: several times what all runs take on a quiet machine
STOOD_STILL = "Timeout ("  # how faulthandler begins
EPOCHS = 4  # of 6 steps: 24
RECIPES = {
    "layer": micro(epochs=EPOCHS, model=LAYER_NORM),
    "batch": micro(
        epochs=EPOCHS, model={"options": NO_MAX_POOL}, optimization={"optimizer": "sgd", "learning_rate": 0.1}
    ),
    "batch, adamw": micro(epochs=EPOCHS, model={"options": NO_MAX_POOL}, optimization={"learning_rate": 0.01}),
    "mixup": micro(
        epochs=EPOCHS,
        model=LAYER_NORM,
        augmentation={"mixup": 0.4, "cutmix": 1.0, "cutout": 3, "random_erasing": 0.3},
        optimization={"accumulate": 2, "clip_gradient": 1.0, "ema_decay": 0.9},
    ),
}
FSDP = launch.Hardware("cpu", strategy="fsdp")
HALF_SHARDED, HALF_WHOLE = "half sharded", "half whole"  # two epochs of "layer", with fsdp and with ddp
FULL = "full disk"
EVALUATED = (1, 2, 203, 300)  # images; not divided evenly, and with several processes also none for some of them
BATCHES = [(8, 5, 4, 6), (4, 5, 1, 1), (2, 5, 1, 1)]  # of the batch norm test, (B, h, w, C)


def files_recipe(folder: Path) -> Recipe:
    """Five epochs of 5 steps of images that are read from files."""
    return from_files(folder / "images", epochs=5, model=LAYER_NORM, batch_size=16)


def shards_recipe(folder: Path, kind: str = "wds") -> Recipe:
    """The same of the same images in tar files, or in chunks of litdata."""
    recipe = files_recipe(folder)
    place = folder / {"wds": "shards", "litdata": "chunks"}[kind]
    return replace(recipe, data=replace(recipe.data, name=f"{kind}:{place}"))


# What one of the processes does


def be_one_of_four(folder: Path) -> None:
    """From memory, files and shards, batch norms, and the rest of what two began with weights in pieces."""
    _quieten()
    run(RECIPES["layer"], folder / "layer")
    run(files_recipe(folder), folder / "files")
    run(shards_recipe(folder), folder / "shards run")
    if find_spec("litdata"):
        run(shards_recipe(folder, "litdata"), folder / "chunks run")
    for begun in (HALF_SHARDED, HALF_WHOLE):
        run(RECIPES["layer"], folder / begun, hardware=FSDP, resume="yes")
    rank = dist.get_rank()
    save_batch_norms(folder, rank, 4)
    counted = [evaluation_figures(count, rank, 4) for count in EVALUATED]
    (folder / f"evaluation_{rank}.json").write_text(json.dumps(counted))


def be_one_of_two(folder: Path) -> None:
    """Everything that two processes are asked in this file, into `folder`."""
    _quieten()
    for name, recipe in RECIPES.items():
        run(recipe, folder / name)
    run(files_recipe(folder), folder / "files")
    run(shards_recipe(folder), folder / "shards run")
    if find_spec("litdata"):
        run(shards_recipe(folder, "litdata"), folder / "chunks run")
    interrupted_and_resumed(RECIPES["batch"], folder / "batch resumed", CPU)
    interrupted(RECIPES["layer"], folder / HALF_WHOLE, CPU)
    interrupted(RECIPES["layer"], folder / HALF_SHARDED, FSDP)
    if dist.get_rank() == 0:
        shutil.copytree(folder / HALF_SHARDED, folder / "sharded")
    dist.barrier()
    run(RECIPES["layer"], folder / "sharded", hardware=FSDP, resume="yes")
    rank = dist.get_rank()
    save_batch_norms(folder, rank, 2)
    counted = [evaluation_figures(count, rank, 2) for count in EVALUATED]
    (folder / f"evaluation_{rank}.json").write_text(json.dumps(counted))
    refusals = []
    for recipe, target, where in (
        (micro(optimization={"learning_rate": 1e20, "warmup": 0.0}), "nan", CPU),
        (micro(model={"name": "patchconvnet_none"}), "unknown", CPU),
        (MICRO, "layer", CPU),
        (RECIPES["layer"], FULL, FSDP),
    ):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if (target, rank) == (FULL, 1):  # the second process alone can't write its part
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            run(recipe, folder / target, hardware=where)
        except UserError as error:
            refusals.append(str(error))
        except SystemExit as error:
            refusals.append(f"exit {error.code}")
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    (folder / f"refusals_{rank}.json").write_text(json.dumps(refusals))


def interrupted_and_resumed(recipe: Recipe, folder: Path, where: launch.Hardware) -> None:
    interrupted(recipe, folder, where)
    run(recipe, folder, hardware=where, resume="yes")


def interrupted(recipe: Recipe, folder: Path, where: launch.Hardware) -> None:
    """Two epochs."""
    show = TrainingProgress.epoch

    def interrupt(self: TrainingProgress, row: dict[str, Any], is_best: bool) -> None:
        if row["epoch"] == 2:
            raise KeyboardInterrupt

    TrainingProgress.epoch = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        run(recipe, folder, hardware=where)
    TrainingProgress.epoch = show  # type: ignore[method-assign]


def save_batch_norms(folder: Path, rank: int, world_size: int) -> None:
    results = {shape: batch_norm_results(shape, rank, world_size) for shape in BATCHES if shape[0] >= world_size}
    torch.save(results, folder / f"batch_norm_{rank}.pt")


def batch_norm_results(shape: tuple[int, ...], rank: int, world_size: int) -> dict[str, Tensor]:
    """Outputs, statistics and gradients of this process's part of a batch, in both layouts."""
    generator = torch.Generator().manual_seed(0)
    images, weights = (torch.randn(shape, generator=generator) * 3 + 1 for _ in range(2))
    part = slice(rank * shape[0] // world_size, (rank + 1) * shape[0] // world_size)
    results = {}
    norms = {
        "patches": BatchNorm(shape[-1]),
        "images": nn.BatchNorm2d(shape[-1]),
        "activated images": BatchNormAct2d(shape[-1]),
    }
    for layout, norm in norms.items():
        nn.init.uniform_(norm.weight, generator=generator)
        nn.init.uniform_(norm.bias, generator=generator)
        if world_size > 1:
            synchronise_batch_norm(norm, torch.device("cpu"))
        x = images[part].clone().requires_grad_()
        y = norm(x if layout == "patches" else x.permute(0, 3, 1, 2))
        y = y if layout == "patches" else y.permute(0, 2, 3, 1)
        (y * weights[part]).square().sum().backward()
        results |= {
            f"{layout} output": y.detach(),
            f"{layout} input gradient": x.grad,
            f"{layout} weight gradient": norm.weight.grad,
            f"{layout} bias gradient": norm.bias.grad,
            f"{layout} mean": norm.running_mean,
            f"{layout} variance": norm.running_var,
            f"{layout} count": norm.num_batches_tracked,
            f"{layout} in evaluation": norm.eval()(images if layout == "patches" else images.permute(0, 3, 1, 2)),
        }
    return results


class Linear(nn.Module):
    """Some fixed function of an image's pixels."""

    def forward(self, images: Tensor) -> Tensor:
        weight = torch.randn(images[0].numel(), 7, generator=torch.Generator().manual_seed(5))
        return images.flatten(1) @ weight


def evaluation_figures(count: int, rank: int, world_size: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    labels = torch.randint(0, 7, (count,), generator=generator)
    images = Images(images, labels, list("abcdefg"))
    preprocessing = micro(preprocessing={"size": (4, 4)}).preprocessing
    result = evaluate(Linear(), images, preprocessing, batch_size=50, rank=rank, world_size=world_size)
    return {**result.to_dict(), "confusion": result.confusion.tolist()}


# The tests


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def done_by(count: int, folder: Path, begun: Sequence[Path] = ()) -> Path:
    """What processes, started as torchrun would, left in a folder that holds copies of the runs that were begun.

    Should they stand still they say where, and are started a second time, with a warning.
    """
    for attempt in (1, 2):
        shutil.rmtree(folder)
        folder.mkdir()
        for run_folder in begun:
            shutil.copytree(run_folder, folder / run_folder.name)
        codes, outputs = _ended(count, folder)
        if attempt == 1 and any(codes) and any(STOOD_STILL in output for output in outputs):
            warnings.warn("processes stood still: " + "\n".join(o[-6000:] for o in outputs), stacklevel=2)
            continue
        assert codes == [0] * count, "\n".join(o[-3000:] for o in outputs)
        for rank, output in enumerate(outputs):
            (folder / f"output_{rank}.txt").write_text(output)
        return folder
    raise AssertionError


def _ended(count: int, folder: Path) -> tuple[list[int], list[str]]:
    """Exit codes and what the processes said."""
    write_digits(folder / "images", 104)  # 80 to train on
    write_shards(f"folder:{folder / 'images'}", folder / "shards", images_per_shard=30)
    if find_spec("litdata"):
        write_shards(f"folder:{folder / 'images'}", folder / "chunks", images_per_shard=30, format="litdata")
    environment = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE), str(folder), str(count)],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        outputs = [process.communicate(timeout=SECONDS_OF_STANDSTILL + 60)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `be_one_of_two` left."""
    return done_by(2, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory, two: Path) -> Path:
    """What `be_one_of_four` left."""
    return done_by(4, tmp_path_factory.mktemp("four"), [two / HALF_SHARDED, two / HALF_WHOLE])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECIPES))
def test_losses_are_those_of_one_process(name: str, two: Path, tmp_path: Path) -> None:
    one = run(RECIPES[name], tmp_path)
    losses = step_losses(one)
    assert len(losses) == 6 * EPOCHS > 20
    assert max(losses) - min(losses) > 0.05  # there was something to learn
    assert step_losses(two / name) == pytest.approx(losses, abs=1e-5)
    if name == "batch, adamw":
        return  # it blows up the rounding errors in a bias before a batch norm, whose gradient is 0 but for those
    for mine, theirs in zip(untimed(one), untimed(two / name), strict=True):
        assert {k: float(v) for k, v in mine.items()} == pytest.approx(
            {k: float(v) for k, v in theirs.items()}, abs=1e-4
        )
    for key, value in checkpoint(one)["model"].items():
        torch.testing.assert_close(checkpoint(two / name)["model"][key], value, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_four_processes_from_memory_files_and_shards(two: Path, four: Path, tmp_path: Path) -> None:
    assert step_losses(four / "layer") == pytest.approx(step_losses(two / "layer"), abs=1e-5)
    assert len(step_losses(four / "layer")) > 20
    losses = step_losses(run(files_recipe(two), tmp_path / "files"))
    assert len(losses) >= 20
    assert max(losses) - min(losses) > 0.05
    assert step_losses(run(shards_recipe(two), tmp_path / "shards")) == losses
    for several in (two, four):
        assert step_losses(several / "files") == pytest.approx(losses, abs=1e-5)
        assert step_losses(several / "shards run") == pytest.approx(losses, abs=1e-5)
        if find_spec("litdata"):
            assert step_losses(several / "chunks run") == pytest.approx(losses, abs=1e-5)


@pytest.mark.slow
def test_batch_norm_equals_one_process_on_the_joint_batch(two: Path, four: Path) -> None:
    for folder, count in ((two, 2), (four, 4)):
        by_rank = [torch.load(folder / f"batch_norm_{rank}.pt") for rank in range(count)]
        assert len(by_rank[0]) >= 2
        for shape in by_rank[0]:
            results = [of_rank[shape] for of_rank in by_rank]
            for name, expected in batch_norm_results(shape, 0, 1).items():
                values = [each[name] for each in results]
                if name.endswith(("output", "input gradient")):
                    found = torch.cat(values)
                elif name.endswith("gradient"):  # of parameters: ddp adds them up
                    found = torch.stack(values).sum(0)
                else:
                    assert all(torch.equal(each, values[0]) for each in values)
                    found = values[0]
                torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_batch_norm_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match=r"^1, a BatchNorm1d, cannot be trained on more than one device"):
        synchronise_batch_norm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.device("cpu"))


@pytest.mark.parametrize("name", ["patchconvnet_micro", "resnet18", "efficientnet_lite0", "levit_128s"])
def test_batch_norms_are_converted_for_gpus(name: str) -> None:
    """By kind, parameters and results; what several GPUs compute with them is not tested here."""
    torch.manual_seed(0)
    ours = name.startswith("patchconvnet")
    if ours:
        model: nn.Module = timm.create_model(name, norm="batch", num_classes=3)
    else:
        model = with_attention_pooling(timm.create_model(name, pretrained=False), num_classes=3, norm="batch")
    images = torch.randn(2, 3, *((32, 32) if ours else (224, 224)))
    before = {name: type(module) for name, module in model.named_modules()}
    state, parameters = model.state_dict(keep_vars=True), list(model.parameters())
    expected = {mode: copy.deepcopy(model).train(mode)(images) for mode in (False, True)}
    assert synchronise_batch_norm(model, torch.device("cuda")) is model
    counterpart = {
        nn.BatchNorm1d: nn.SyncBatchNorm,
        nn.BatchNorm2d: nn.SyncBatchNorm,
        BatchNormAct2d: SyncBatchNormAct,
        BatchNorm: SyncPatchNorm,
    }
    found = {name: type(module) for name, module in model.named_modules()}
    assert found == {name: counterpart.get(kind, kind) for name, kind in before.items()}
    assert found != before
    now = model.state_dict(keep_vars=True)
    assert now.keys() == state.keys()
    assert all(now[name] is value for name, value in state.items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    # one process: the batch is the global one, and the axis of the channels has to be right
    for mode, logits in expected.items():
        torch.testing.assert_close(model.train(mode)(images), logits)


def test_a_single_norm_is_converted_for_gpus() -> None:
    for norm, kind in ((BatchNorm(3), SyncPatchNorm), (nn.BatchNorm2d(3), nn.SyncBatchNorm)):
        weight = norm.weight
        converted = synchronise_batch_norm(norm, torch.device("cuda"))
        assert type(converted) is kind
        assert converted.weight is weight
    strange = nn.Sequential(type("Strange", (nn.BatchNorm2d,), {})(3))
    with pytest.raises(UserError, match=r"^0, a Strange, cannot be trained on more than one device"):
        synchronise_batch_norm(strange, torch.device("cuda"))


@pytest.mark.slow
def test_evaluation_counts_each_image_once(two: Path, four: Path) -> None:
    expected = [evaluation_figures(count, 0, 1) for count in EVALUATED]
    for folder, count in ((two, 2), (four, 4)):
        for rank in range(count):
            found = json.loads((folder / f"evaluation_{rank}.json").read_text())
            for mine, theirs in zip(found, expected, strict=True):
                assert mine.pop("confusion") == theirs["confusion"]
                assert mine == pytest.approx({key: theirs[key] for key in mine}, rel=1e-5)
    assert [sum(map(sum, figures["confusion"])) for figures in expected] == list(EVALUATED)


@pytest.mark.slow
def test_two_processes_resume_bit_by_bit(two: Path) -> None:
    assert_same_weights(kept(two / "batch resumed"), kept(two / "batch"))
    assert untimed(two / "batch resumed") == untimed(two / "batch")


@pytest.mark.slow
def test_weights_in_pieces_give_the_same_losses_and_resume(two: Path) -> None:
    found, expected = (untimed(two / name) for name in ("sharded", "layer"))
    assert [float(row["train_loss"]) for row in found] == pytest.approx(
        [float(row["train_loss"]) for row in expected], abs=1e-5
    )
    assert step_losses(two / "sharded") == pytest.approx(step_losses(two / "layer"), abs=1e-5)
    for name, value in kept(two / "layer").items():
        torch.testing.assert_close(kept(two / "sharded")[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_weights_in_two_pieces_go_on_in_four_and_undivided(two: Path, four: Path, tmp_path: Path) -> None:
    one = run(RECIPES["layer"], Path(shutil.copytree(two / HALF_SHARDED, tmp_path / "one")), resume="yes")
    expected = step_losses(two / "layer")
    assert checkpoint(two / HALF_SHARDED)["epoch"] == 2 < EPOCHS
    for folder, count in ((two / HALF_SHARDED, 2), (four / HALF_SHARDED, 4)):
        assert "model" not in checkpoint(folder)
        (last,) = (folder / "checkpoints").glob(checkpoint(folder)["parts"]["folder"])
        assert {file.name[:11] for file in last.iterdir()} == {f"shard-{n + 1:05}" for n in range(count)}
        assert len(list((folder / "checkpoints").iterdir())) == 4  # two checkpoints, and a folder of each
    assert not list((one / "checkpoints").glob("parts-*"))
    for folder in (one, four / HALF_SHARDED, four / HALF_WHOLE):
        assert step_losses(folder) == pytest.approx(expected, abs=1e-5)
        for name, value in kept(two / "layer").items():
            torch.testing.assert_close(kept(folder)[name], value, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flipped", "gone"])
def test_damaged_parts_are_followed_by_the_checkpoint_before(damage: str, two: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(two / HALF_SHARDED, tmp_path / "run"))
    part = sorted((folder / "checkpoints" / checkpoint(folder)["parts"]["folder"]).iterdir())[1]
    if damage == "flipped":
        content = bytearray(part.read_bytes())
        content[-9] ^= 1
        part.write_bytes(content)
    else:
        part.unlink()
    (folder / "checkpoints" / "parts-99").mkdir()  # of one that was killed before it was named
    with pytest.warns(UserWarning, match=r"last\.ckpt is damaged \(.*; going on from the one before it"):
        run(RECIPES["layer"], folder, resume="yes")
    assert not list((folder / "checkpoints").glob("parts-*"))
    found, expected = ([float(row["train_loss"]) for row in untimed(each)] for each in (folder, two / "layer"))
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_what_goes_wrong_is_said_once(two: Path) -> None:
    first, second = (json.loads((two / f"refusals_{rank}.json").read_text()) for rank in range(2))
    assert [words.split(" ")[0:2] for words in first] == [
        ["the", "loss"],
        ["unknown", "model"],
        [f"{two}/layer", "holds"],
        ["cannot", "write"],
    ]
    assert second == ["exit 2"] * 4
    assert not list((two / FULL / "checkpoints").glob("*"))


@pytest.mark.slow
def test_the_first_process_alone_prints_and_writes(two: Path) -> None:
    assert "epoch 4/4" in (two / "output_0.txt").read_text()
    assert (two / "output_1.txt").read_text().strip() == ""
    assert len(list((two / "layer" / "tensorboard").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["devices", "torchrun"])
def test_the_command_starts_both_processes(way: str, two: Path, tmp_path: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    command, options = {
        "devices": (patchconvnet_command(), ["--devices", "2", "--strategy", "ddp"]),
        "torchrun": ([sys.executable, *torchrun, "-m", "patchconvnet"], []),
    }[way]
    (tmp_path / "recipe.yaml").write_text(RECIPES["layer"].to_yaml())
    done = subprocess.run(
        [*command, "train", "--recipe", "recipe.yaml", "--accelerator", "cpu", *options],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("epoch")] == ["1/4", "2/4", "3/4", "4/4"]
    assert sum(line.startswith("test set") for line in lines) == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert step_losses(folder) == pytest.approx(step_losses(two / "layer"), abs=1e-5)


def patchconvnet_command() -> list[str]:
    """The console script where there is one, which is started again for the second process as it was for the first."""
    script = Path(sys.executable).with_name("patchconvnet")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "patchconvnet"]


if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS_OF_STANDSTILL, exit=True)
    {"2": be_one_of_two, "4": be_one_of_four}[sys.argv[2]](Path(sys.argv[1]))
