"""Other people's weights: published files by tag, URL and file; what does not fit is named as its author named it."""

import pickle
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from patchconvnet import PatchConvNet, UserError
from patchconvnet.models.checkpoints import (
    convert_official,
    load_checkpoint,
    official_name,
    read_keras_weights,
    to_official,
)
from patchconvnet.models.labels import imagenet_class_names
from patchconvnet.models.weights import published_tags

FIXTURES = Path(__file__).parents[1] / "fixtures"
State = dict[str, torch.Tensor]
TINY = {"embed_dim": 48, "depth": 2}


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(FIXTURES / f"golden_official_{name}.npz") as archive:
        return {key: torch.from_numpy(archive[key]) for key in archive.files}


def official_state(name: str = "single") -> State:
    return {key[3:]: value for key, value in golden(name).items() if key.startswith("sd/")}


def variant(name: str) -> str:
    return "patchconvnet_s60_multi" if name == "multi" else "patchconvnet_s60"


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which an HTTP server gives it out."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def pretrained(served: tuple[Path, str], tmp_path: Path) -> Callable[..., PatchConvNet]:
    """Builds a tiny network with `pretrained=True` from a state dict that lies on the server."""
    folder, address = served

    def build(name: str, content: object, **options: object) -> PatchConvNet:
        file = f"tiny{len(list(folder.iterdir()))}.pth"  # downloads are cached by file name
        torch.save(content, folder / file)
        overlay = {"url": f"{address}/{file}", "num_classes": 7, "input_size": (3, 64, 64)}
        return timm.create_model(
            variant(name),
            pretrained=True,
            pretrained_cfg_overlay=overlay,
            cache_dir=tmp_path / "cache",
            **TINY,
            **options,
        ).eval()

    return build


# From a URL


@pytest.mark.parametrize("name", ["single", "multi", "single_odd_res"])
@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"model": state}], ids=["bare", "under-model"])
def test_published_weights_load_from_a_url(
    name: str, wrap: Callable[[State], object], pretrained: Callable[..., PatchConvNet]
) -> None:
    model = pretrained(name, wrap(official_state(name)))
    expected = golden(name)
    assert torch.allclose(model(expected["input"]), expected["logits"], atol=1e-5, rtol=0)
    assert model.metadata.preprocessing["size"] == [64, 64]
    assert model.metadata.class_names == []  # these seven are not ImageNet's


@pytest.mark.parametrize("name", ["single", "multi"])
@pytest.mark.parametrize("num_classes", [0, 1, 5, 100])
def test_another_number_of_classes(name: str, num_classes: int, pretrained: Callable[..., PatchConvNet]) -> None:
    state = official_state(name)
    model = pretrained(name, state, num_classes=num_classes)
    out = model(golden(name)["input"])
    assert out.shape == (2, num_classes or 48)
    assert torch.equal(model.pooling.attn.k.weight, state["blocks_token_only.0.attn.k.weight"])
    kept = name == "single"  # the one class token is everybody's
    assert torch.equal(model.pooling.class_token, state["cls_token"]) is kept


@pytest.mark.parametrize("in_chans", [1, 4])
def test_another_number_of_channels_sums_or_repeats_the_filters(
    in_chans: int, pretrained: Callable[..., PatchConvNet]
) -> None:
    state = official_state()
    model = pretrained("single", state, in_chans=in_chans)
    image = torch.randn(1, 1, 64, 64)
    if in_chans == 1:
        grey = pretrained("single", state)(image.expand(-1, 3, -1, -1))
        assert torch.allclose(model(image), grey, atol=1e-5)
    assert model(image.expand(-1, in_chans, -1, -1)).shape == (1, 7)


def test_features_and_another_pooling_take_the_trunk(pretrained: Callable[..., PatchConvNet]) -> None:
    expected, state = golden("single"), official_state()
    features = pretrained("single", state, features_only=True, out_indices=(0, 1))(expected["input"])
    for i, feature in enumerate(features):
        assert torch.allclose(feature.flatten(2).mT, expected[f"act/block_{i}_out"], atol=1e-5)
    patches = pretrained("single", state, global_pool="")(expected["input"])
    assert torch.allclose(patches, features[-1], atol=1e-6)
    additive = pretrained("single", state, pooling="additive", num_classes=4)
    assert torch.equal(additive.trunk[1].conv1.bias, state["blocks.1.attn.qkv_pos.0.bias"])


