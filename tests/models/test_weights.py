"""The model folder: written, read, refused, published. Published tags and other people's files: test_checkpoints.py."""

import base64
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from patchconvnet import PatchConvNet, UserError
from patchconvnet.data import datasets
from patchconvnet.models import Metadata
from patchconvnet.models.weights import SHIPPED

SMALL = {"embed_dim": 32, "depth": 2, "num_classes": 3}


def small(variant: str = "patchconvnet_mini", **options: object) -> PatchConvNet:
    torch.manual_seed(0)
    model = timm.create_model(variant, **{**SMALL, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and class tokens too, so that nothing rests on being zero
            parameter += 0.02 * torch.randn_like(parameter)
    model.metadata = Metadata(
        class_names=["apple", "boat", "cat"],
        preprocessing={"size": [32, 48]},
        provenance={"data": "test"},
        metrics={"top1": 0.5},
    )
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small().save_pretrained(tmp_path / "model")


def edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architecture"].update(changes.pop("architecture", {}))
    path.write_text(json.dumps({**config, **changes}))


OLD = Path(__file__).parents[1] / "fixtures" / "old_run" / "best"


def edit_weights(folder: Path, change: object) -> None:
    """Other weights in a folder that has no checksum of them, as old ones."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")
    edit_config(folder, weights_sha256=None)


# Writing and reading


@pytest.mark.parametrize(
    "variant", ["patchconvnet_mini", "patchconvnet_keras", "patchconvnet_s60", "patchconvnet_s60_multi"]
)
def test_a_model_comes_back_from_its_folder(variant: str, tmp_path: Path) -> None:
    model = small(variant)
    loaded = PatchConvNet.from_pretrained(model.save_pretrained(tmp_path / "a" / "b"))
    assert loaded.config == model.config
    assert loaded.metadata == model.metadata
    assert not loaded.training
    image = torch.randn(2, 3, 40, 64)
    ours, theirs = loaded(image, return_attention=True), model(image, return_attention=True)
    assert torch.equal(ours.logits, theirs.logits)
    assert torch.equal(ours.attention, theirs.attention)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_half_precision_on_disk_is_float32_in_memory(dtype: str, tolerance: float, tmp_path: Path) -> None:
    model = small("patchconvnet_s60", layer_scale=1e-6)
    full = model.save_pretrained(tmp_path / "full")
    half = model.save_pretrained(tmp_path / "half", dtype=dtype)
    sizes = [(path / "model.safetensors").stat().st_size for path in (half, full)]
    assert sizes[0] < 0.7 * sizes[1]
    loaded = PatchConvNet.from_pretrained(half)
    for name, parameter in model.state_dict().items():
        ours = loaded.state_dict()[name]
        assert ours.dtype == parameter.dtype == torch.float32
        allowed = tolerance * parameter.abs() + 1e-7 if parameter.ndim > 1 else torch.zeros(())
        assert ((ours - parameter).abs() <= allowed).all(), name


def test_an_unknown_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'int8'; known: float32, float16, bfloat16"):
        small().save_pretrained(tmp_path, dtype="int8")


def test_metadata_that_json_cannot_hold_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    model = small()
    model.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model.metadata.metrics = {"top1": torch.tensor(0.9)}
    with torch.no_grad():
        model.head.weight += 1
    with pytest.raises(UserError, match=r"config\.json cannot hold the model's metadata"):
        model.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    with pytest.raises(UserError, match="cannot write the model folder"):
        small().save_pretrained(tmp_path / "file")


def test_saving_over_a_model_leaves_no_other_files(folder: Path) -> None:
    small().save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_mode_that_the_umask_gives(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        small().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_folder_of_version_0_1_0_is_understood() -> None:
    """Trained and written by that version's own code; it said "pictures" for images."""
    model = PatchConvNet.from_pretrained(OLD)
    old = json.loads((OLD / "config.json").read_text())
    prints = old["provenance"]["data"]["fingerprint"]
    now = model.metadata.provenance["data"]["fingerprint"]
    assert now == {
        "class names": prints["class names"],
        **{f"{name} images": prints[f"{name} pictures"] for name in ("train", "validation", "test", "all")},
    }
    today = datasets.load("digits", validation=200, test=1200).fingerprint()  # with contents too
    assert now == {name: today[name] for name in now}
    assert model.metadata.metrics["test"]["images"] == old["metrics"]["test"]["pictures"] == 1200
    assert model.metadata.metrics["validation"]["images"] == 200
    assert model.metadata.provenance["recipe"] == old["provenance"]["recipe"]


# Options


def test_options_go_on_top_of_the_config(folder: Path) -> None:
    model = PatchConvNet.from_pretrained(folder, drop_path_rate=0.25)
    assert model.trunk[0].drop_path.drop_prob == 0.25
    assert model.metadata.class_names == ["apple", "boat", "cat"]


@pytest.mark.parametrize("pooling", ["additive", "additive_multi", "class_attention_multi", "keras"])
def test_another_number_of_classes_gets_a_fresh_head_only(pooling: str, tmp_path: Path) -> None:
    trained = small(pooling=pooling)
    model = PatchConvNet.from_pretrained(trained.save_pretrained(tmp_path / "model"), num_classes=5)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 5)
    assert model.metadata == Metadata(preprocessing=trained.metadata.preprocessing)
    before, after = trained.state_dict(), model.state_dict()
    fresh = {name for name in after if name not in before or not torch.equal(after[name], before[name])}
    tokens = {"additive_multi": {"pooling.query"}, "class_attention_multi": {"pooling.class_token"}}
    assert fresh == {"head.weight", "head.bias"} | tokens.get(pooling, set())


# Refusals, one sentence each


def refused(source: object, **options: object) -> str:
    with pytest.raises(UserError) as caught:
        PatchConvNet.from_pretrained(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_entry_is_named(folder: Path) -> None:
    edit_weights(folder, lambda state: state.pop("trunk.1.conv2.weight"))
    assert "lacks 'trunk.1.conv2.weight'" in refused(folder)


def test_an_unexpected_entry_is_named(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update(extra=torch.zeros(1)))
    assert "has 'extra', which the network does not know" in refused(folder)


def test_a_misshaped_entry_is_named(folder: Path) -> None:
    edit_config(folder, architecture={"embed_dim": 64})
    message = refused(folder)
    assert "'stem.convs.1.weight' of shape (16, 24, 3, 3) where the network has (32, 24, 3, 3)" in message


def test_an_option_that_changes_the_weights_is_refused(folder: Path) -> None:
    assert "lacks 'trunk.2.norm1.weight'" in refused(folder, depth=3)


def test_whole_numbers_for_weights_are_refused(folder: Path) -> None:
    edit_weights(folder, lambda state: state.update({"head.weight": state["head.weight"].int()}))
    assert "has 'head.weight' as int32 where the network has float32" in refused(folder)


def test_real_numbers_for_a_count_are_refused(folder: Path) -> None:
    name = "stem.norms.0.num_batches_tracked"
    edit_weights(folder, lambda state: state.update({name: state[name].double()}))
    assert f"has {name!r} as float64 where the network has int64" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_file_that_cannot_be_read_is_called_that(name: str, folder: Path) -> None:
    unreadable = Path("/proc/self/mem")  # for root too
    if not unreadable.exists():
        pytest.skip("needs Linux's /proc")
    (folder / name).unlink()
    (folder / name).symlink_to(unreadable)
    message = refused(folder)
    assert f"{name} cannot be read: " in message or f"{name} is damaged or not" in message
    assert "truncated" not in message


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork") or os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_without_permission_is_called_that() -> None:
    code = (
        "import os, sys, patchconvnet\n"
        "from patchconvnet.models.weights import read_model_folder\n"
        "os.setuid(65534)\n"
        "try: read_model_folder(patchconvnet.models.weights.Path(sys.argv[1]))\n"
        "except patchconvnet.UserError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as place:  # pytest's own folders are closed to others
        Path(place).chmod(0o755)
        folder = small().save_pretrained(Path(place) / "model")
        (folder / "model.safetensors").chmod(0)
        done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{folder / 'model.safetensors'} cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("abc", "must be a list of words, one a class, not 'abc'"),
        ([1, 2, 3], "must be a list of words, one a class, not [1, 2, 3]"),
        ({"a": 1, "b": 2, "c": 3}, "must be a list of words"),
        (["apple", "boat", "\ud800"], "which is not valid Unicode"),
    ],
)
def test_class_names_that_are_no_list_of_words_are_refused(names: object, words: str, folder: Path) -> None:
    edit_config(folder, class_names=names)
    assert words in refused(folder)


@pytest.mark.parametrize("key", ["preprocessing", "provenance", "metrics"])
def test_metadata_that_is_no_table_is_refused(key: str, folder: Path) -> None:
    edit_config(folder, **{key: [1, 2]})
    assert f"{key} in {folder / 'config.json'} must be a table of names and values, not [1, 2]" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10_000_000},
        {"depth": 999},
        {"depth": True},
        {"embed_dim": 10**9},
        {"embed_dim": 65_536},
        {"embed_dim": 65_536, "depth": 999},
        {"in_chans": 10**8},
        {"in_chans": 65_536, "stem_filters": 65_536},
        {"num_classes": 10**12},
        {"num_classes": 10_000_000},
        {"stem_filters": 10**9},
        {"stem_repeats": 10**9},
        {"stem_stride": 10**30},
        {"stem_divisors": [1] * 1000},
        {"se_ratio": 1e9},
        {"se_ratio": float("inf")},
        {"se_ratio": float("nan")},
        {"mlp_ratio": 1e300, "pooling": "class_attention"},
        {"mlp_ratio": 1000, "pooling": "class_attention"},
        {"layer_scale": "big"},
        {"se_bias": "no"},
    ],
    ids=str,
)
def test_absurd_sizes_are_refused_before_they_take_time_or_memory(change: dict[str, object], folder: Path) -> None:
    edit_config(folder, architecture=change)
    start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert str(folder) in refused(folder)
    assert time.process_time() - start < 20  # 999 blocks without values: 2 s
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.5, 0.999])
def test_truncated_weights_are_refused(share: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    assert "model.safetensors is truncated or damaged" in refused(folder)


def test_a_flipped_bit_is_noticed_wherever_it_is(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")  # behind the header
    for place in (start, start + 1, (start + len(content)) // 2, len(content) - 1):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert "model.safetensors is damaged or was replaced: its SHA-256 checksum is not weights_sha256" in refused(
            folder
        )
        assert not is_without_checksum_refused(folder)
    path.write_bytes(content)
    PatchConvNet.from_pretrained(folder)


def is_without_checksum_refused(folder: Path) -> bool:
    """Whether the same weights are refused in a folder as an older version wrote it."""
    old = folder.with_name("old")
    shutil.copytree(folder, old, dirs_exist_ok=True)
    config = json.loads((old / "config.json").read_text())
    del config["weights_sha256"]
    (old / "config.json").write_text(json.dumps(config))
    try:
        PatchConvNet.from_pretrained(old)
    except UserError:
        return True
    return False


def test_the_checksum_is_sha256_of_the_file_of_weights(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert "weights_sha256" in json.loads((SHIPPED / "cifar10" / "config.json").read_text())
    assert "weights_sha256" not in json.loads((OLD / "config.json").read_text())


@pytest.mark.parametrize("checksum", [42, "", "abc", ["0" * 64], True])
def test_a_checksum_that_is_none_is_refused(checksum: object, folder: Path) -> None:
    edit_config(folder, weights_sha256=checksum)
    assert "weights_sha256 in" in refused(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"architecture": 3}', "\x00\x01"])
def test_a_config_that_is_none_is_refused(content: str, folder: Path) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json is damaged or not a patchconvnet config" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_without_its_files_is_refused(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert f"is not a model folder: it has no {name}" in refused(folder)


def test_an_architecture_of_another_kind_is_refused(folder: Path) -> None:
    edit_config(folder, architecture={"kind": "transformer"})
    assert "kind 'transformer', and 'patchconvnet' is wanted here" in refused(folder)


def test_an_architecture_from_the_future_is_refused(folder: Path) -> None:
    edit_config(folder, format=99)
    assert "newer patchconvnet (format 99)" in refused(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pooling": "max"}, "unknown pooling 'max'; known: class_attention"),
        ({"embed_dims": 3}, "unknown option 'embed_dims'"),
        ({"embed_dim": 33}, "embed_dim 33 must be a multiple of 2"),
        ({"depth": "two"}, "depth must be a whole number"),
        ({"drop_rate": "much"}, "describes no network"),
    ],
)
def test_an_architecture_that_is_none_is_refused(change: dict[str, object], words: str, folder: Path) -> None:
    edit_config(folder, architecture=change)
    message = refused(folder)
    assert "config.json" in message
    assert words in message


def test_class_names_that_do_not_fit_are_refused(folder: Path) -> None:
    edit_config(folder, class_names=["apple"])
    assert "names 1 classes for a network of 3" in refused(folder)


@pytest.mark.parametrize("source", ["no/such/folder", "./nowhere", "/nowhere/at/all", Path("nowhere")])
def test_a_folder_that_is_not_there_is_named(source: str | Path) -> None:
    assert refused(source) == f"there is no model folder {source}"


def test_an_unknown_tag_gets_close_matches() -> None:
    assert "patchconvnet_s60.fb_in1k" in refused("patchconvnet_s60.fb_in1")
    assert "published: patchconvnet_b60.fb_in1k, patchconvnet_b60.fb_in21k_ft" in refused("zzz")


# The hub, played by a server of our own


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as one upload and one download of small files need."""

    files: dict[str, bytes]
    private: bool

    def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: object, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), status, Content_Type="application/json")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.json({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            type(self).private = json.loads(body).get("visibility", "") == "private" or json.loads(body).get("private")
            self.json({"url": f"http://{self.headers['Host']}/someone/apples"})
        elif self.path == "/api/validate-yaml":  # the head of a model card
            assert json.loads(body)["content"].startswith("---\n")
            self.json({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            self.json({"files": [{**f, "shouldIgnore": False} for f in files]})
        else:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.json(
                {"commitUrl": f"http://{self.headers['Host']}/someone/apples/commit/{'1' * 40}", "commitOid": "1" * 40}
            )

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/someone/apples/tree/"):
            self.json([{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in self.files.items()])
        elif self.path.startswith("/api/models/someone/apples"):
            siblings = [{"rfilename": name} for name in self.files]
            self.json({"id": "someone/apples", "sha": "1" * 40, "siblings": siblings, "private": False})
        elif match := re.fullmatch(r"/someone/apples/resolve/\w+/([\w.]+)", self.path):
            self.answer(self.files[match[1]], X_Repo_Commit="1" * 40, ETag=f'"{match[1]}"')
        else:
            self.answer(b"", 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    handler = type("OneHub", (Hub,), {"files": {}, "private": False})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    yield handler
    server.shutdown()
    server.server_close()


def test_a_model_goes_to_the_hub_and_comes_back(hub: type[Hub]) -> None:
    model = small()
    address = model.push_to_hub("someone/apples", token="hf_good", private=True)
    assert address.endswith("/someone/apples")
    assert hub.private
    assert {"config.json", "model.safetensors", "README.md"} <= set(hub.files)
    loaded = PatchConvNet.from_pretrained("someone/apples")
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(loaded(image), model(image))
    assert loaded.metadata == model.metadata


def test_a_model_that_the_hub_does_not_have_is_named(hub: type[Hub]) -> None:
    assert refused("someone/pears").startswith("there is no folder 'someone/pears', and no such model")


def test_a_hub_that_cannot_be_reached_is_named(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert "the Hugging Face hub cannot be reached" in refused("someone/pears")


def test_publishing_is_refused_in_words(hub: type[Hub]) -> None:
    with pytest.raises(UserError, match="log in with `hf auth login`"):
        small().push_to_hub("someone/apples", token="hf_bad")
    with pytest.raises(UserError, match="give owner/name"):
        small().push_to_hub("not a name!")
    with pytest.raises(UserError, match="does not know an option"):
        small().push_to_hub("someone/apples", token="hf_good", colour="red")
