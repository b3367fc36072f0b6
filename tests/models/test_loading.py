"""`load`: everything that a model may be called, and one sentence for everything else."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from patchconvnet import PatchConvNet, UserError, load
from patchconvnet.explanation.explainer import preprocessing_of
from patchconvnet.models import AttentionPooled


def network(name: str = "resnet10t", **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options).eval()


def image(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def hub_files(published: nn.Module, **changes: Any) -> dict[str, bytes]:
    """A repository as timm publishes them: `config.json` with the architecture beside the weights."""
    cfg = {**published.pretrained_cfg, **changes}
    cfg = {key: value for key, value in cfg.items() if value is not None and key not in ("url", "architecture")}
    config = {
        "architecture": published.pretrained_cfg["architecture"],
        "num_classes": published.num_classes,
        "num_features": published.num_features,
        "pretrained_cfg": cfg,
    }
    return {
        "README.md": b"---\ntags:\n- timm\n---\n",
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save({key: value.contiguous() for key, value in published.state_dict().items()}),
    }


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("nothing may be asked for elsewhere")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# timm's names


@pytest.mark.parametrize("name", ["resnet10t", "resnet10t.c3_in1k"])
def test_a_timm_name_brings_published_weights(name: str, hub_server: Any) -> None:
    published = network()
    hub_server.repositories["timm/resnet10t.c3_in1k"] = hub_files(published)
    model = load(name)
    assert isinstance(model, AttentionPooled)
    assert not model.training
    with torch.no_grad():
        output = model(image(), return_evidence=True)
        close(output.logits, published(image()))
        close(output.evidence.sum((2, 3)), output.logits - model.head.bias)
    assert model.metadata.class_names[207] == "golden retriever"
    assert preprocessing_of(model).size == (176, 176)
    assert model.metadata.provenance["source"] == "hf-hub:timm/resnet10t.c3_in1k"
    assert "state_dict" not in model.pretrained_cfg


def test_old_repositories_have_a_pickle(hub_server: Any, tmp_path: Path) -> None:
    published = network()
    torch.save(published.state_dict(), tmp_path / "weights.bin")
    hub_server.repositories["timm/resnet10t.c3_in1k"] = {"pytorch_model.bin": (tmp_path / "weights.bin").read_bytes()}
    with torch.no_grad():
        close(load("resnet10t")(image()), published(image()))


def test_options_and_another_number_of_classes(hub_server: Any) -> None:
    published = network()
    hub_server.repositories["timm/resnet10t.c3_in1k"] = hub_files(published)
    model = load("resnet10t", num_classes=3, pooling="additive_multi", drop_rate=0.5)
    assert (model.num_classes, model.class_wise, model.metadata.class_names) == (3, True, [])
    assert model.config.options == {"drop_rate": 0.5}
    with torch.no_grad():
        close(model.forward_features(image()), published.forward_features(image()))


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "regnety_002.pycls_in1k"])
def test_a_model_folder_of_it_is_enough(name: str, hub_server: Any, tmp_path: Path) -> None:
    hub_server.repositories[f"timm/{name}"] = hub_files(network(name))
    model = load(name)
    loaded = load(model.save_pretrained(tmp_path / "folder"))
    with torch.no_grad():
        assert torch.equal(loaded(image()), model(image()))
    assert loaded.metadata == model.metadata
    assert preprocessing_of(loaded) == preprocessing_of(model)


# Hub ids


def test_a_hub_id_of_a_timm_model(hub_server: Any, tmp_path: Path) -> None:
    published = network()
    hub_server.repositories["timm/resnet10t.c3_in1k"] = hub_files(published)
    model = load("timm/resnet10t.c3_in1k")
    with torch.no_grad():
        close(model(image()), published(image()))
    assert model.config.backbone == "resnet10t.c3_in1k"
    assert model.metadata.class_names[207] == "golden retriever"
    assert model.metadata.provenance["source"] == "timm/resnet10t.c3_in1k"
    assert not [path for path in hub_server.requests if path.startswith("/api")]


def test_a_hub_id_of_somebodys_own_timm_model(hub_server: Any, tmp_path: Path) -> None:
    published = network(num_classes=2)
    hub_server.repositories["someone/pets"] = hub_files(
        published,
        tag="mine",
        mean=[0.1, 0.2, 0.3],
        crop_mode="squash",
        input_size=[3, 96, 128],
        num_classes=2,
        label_names=["cat", "dog"],
    )
    model = load("someone/pets")
    with torch.no_grad():
        close(model(image()), published(image()))
    assert model.config.backbone == "resnet10t"
    assert model.metadata.class_names == ["cat", "dog"]
    loaded = load(model.save_pretrained(tmp_path / "folder"))
    for each in (model, loaded):
        preprocessing = preprocessing_of(each)
        assert (preprocessing.mean, preprocessing.size) == ((0.1, 0.2, 0.3), (96, 128))
        assert preprocessing.resize == "stretch"


def test_a_timm_folder_needs_no_network(tmp_path: Path, no_network: None) -> None:
    published = network(num_classes=2)
    for name, content in hub_files(published, num_classes=2, label_names=["cat", "dog"]).items():
        (tmp_path / name).write_bytes(content)
    model = load(tmp_path)
    with torch.no_grad():
        close(model(image()), published(image()))
    assert model.metadata.class_names == ["cat", "dog"]
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has a config\.json of timm's and no model\.safetensors or pytorch_model\.bin"
    ):
        load(tmp_path)


@pytest.mark.slow
def test_by_the_environment(hub_server: Any, tmp_path: Path) -> None:
    """As a person points at a mirror: HF_ENDPOINT, in a process of its own."""
    hub_server.repositories["timm/resnet10t.c3_in1k"] = hub_files(network())
    code = "import patchconvnet; print(patchconvnet.load('timm/resnet10t.c3_in1k').metadata.class_names[207])"
    environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "other"), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout == "golden retriever\n", done.stderr


# Checkpoints beside a name


@pytest.mark.parametrize("form", ["weights.safetensors", "bare.pth", "checkpoint.pth.tar"])
def test_a_checkpoint_beside_its_name(form: str, tmp_path: Path, no_network: None) -> None:
    published = network(num_classes=4)
    state = published.state_dict()
    if form == "weights.safetensors":
        save_file(state, tmp_path / form)
    elif form == "bare.pth":
        torch.save(state, tmp_path / form)
    else:  # as timm's training script writes it: averaged weights are the ones to take
        worse = {key: value + 1 for key, value in state.items()}
        averaged = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "state_dict": worse, "state_dict_ema": averaged}, tmp_path / form)
    model = load("resnet10t", weights=tmp_path / form)
    with torch.no_grad():
        close(model(image()), published(image()))
    assert model.num_classes == 4
    assert model.metadata.class_names == []
    assert model.metadata.provenance["source"] == str(tmp_path / form)
    assert load("resnet10t", weights=str(tmp_path / form), num_classes=7).num_classes == 7


def test_imagenets_names_come_with_a_checkpoint_of_its_classes(tmp_path: Path) -> None:
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    assert len(load("resnet10t", weights=tmp_path / "weights.safetensors").metadata.class_names) == 1000


def test_a_checkpoint_of_our_own_network(tmp_path: Path) -> None:
    ours = timm.create_model("patchconvnet_micro", embed_dim=16, depth=1, num_classes=3).eval()
    save_file(ours.state_dict(), tmp_path / "weights.safetensors")
    model = load("patchconvnet_micro", weights=tmp_path / "weights.safetensors", embed_dim=16, depth=1, num_classes=3)
    assert isinstance(model, PatchConvNet)
    assert torch.equal(model(image()), ours(image()))


# Refusals, one sentence each


def refused(source: str | Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_names_that_nobody_has(no_network: None) -> None:
    assert "close to it: resnet5" in refused("resnet51")
    assert "there is no model 'cifar11': no folder of that name is here" in refused("cifar11")
    assert "close to it: imagenet" in refused("imagenett")
    assert "published: resnet10t.c3_in1k" in refused("resnet10t.c3_in1")
    assert "there is no model folder ./nowhere" in refused("./nowhere")
    assert "there is no model folder nowhere" in refused(Path("nowhere"))
    assert "close to it: patchconvnet_" in refused("patchconvnet_micro")


def test_files_are_sent_to_their_place(tmp_path: Path, no_network: None) -> None:
    save_file(network().state_dict(), tmp_path / "weights.safetensors")
    file = str(tmp_path / "weights.safetensors")
    assert f"load('resnet18', weights={file!r})" in refused(file)
    assert "weights go with the name of a network" in refused(tmp_path, weights=file)
    assert "there is no checkpoint" in refused("resnet10t", weights=tmp_path / "nowhere.pth")
    assert "timm cannot make resnet18 with the weights" in refused("resnet18", weights=file)
    assert "timm cannot make resnet18 with the weights" in refused("resnet18", weights=file, num_classes=3)
    assert "close to it: resnet5" in refused("resnet51", weights=file)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    assert "not a file of weights alone" in refused("resnet10t", weights=tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


def test_hub_ids_of_other_things(hub_server: Any) -> None:
    hub_server.repositories["someone/text"] = {"config.json": b'{"architectures": ["Bert"]}', "model.safetensors": b""}
    assert "not a patchconvnet config" in refused("someone/text")
    hub_server.repositories["someone/new"] = {"config.json": b'{"architecture": "resnet51"}', "model.safetensors": b""}
    assert "someone/new holds no model that can be read: timm has no model 'resnet51'" in refused("someone/new")
    hub_server.repositories["someone/empty"] = {"README.md": b"#"}
    assert "someone/empty on the hub has no config.json" in refused("someone/empty")


def test_a_network_without_a_classifier_says_what_to_do(hub_server: Any) -> None:
    published = network("convnext_atto", num_classes=0, depths=[1, 1, 1, 1])
    hub_server.repositories["someone/features"] = hub_files(published, num_classes=0)
    assert "someone/features comes without a classifier" in refused("someone/features", depths=[1, 1, 1, 1])
    model = load("someone/features", depths=[1, 1, 1, 1], num_classes=3)
    assert model(image()).shape == (2, 3)


def test_outputs_that_are_no_classes_are_refused(hub_server: Any) -> None:
    name = "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"
    hub_server.repositories[f"timm/{name}"] = hub_files(network(name))
    for given in (name, f"timm/{name}"):
        assert f"{given} comes without a classifier" in refused(given)
    assert load(name, num_classes=3).num_classes == 3


def test_a_hub_that_cannot_be_reached(unreachable_hub: None) -> None:
    assert "the Hugging Face hub cannot be reached" in refused("resnet10t")
    assert "the Hugging Face hub cannot be reached" in refused("someone/pears")