# What does not fit


def without(key: str) -> Callable[[State], State]:
    return lambda state: {name: value for name, value in state.items() if name != key}


FAULTS = [
    ("single", without("blocks.1.attn.qkv_pos.2.weight"), "lacks 'blocks.1.attn.qkv_pos.2.weight'"),
    ("single", without("patch_embed.proj.4.0.weight"), "lacks 'patch_embed.proj.4.0.weight'"),
    ("single", without("blocks_token_only.0.norm1.bias"), "lacks 'blocks_token_only.0.norm1.bias'"),
    ("single", without("norm.weight"), "lacks 'norm.weight'"),
    ("multi", without("head.6.weight"), "lacks 'head.6.weight'"),
    ("multi", without("head.3.bias"), "lacks 'head.3.bias'"),
    (
        "single",
        lambda state: {**state, "pos_embed": torch.zeros(1)},
        "has 'pos_embed', which the network does not know",
    ),
    (
        "single",
        lambda state: {**state, "blocks.0.gamma_1": torch.ones(47)},
        "has 'blocks.0.gamma_1' of shape (47,) where the network has (48,)",
    ),
    ("single", lambda state: {**state, "epoch": 3}, "entry 'epoch' is a int, not a tensor"),
]


@pytest.mark.parametrize(("name", "damage", "words"), FAULTS, ids=[words for _, _, words in FAULTS])
def test_what_does_not_fit_is_named_by_its_authors_name(
    name: str, damage: Callable[[State], State], words: str, pretrained: Callable[..., PatchConvNet], tmp_path: Path
) -> None:
    state = damage(official_state(name))
    with pytest.raises(UserError) as caught:
        pretrained(name, {"model": state})
    assert words in str(caught.value)
    if not words.startswith("lacks 'head"):
        with pytest.raises(UserError) as caught:  # timm would not look when the number of classes differs
            pretrained(name, {"model": state}, num_classes=2)
        assert words in str(caught.value)
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(UserError) as caught:
        load_checkpoint(timm.create_model(variant(name), num_classes=7, **TINY), tmp_path / "file.pth")
    assert words in str(caught.value)


def test_the_wrong_variant_is_refused(pretrained: Callable[..., PatchConvNet]) -> None:
    with pytest.raises(UserError, match="'cls_token' of shape"):
        pretrained("multi", official_state("single"))
    with pytest.raises(UserError, match="'cls_token' of shape"):
        pretrained("single", official_state("multi"))


def test_every_key_of_the_papers_code_translates_back() -> None:
    for name in ("single", "multi"):
        theirs = official_state(name)
        model = timm.create_model(variant(name), num_classes=7, **TINY)
        back = {official_name(key, model.class_wise) for key in model.state_dict()}
        rows = {f"head.{k}.{leaf}" for k in range(1, 7) for leaf in ("weight", "bias")} if name == "multi" else set()
        assert back == set(theirs) - rows


@pytest.mark.parametrize("name", ["single", "multi"])
def test_to_the_papers_names_and_back(name: str) -> None:
    theirs = official_state(name)
    there_and_back = to_official(convert_official(theirs), class_wise=name == "multi")
    assert there_and_back.keys() == theirs.keys()
    assert all(torch.equal(there_and_back[key], theirs[key]) for key in theirs)


