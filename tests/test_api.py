"""The front door: what people type, in fresh interpreters where importing matters."""

import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import patchconvnet
from patchconvnet import PatchConvNet, UserError, audit, evaluate, load, train
from patchconvnet.commands import audit as audit_command
from patchconvnet.commands import evaluate as evaluate_command
from patchconvnet.commands.sources import ModelAndData
from patchconvnet.data import datasets
from patchconvnet.models import Metadata

TINY = {"embed_dim": 16, "depth": 1}


def fresh(code: str) -> str:
    """What a fresh interpreter prints."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_importing_waits_for_nothing_and_still_registers_the_models() -> None:
    heavy = "[name for name in ('torch', 'timm', 'PIL', 'numpy', 'matplotlib') if name in sys.modules]"
    kind = "timm.create_model('patchconvnet_micro').kind"
    printed = fresh(f"import sys, patchconvnet; print({heavy}); import timm.layers; import timm; print({kind})")
    assert printed.split("\n") == ["[]", "patchconvnet"]
    assert fresh(f"import timm, patchconvnet; print({kind})") == "patchconvnet"


@pytest.mark.slow
def test_names_are_functions_whatever_was_imported_before() -> None:
    """Modules of the package become its attributes when they are imported; none may hide a name."""
    printed = fresh(
        "import importlib, pkgutil, patchconvnet\n"
        "for module in pkgutil.walk_packages(patchconvnet.__path__, 'patchconvnet.'):\n"
        "    if not module.name.endswith('__main__'): importlib.import_module(module.name)\n"
        "print([name for name in patchconvnet.__all__ if not callable(getattr(patchconvnet, name))])\n"
        "from patchconvnet import *\n"
        "print(set(patchconvnet.__all__) - set(dir()))"
    )
    assert printed.split("\n") == ["['__version__']", "set()"]
    assert set(patchconvnet.__all__) <= set(dir(patchconvnet))
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        patchconvnet.explian  # noqa: B018


@pytest.fixture(scope="module")
def model() -> PatchConvNet:
    """A network for digits with random weights: good enough to be measured."""
    torch.manual_seed(0)
    network = PatchConvNet(stem_filters=8, stem_stride=1, num_classes=10, **TINY)
    network.metadata = Metadata(class_names=[str(k) for k in range(10)], preprocessing={"size": [16, 16]})
    return network.eval()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(10):
            array = generator.integers(0, 256, (16, 16, 3), np.uint8)
            Image.fromarray(array).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.slow
def test_train_evaluate_and_audit_with_names_and_paths(images: Path, tmp_path: Path) -> None:
    best = train(
        "digits",
        tmp_path / "run",
        epochs=1,
        data={"name": f"folder:{images}", "test": 0.4, "seed": 3},
        model={"name": "patchconvnet_micro", "whiten": False, "options": TINY},
        preprocessing={"size": [16, 16]},
        **{"augmentation.random_crop_padding": 0, "monitor.every": 0},
    )
    assert best == tmp_path / "run" / "best"
    tested = load(tmp_path / "run").metadata.metrics["test"]  # a run folder stands for its best model
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the division of the training is repeated, so there is nothing to warn of
        for data in (f"folder:{images}", images):
            result = evaluate(best, data, out=tmp_path / "measured")
            assert (result.count, result.top1) == (8, tested["top1"])
    written = json.loads((tmp_path / "measured" / "evaluation.json").read_text())
    assert (written["model"], written["split"], written["images"]) == (str(best), "test", 8)
    with pytest.warns(UserWarning, match="divided otherwise than when the model was trained"):
        evaluate(str(best), datasets.load(f"folder:{images}", test=0.4, seed=4))
    options = {"methods": ["evidence", "random"], "measures": ["deletion"], "limit": 3}
    with pytest.warns(UserWarning, match="divided otherwise than when the model was trained"):
        audit(best, images, tmp_path / "audit", data_seed=4, **options)
    assert (tmp_path / "audit" / "report.html").is_file()
    resumed = train(out=tmp_path / "run", resume="yes")
    assert resumed == best


def test_evaluate_takes_networks_and_loaded_data(model: PatchConvNet) -> None:
    digits = datasets.load("digits", test=100)
    expected = evaluate(model, "digits", test=100)
    assert expected.count == 100
    for data in (digits, digits.require("test")):
        assert evaluate(model, data).to_dict() == expected.to_dict()
    assert evaluate(model, digits, split="validation", batch_size=7, device="cpu").count == len(
        digits.require("validation")
    )


@pytest.mark.parametrize("name", ["evaluate", "audit"])
def test_functions_and_commands_have_the_same_defaults(name: str) -> None:
    function = inspect.signature({"evaluate": evaluate, "audit": audit}[name]).parameters
    of_command = {"evaluate": evaluate_command.evaluate, "audit": audit_command.audit}[name]
    command = {**inspect.signature(of_command).parameters, **inspect.signature(ModelAndData).parameters}
    # a model in Python is where it is, and writes files when asked to; progress bars are a terminal's
    shared = function.keys() & command.keys() - {"model", "data", "device", "out"}
    assert shared >= {"split", "root", "validation", "test", "data_seed", "strict", "size"}
    assert {key: str(function[key].default) for key in shared} == {key: str(command[key].default) for key in shared}
    assert function["split"].default == "auto"


def test_a_folder_that_the_model_never_saw_is_measured_as_a_whole(images: Path, tmp_path: Path, capsys) -> None:
    model = PatchConvNet(stem_filters=8, stem_stride=1, num_classes=2, **TINY)
    model.metadata = Metadata(class_names=["cat", "dog"], preprocessing={"size": [16, 16]})
    model.save_pretrained(tmp_path / "model")
    assert evaluate(tmp_path / "model", images).count == 20
    words = ["--model", str(tmp_path / "model"), "--data", f"folder:{images}", "--out", str(tmp_path / "out")]
    assert evaluate_command.run(words) == 0
    assert "all 20 images count" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text())["split"] == "all"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: evaluate("no_such_model", "digits"), "no_such_model"),
        (lambda m: evaluate(m, "cifar11"), "cifar10"),
        (lambda m: evaluate(m, "digits", split="tset"), "unknown split 'tset'"),
        (
            lambda m: evaluate(m, datasets.load("digits"), data_seed=1),
            "loaded already, .* divided again by seed",
        ),
        (lambda m: evaluate(m, 3), "given data of type int"),
        (lambda m: evaluate(m, "digits", device="toaster"), "unknown device 'toaster'; known: auto, cpu"),
        (lambda m: evaluate(m, "digits", device="meta"), "unknown device 'meta'"),
        (lambda m: evaluate("cifar10", "digits"), r"classes .airplane, .*10 in all. are not the data's .0, 1"),
        (lambda m: audit(m, "digits", limits=3), "no setting 'limits'; .* Did you mean 'limit'"),
        (lambda m: train(), "needs a recipe"),
        (lambda m: train("digitz"), "no recipe 'digitz'"),
        (lambda m: train(resume="yes"), "needs `out`"),
        (lambda m: train("digits", "run", epoch=3), "no field 'epoch'. Did you mean 'epochs'"),
        (lambda m: train("digits", "run", optimization={"lr": 3}), "no field 'optimization.lr'"),
        (lambda m: train("digits", "run", optimization=3), "optimization is a group of a recipe's fields"),
        (lambda m: train("digits", "run", epochs="many"), '"epochs": Expected a int. Got value: many'),
    ],
)
def test_a_mistake_gets_a_sentence(call, words: str, model: PatchConvNet) -> None:
    with pytest.raises(UserError, match=words):
        call(model)