def deeper(state: State, heads: int) -> tuple[State, Callable[[torch.Tensor], torch.Tensor]]:
    """A checkpoint with two blocks of class attention, and what the public code's formulas make of trunk patches."""
    generator = torch.Generator().manual_seed(0)
    blocks = [key for key in state if key.startswith("blocks_token_only.0.")]
    more = {key.replace(".0.", ".1.", 1): torch.randn(state[key].shape, generator=generator) * 0.2 for key in blocks}
    state = {**state, **more}

    def answer(patches: torch.Tensor) -> torch.Tensor:
        b, _, c = patches.shape
        token = state["cls_token"].expand(b, -1, -1)
        for i in (0, 1):
            w = {key.removeprefix(f"blocks_token_only.{i}."): value for key, value in state.items()}

            def norm(x: torch.Tensor, name: str, w: State = w) -> torch.Tensor:
                return F.layer_norm(x, (c,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

            def linear(x: torch.Tensor, name: str, w: State = w) -> torch.Tensor:
                return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

            u = norm(torch.cat([token, patches], 1), "norm1")
            q, k, v = (
                linear(x, f"attn.{n}").reshape(b, -1, heads, c // heads).transpose(1, 2)
                for x, n in ((u[:, :1], "q"), (u, "k"), (u, "v"))
            )
            mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, 1, c)
            token = token + w["gamma_1"] * linear(mixed, "attn.proj")
            token = token + w["gamma_2"] * linear(F.gelu(linear(norm(token, "norm2"), "mlp.fc1")), "mlp.fc2")
        vector = F.layer_norm(token[:, 0], (c,), state["norm.weight"], state["norm.bias"], 1e-6)
        return F.linear(vector, state["head.weight"], state["head.bias"])

    return state, answer


@pytest.mark.parametrize("heads", [1, 3])
def test_a_checkpoint_of_several_heads_and_blocks(heads: int, tmp_path: Path) -> None:
    state, answer = deeper(official_state(), heads)
    torch.save({"model": state}, tmp_path / "deeper.pth")
    sizes = {"num_classes": 7, "num_heads": heads, "depth_token_only": 2, **TINY}
    model = timm.create_model("patchconvnet_s60", **sizes).eval()
    load_checkpoint(model, tmp_path / "deeper.pth")
    image = golden("single")["input"]
    with torch.no_grad():
        patches = model.forward_features(image).flatten(2).mT
        assert torch.allclose(model(image), answer(patches), atol=1e-5)
    back = to_official(model.state_dict())
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], state[key]) for key in state)


def test_another_number_of_class_attention_blocks_is_named(tmp_path: Path) -> None:
    torch.save(deeper(official_state(), 1)[0], tmp_path / "deeper.pth")
    model = timm.create_model("patchconvnet_s60", num_classes=7, **TINY)
    with pytest.raises(UserError, match=r"2 blocks of class attention and the network 1; make .* depth_token_only=2"):
        load_checkpoint(model, tmp_path / "deeper.pth")


class Harmful:
    """What `weights_only=True` is there to refuse."""


@pytest.mark.parametrize(
    "content",
    [b"<html>moved</html>", b"", b"PK\x03\x04 and then nothing", b"hello world", pickle.dumps({1, 2})],
    ids=["html", "empty", "truncated", "text", "pickle"],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes, served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "broken.pth").write_bytes(content)
    model = timm.create_model("patchconvnet_s60", **TINY)
    with pytest.raises(UserError, match=r"broken\.pth is truncated, or not a file of weights alone"):
        load_checkpoint(model, folder / "broken.pth")
    overlay = {"url": f"{address}/broken.pth"}
    with pytest.raises(
        UserError, match=r"cannot load the weights of patchconvnet_s60 from h.*/broken\.pth: \w"
    ) as caught:
        timm.create_model(
            "patchconvnet_s60", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path / "cache", **TINY
        )
    assert "weights_only" not in str(caught.value)


def test_a_file_with_more_than_weights_is_refused(tmp_path: Path) -> None:
    torch.save({"model": official_state(), "args": Harmful()}, tmp_path / "harmful.pth")
    with pytest.raises(UserError, match=r"weights alone: it holds Python objects \(.*Harmful\)") as caught:
        load_checkpoint(timm.create_model("patchconvnet_s60", num_classes=7, **TINY), tmp_path / "harmful.pth")
    assert "weights_only" not in str(caught.value)  # torch's advice, to run what is in the file


def test_a_file_that_is_not_there_is_named(served: tuple[Path, str], tmp_path: Path) -> None:
    model = timm.create_model("patchconvnet_s60", num_classes=7, **TINY)
    with pytest.raises(UserError, match=r"there is no checkpoint .*none\.pth"):
        load_checkpoint(model, tmp_path / "none.pth")
    with pytest.raises(UserError, match=r"cannot download http.*none\.pth: .*404"):
        load_checkpoint(model, f"{served[1]}/none.pth", cache_dir=tmp_path / "cache")
    overlay = {"url": f"{served[1]}/none.pth"}
    with pytest.raises(UserError, match=r"cannot load the weights of patchconvnet_s60 from .*404"):
        timm.create_model(
            "patchconvnet_s60", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path / "cache", **TINY
        )


# From a file


@pytest.mark.parametrize("form", ["pth", "safetensors", "ours"])
def test_load_checkpoint_reads_files_and_urls(form: str, served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    expected, state = golden("multi"), official_state("multi")
    build = partial(timm.create_model, "patchconvnet_s60_multi", num_classes=7, **TINY)
    file = "tiny.pth" if form == "pth" else "tiny.safetensors"
    if form == "pth":
        torch.save({"model": state}, folder / file)
    elif form == "safetensors":
        save_file(state, folder / file)
    else:
        torch.save(state, tmp_path / "official.pth")
        model = build()
        load_checkpoint(model, tmp_path / "official.pth")
        save_file(model.state_dict(), folder / file)
    for source in (folder / file, str(folder / file), f"{address}/{file}"):
        model = build().eval()
        load_checkpoint(model, source, cache_dir=tmp_path / "cache")
        assert torch.allclose(model(expected["input"]), expected["logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", ["patchconvnet_mini", "patchconvnet_keras", "patchconvnet_s60"])
def test_load_checkpoint_reads_files_of_our_own(variant: str, tmp_path: Path) -> None:
    trained = timm.create_model(variant, embed_dim=32, depth=2)
    save_file(trained.state_dict(), tmp_path / "ours.safetensors")
    model = timm.create_model(variant, embed_dim=32, depth=2)
    load_checkpoint(model, tmp_path / "ours.safetensors")
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in model.state_dict().items())


# By tag

TAGS = {  # the 13 published files: input size, crop ratio
    "patchconvnet_s60.fb_in1k": ("s60_224_1k.pth", 224, 0.9),
    "patchconvnet_s60.fb_in21k_ft_in1k": ("s60_224_21k.pth", 224, 0.9),
    "patchconvnet_s60.fb_in21k_ft_in1k_384": ("s60_384_21k.pth", 384, 1.0),
    "patchconvnet_s60.fb_in21k_ft_in1k_512": ("s60_512_21k.pth", 512, 1.0),
    "patchconvnet_s120.fb_in1k": ("s120_224_1k.pth", 224, 0.9),
    "patchconvnet_b60.fb_in1k": ("b60_224_1k.pth", 224, 0.9),
    "patchconvnet_b60.fb_in21k_ft_in1k": ("b60_224_21k.pth", 224, 0.9),
    "patchconvnet_b60.fb_in21k_ft_in1k_384": ("b60_384_21k.pth", 384, 1.0),
    "patchconvnet_b120.fb_in1k": ("b120_224_1k.pth", 224, 0.9),
    "patchconvnet_b120.fb_in21k_ft_in1k": ("b120_224_21k.pth", 224, 0.9),
    "patchconvnet_b120.fb_in21k_ft_in1k_384": ("b120_384_21k.pth", 384, 1.0),
    "patchconvnet_s60_multi.fb_in1k": ("s60_multi_finetune_1k.pth", 224, 0.9),
    "patchconvnet_s60_multi.fb_in1k_scratch": ("s60_multi_scratch_1k.pth", 224, 0.9),
}


def test_all_published_files_have_a_tag() -> None:
    assert set(published_tags()) == set(TAGS)


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_leads_to_its_file(tag: str) -> None:
    cfg = timm.get_pretrained_cfg(tag)
    file, size, crop = TAGS[tag]
    assert cfg.url == f"https://dl.fbaipublicfiles.com/deit/{file}"
    assert cfg.input_size == (3, size, size)
    assert cfg.crop_pct == crop
    assert cfg.interpolation == "bicubic"
    assert cfg.mean == (0.485, 0.456, 0.406)
    assert cfg.std == (0.229, 0.224, 0.225)
    assert cfg.num_classes == 1000


def test_a_published_tag_with_everything_it_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A small S60 with random weights, which lie under the real file's name in the download cache."""
    ours = timm.create_model("patchconvnet_s60", **TINY)
    theirs = {}
    for key, value in ours.state_dict().items():
        convolution = key.startswith("trunk") and key.endswith("weight") and value.ndim == 2
        theirs[official_name(key)] = value[:, :, None, None] if convolution else value
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    torch.save({"model": theirs}, cache / "s60_384_21k.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = PatchConvNet.from_pretrained("patchconvnet_s60.fb_in21k_ft_in1k_384", **TINY)
    assert not model.training
    assert all(torch.equal(value, ours.state_dict()[key]) for key, value in model.state_dict().items())
    assert model.metadata.class_names == imagenet_class_names()
    assert model.metadata.provenance["tag"] == "patchconvnet_s60.fb_in21k_ft_in1k_384"
    assert model.metadata.preprocessing == {
        "size": [384, 384],
        "resize": "crop",
        "crop_ratio": 1.0,
        "interpolation": "bicubic",
        "antialias": True,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }


@pytest.mark.parametrize("name", ["patchconvnet_l60", "patchconvnet_keras", "patchconvnet_mini.untrained"])
def test_pretrained_is_never_ignored(name: str) -> None:
    with pytest.raises(UserError, match=r"there are no published weights of patchconvnet_.*; published: patchconvnet_"):
        timm.create_model(name, pretrained=True)


# The Keras example's weights, saved by Keras (fixtures/make_keras_weights.py)


def preprocessed() -> tuple[torch.Tensor, np.ndarray]:
    with np.load(FIXTURES / "golden_seed.npz") as archive:
        return torch.from_numpy(archive["act.preprocessed"]).permute(0, 3, 1, 2), archive["act.logits"]


def test_a_keras_file_gives_the_logits_of_keras() -> None:
    image, logits = preprocessed()
    model = timm.create_model("patchconvnet_keras", embed_dim=32).eval()
    load_checkpoint(model, FIXTURES / "keras_own.weights.h5")
    assert torch.allclose(model(image), torch.from_numpy(logits), atol=1e-5, rtol=0)
    assert not torch.equal(model.trunk[0].conv1.weight, model.trunk[1].conv1.weight)


def test_a_keras_file_whose_blocks_share_their_layers_gives_the_logits_of_keras() -> None:
    image, _ = preprocessed()
    model = timm.create_model("patchconvnet_keras", embed_dim=16).eval()
    load_checkpoint(model, FIXTURES / "keras_shared.weights.h5")
    with np.load(FIXTURES / "keras_shared.npz") as expected:
        output = model(image, return_attention=True)
        assert torch.allclose(output.logits, torch.from_numpy(expected["logits"]), atol=1e-5, rtol=0)
        assert torch.allclose(output.attention[:, 0], torch.from_numpy(expected["attention"]), atol=1e-5, rtol=0)
    for ours, theirs in zip(model.trunk[0].parameters(), model.trunk[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert ours.data_ptr() != theirs.data_ptr()  # a copy each, so that training can part them


def damaged_keras(tmp_path: Path, remove: str) -> Path:
    path = tmp_path / "damaged.weights.h5"
    path.write_bytes((FIXTURES / "keras_own.weights.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file[remove]
    return path


def test_a_keras_file_that_does_not_fit_is_refused_in_words(tmp_path: Path) -> None:
    model = timm.create_model("patchconvnet_keras", embed_dim=32)
    with pytest.raises(UserError, match=r"'stem\.convs\.0\.weight' of shape \(8, 3, 3, 3\)"):
        load_checkpoint(model, FIXTURES / "keras_shared.weights.h5")
    with pytest.raises(UserError, match="has no class token"):
        load_checkpoint(model, damaged_keras(tmp_path, "attention_pooling/vars/0"))
    with pytest.raises(UserError, match="does not hold the Keras example's network"):
        load_checkpoint(model, damaged_keras(tmp_path, "attention_pooling"))
    with pytest.raises(UserError, match=r"lacks 'pooling\.mlp\.fc2\.weight' \(and 1 more\)"):
        load_checkpoint(model, damaged_keras(tmp_path, "attention_pooling/mlp/layers/dense_1"))
    with pytest.raises(UserError, match=r"lacks 'trunk\.1\.conv1\.weight'"):  # no copy of the other block's
        load_checkpoint(model, damaged_keras(tmp_path, "layers/trunk/trunk_blocks/sequential_1/layers/conv2d"))
    whole = (FIXTURES / "keras_own.weights.h5").read_bytes()
    for content in (b"", b"no HDF5", whole[: len(whole) // 2]):
        (tmp_path / "cut.weights.h5").write_bytes(content)
        with pytest.raises(UserError, match="is damaged or not a Keras weights file"):
            load_checkpoint(model, tmp_path / "cut.weights.h5")


def test_what_is_no_weight_in_a_keras_file_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "trained.weights.h5"
    path.write_bytes((FIXTURES / "keras_own.weights.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["optimizer/vars/0"] = np.zeros(3)
        file["attention_pooling/mlp/layers/dropout/seed_generator/vars/0"] = np.zeros(2)
    assert set(read_keras_weights(path)) == set(read_keras_weights(FIXTURES / "keras_own.weights.h5"))
