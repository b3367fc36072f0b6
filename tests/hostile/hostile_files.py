"""Makes a folder of hostile images, data sets, model folders and recipes, all from a few lines each."""

import io
import json
import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from patchconvnet.models import Metadata


def make(root: Path) -> None:
    """Everything that the cases name, below `root`."""
    _images(root / "images")
    _model(root / "model", ["a", "b"])
    _model(root / "digits_model", [str(k) for k in range(10)])
    shutil.copytree(root / "model", root / "run" / "best")
    _models(root / "models", root / "model")
    _data(root / "data")
    _recipes(root / "recipes")
    _exported(root / "exported")
    (root / "a_file").write_text("a file\n")


# Images


def noise(width: int, height: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(values.squeeze(-1) if channels == 1 else values)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has pixels for none of it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def _images(folder: Path) -> None:
    folder.mkdir(parents=True)
    small, grey = noise(40, 30), noise(40, 30, 1)
    jpeg, png = encoded(small, "JPEG"), encoded(small, "PNG")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    deep = Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50)
    files: dict[str | bytes, bytes] = {
        "good.png": png, "good.jpg": jpeg,
        "1x1.png": encoded(noise(1, 1), "PNG"), "1x5000.png": encoded(noise(1, 5000), "PNG"),
        "5000x1.png": encoded(noise(5000, 1), "PNG"), "2x5000.png": encoded(noise(2, 5000), "PNG"),
        "3x9000.png": encoded(noise(3, 9000), "PNG"), "9000x3.jpg": encoded(noise(9000, 3), "JPEG"),
        "grey.png": encoded(grey, "PNG"), "deep.png": encoded(deep, "PNG"),
        "one_bit.png": encoded(grey.convert("1"), "PNG"), "rgba.png": encoded(small.convert("RGBA"), "PNG"),
        "grey_alpha.png": encoded(grey.convert("LA"), "PNG"), "palette.gif": encoded(small.convert("P"), "GIF"),
        "animated.gif": encoded(small.convert("P"), "GIF", save_all=True, append_images=[grey.convert("P")]),
        "cmyk.jpg": encoded(small.convert("CMYK"), "JPEG"), "webp.webp": encoded(small, "WEBP"),
        "tiff.tif": encoded(small, "TIFF"), "pages.tif": encoded(small, "TIFF", save_all=True, append_images=[noise(40, 30)]),
        "bmp.bmp": encoded(small, "BMP"), "ppm.ppm": encoded(small, "PPM"),
        "turned.jpg": encoded(small, "JPEG", exif=exif), "progressive.jpg": encoded(small, "JPEG", progressive=True),
        "floats.tif": encoded(Image.fromarray(np.full((30, 40), 0.5, np.float32)), "TIFF"),
        "thirty_two_bit.tif": encoded(Image.fromarray(np.full((30, 40), 1 << 20, np.int32)), "TIFF"),
        "jpeg_inside.png": jpeg, "no_ending": png, "foreign.dat": png,
        "empty.png": b"", "text.jpg": b"not an image", "random.png": bytes(range(256)) * 8,
        "cut.png": png[: len(png) // 2], "cut.jpg": jpeg[: len(jpeg) // 2], "start.png": png[:8], "start.jpg": jpeg[:2],
        "flipped.png": png[:60] + bytes(byte ^ 255 for byte in png[60:]), "page.jpg": b"<html><body>404</body></html>",
        "archive.png": b"PK\x03\x04" + b"\0" * 60, "document.jpg": b"%PDF-1.7\n", "drawing.svg": b"<svg/>",
        "bomb.png": png_header(60_000, 60_000), "large.png": png_header(10_000, 10_000),
        "no_pixels.png": png_header(0, 0), "missing_pixels.png": png_header(40, 30),
        "photo.heic": b"\0\0\0\x18ftypheic" + b"\0" * 40,
        "with space.png": png, "[red]brackets.png": png, "100%.png": png, "{braces}.png": png, "$\\frac$.png": png,
        "-dash.png": png, "日本.png": png, "🐈.png": png, "new\nline.png": png, "esc\x1b[2J\x1b]0;x\x07.png": png,
        "tab\t.png": png, "\u202egnp.exe.png": png, "a" * 240 + ".png": png, b"caf\xe9.png": png, b"\xff\xfe.png": png,
    }  # fmt: skip
    for name, content in files.items():
        Path(folder, os.fsdecode(name)).write_bytes(content)
    (folder / "folder.png").mkdir()
    (folder / "nothing.png").symlink_to("nowhere")
    (folder / "itself.png").symlink_to("itself.png")
    os.mkfifo(folder / "pipe.png")


# Data sets


def _data(root: Path) -> None:
    def fill(name: str, folders: dict[str, int], start: int = 0) -> Path:
        for number, (folder, count) in enumerate(folders.items()):
            Path(root, name, folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                shade = Image.new("RGB", (20, 20), (80 * number, 40, (start + 5 * i) % 256))
                shade.save(Path(root, name, folder, f"{start + i}.png"))
        return root / name

    fill("flat", {"a": 6, "b": 6})
    fill("split", {"train/a": 4, "train/b": 4, "val/a": 2, "val/b": 2, "test/a": 3, "test/b": 3})
    fill("two_validations", {"train/a": 2, "train/b": 2, "val/a": 2, "val/b": 2, "valid/a": 1, "valid/b": 1})
    fill("extra_class", {"train/a": 2, "train/b": 2, "test/c": 2})
    fill("one_class", {"a": 4})
    (fill("empty_class", {"a": 4}) / "b").mkdir()
    (fill("text_class", {"a": 4, "b": 0}) / "b" / "x.txt").write_text("x")
    (root / "empty").mkdir()
    for i in range(3):
        (fill("heic_class", {"a": 4, "b": 0}) / "b" / f"{i}.cr2").write_bytes(b"II*\0")
    mixed = fill("raw_among", {"a": 4, "b": 4})
    (mixed / "a" / "x.cr2").write_bytes(b"raw")
    (mixed / "a" / "x.xyz").write_bytes(b"unknown")
    broken = fill("some_broken", {"a": 6, "b": 6})
    (broken / "a" / "broken.png").write_bytes(b"no")
    all_broken = fill("class_broken", {"a": 4, "b": 0})
    (all_broken / "b" / "broken.png").write_bytes(b"no")
    loose = fill("loose", {"a": 6, "b": 6})
    shutil.copy(loose / "a" / "0.png", loose / "loose.png")
    fill("unsorted", {"train/a": 4, "train/b": 4, "test/a": 2, "test/b": 2, "unsorted": 3})
    fill("class_train", {"bus": 6, "train": 6})
    fill("class_test", {"exam": 6, "test": 6})
    fill("nested", {"a/x/y": 6, "b/z": 6})
    fill("control", {"a\x1b[31m": 6, "b\nc": 6})
    fill(os.fsdecode(b"bytes"), {os.fsdecode(b"caf\xe9"): 8, os.fsdecode(b"\xff"): 8})
    fill("markup", {"[bold]": 8, "$\\frac$": 8})
    fill("long", {"a" * 120: 8, "日本語" * 20: 8})
    (fill("circle", {"a": 6, "b": 6}) / "a" / "again").symlink_to("..")
    fill("tiny", {"a": 1, "b": 1})
    (root / "file").write_text("x")
    elongated = fill("elongated", {"a": 6, "b": 6})
    noise(1, 5000).save(elongated / "a" / "tall.png")
    noise(9000, 3).save(elongated / "b" / "wide.png")
    large = fill("large", {"a": 6, "b": 6})
    (large / "a" / "large.png").write_bytes(png_header(10_000, 10_000))


# Model folders


def _model(folder: Path, class_names: list[str]) -> None:
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_micro", num_classes=len(class_names), embed_dim=16, depth=1)
    model.metadata = Metadata(class_names=class_names, preprocessing={"size": [16, 16]})
    model.save_pretrained(folder)


def _models(root: Path, good: Path) -> None:
    config = json.loads((good / "config.json").read_text())
    checksum = {"weights_sha256": config.pop("weights_sha256")}  # without it, other weights are refused for themselves

    def copy(name: str, text: str | bytes | None = None, **changes: Any) -> Path:
        shutil.copytree(good, root / name)
        if text is None:
            text = json.dumps({**config, **changes})
        (root / name / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return root / name

    root.mkdir()
    (root / "empty").mkdir()
    copy("crops", preprocessing={"size": [224, 224], "resize": "crop"})
    copy("not_json", "{")
    copy("list", "[]")
    copy("nothing_inside", "{}")
    copy("no_text", b"\xff\xfe\x00")
    copy("utf16", json.dumps(config).encode("utf-16"))
    copy("nested", "[" * 100_000)
    copy("null", "null")
    (copy("config_folder") / "config.json").unlink()
    (root / "config_folder" / "config.json").mkdir()
    inner = next((key for key, value in config.items() if isinstance(value, dict) and "depth" in value), None)

    def architecture(name: str, **changes: Any) -> None:
        copy(name, **({inner: {**config[inner], **changes}} if inner else changes))

    for name, changes in {
        "deep": {"depth": 10**7}, "deeper": {"depth": 10**12}, "wide": {"embed_dim": 10**9}, "negative": {"depth": -1},
        "zero": {"embed_dim": 0}, "text_depth": {"depth": "four"}, "half_depth": {"depth": 1.5}, "unknown": {"colour": 1},
        "more_classes": {"num_classes": 5}, "many_classes": {"num_classes": 10**10}, "no_pooling": {"pooling": "magic"},
        "other_width": {"embed_dim": 24}, "channels": {"in_chans": 0}, "null_depth": {"depth": None},
        "list_depth": {"depth": [1]}, "true_depth": {"depth": True},
    }.items():  # fmt: skip
        architecture(name, **changes)
    for name, names in {
        "names_text": "ab", "names_numbers": [1, 2], "names_surrogates": ["\ud800", "b"], "names_few": ["a"],
        "names_twice": ["a", "a"], "names_null": [None, "b"], "names_control": ["\x1b[2Ja", "b\nb"],
        "names_empty": ["", ""], "names_markup": ["[red]a[/]", "$\\frac$"], "names_long": ["a" * 5000, "b"],
        "names_dict": {"a": 0, "b": 1}, "names_nested": [["a"], ["b"]],
    }.items():  # fmt: skip
        copy(name, class_names=names)
    for name, preprocessing in {
        "size_huge": {"size": [100_000, 100_000]}, "size_zero": {"size": [0, 16]}, "size_text": {"size": "16"},
        "size_one": {"size": [16]}, "crop_tiny": {"size": [16, 16], "resize": "crop", "crop_ratio": 1e-9},
        "mean_text": {"size": [16, 16], "mean": ["a"], "std": ["b"]}, "key": {"size": [16, 16], "colour": 1},
        "std_zero": {"size": [16, 16], "mean": [0, 0, 0], "std": [0, 0, 0]}, "text": "16",
        "crop_nan": {"size": [16, 16], "resize": "crop", "crop_ratio": float("nan")}, "list": [16, 16],
        "five_channels": {"size": [16, 16], "mean": [0.5] * 5, "std": [0.5] * 5},
        "infinite": {"size": [16, 16], "mean": [0, 0, 0], "std": [1e400, 1, 1]},
    }.items():  # fmt: skip
        copy(f"preprocessing_{name}", preprocessing=preprocessing)
    for name, content in {
        "weights_empty": b"",
        "weights_random": bytes(range(256)),
        "weights_pickle": b"\x80\x02}q\x00.",
    }.items():
        (copy(name) / "model.safetensors").write_bytes(content)
    (copy("weights_missing") / "model.safetensors").unlink()
    cut = copy("weights_cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    for name, change in {
        "weights_whole_numbers": lambda state: {key: value.to(torch.int32) for key, value in state.items()},
        "weights_nan": lambda state: {key: value * float("nan") for key, value in state.items()},
        "weights_other_shape": lambda state: {key: value[:1].clone() for key, value in state.items() if value.ndim},
        "weights_few": lambda state: dict(list(state.items())[:2]),
        "weights_more": lambda state: {**state, "more": torch.zeros(1)},
    }.items():
        target = copy(name) / "model.safetensors"
        save_file(change(load_file(target)), target)
        shutil.copytree(root / name, root / f"{name}_checked")
        (root / f"{name}_checked" / "config.json").write_text(json.dumps({**config, **checksum}))
    for name, bit in {"low": 1, "high": 64, "sign": 128}.items():
        flipped = copy(f"flipped_{name}", **checksum) / "model.safetensors"
        content = bytearray(flipped.read_bytes())
        content[-4 * 100 + 3 if name != "low" else -4 * 100] ^= bit  # of one of the last floats
        flipped.write_bytes(content)
    copy("checksum_right", **checksum)
    copy("checksum_null", weights_sha256=None)
    for name, value in {
        "other": "0" * 64, "number": 7, "empty": "", "list": [], "control": "\x1b[2J", "long": "f" * 10_000,
    }.items():  # fmt: skip
        copy(f"checksum_{name}", weights_sha256=value)


# Recipes

DIGITS = "data: {name: digits}\n"
SMALL = """\
data: {name: digits}
model: {name: patchconvnet_micro, options: {embed_dim: 16, depth: 1}}
preprocessing: {size: [16, 16]}
monitor: {every: 0}
epochs: 1
"""


def _exported(root: Path) -> None:
    root.mkdir()
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", 3, 8, 8]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    whole = model.SerializeToString()
    (root / "foreign.onnx").write_bytes(whole)
    (root / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (root / "empty.onnx").write_bytes(b"")
    (root / "text.onnx").write_text("no model\n")
    (root / "image.onnx").write_bytes(encoded(noise(8, 8), "PNG"))
    (root / "folder.onnx").mkdir()
    table = {"format": 1, "class_names": ["a"], "preprocessing": {"size": [8, 8]}}
    described = {
        "not_json": "{", "number": "1", "nested": "[" * 100_000, "newer": '{"format": 99, "version": "9.0"}',
        "incomplete": json.dumps(table), "wrong_type": json.dumps({**table, "preprocessing": 7}),
    }  # fmt: skip
    for name, text in described.items():
        del model.metadata_props[:]
        model.metadata_props.add(key="patchconvnet", value=text)
        (root / f"{name}.onnx").write_bytes(model.SerializeToString())


def _recipes(root: Path) -> None:
    root.mkdir()
    texts: dict[str, str | bytes] = {
        "small": SMALL, "empty": "", "list": "- 1\n- 2\n", "number": "5", "text": "digits", "unknown": "colour: red\n",
        "unknown_inside": "data: {nme: digits}\n", "epochs_text": "epochs: many\n", "epochs_zero": "epochs: 0\n",
        "epochs_half": "epochs: 1.5\n", "epochs_null": "epochs: null\n", "size_text": "preprocessing: {size: big}\n",
        "size_one": "preprocessing: {size: [16]}\n", "size_huge": DIGITS + "preprocessing: {size: [100000, 100000]}\n",
        "rate_nan": "optimization: {learning_rate: .nan}\n", "rate_negative": "optimization: {learning_rate: -1}\n",
        "seed_long": DIGITS + "seed: 12345678901234567890\n", "seed_negative": "seed: -1\n", "group_text": "data: digits\n",
        "group_list": "data: [digits]\n", "tag": "data: !!python/object/apply:os.system ['echo ran']\n", "tabs": "a:\n\t- b\n",
        "open_quote": "data: {name: 'digits\n", "laughs": "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
        "jpeg": encoded(noise(16, 16), "JPEG"), "utf16": SMALL.encode("utf-16"), "latin": b"data: {name: caf\xe9}\n",
        "nul": b"data: \0\n", "control": "data: {name: \"\\e[2J\"}\n", "workers": "data: {workers: -1}\n",
        "memory": "data: {memory_gb: -.inf}\n", "batch_huge": SMALL + "batch_size: 100000000000000000000\n",
        "precision": "precision: 8-bit\n", "options_text": "model: {options: depth}\n", "betas": "optimization: {betas: 1}\n",
        "depth_huge": SMALL.replace("depth: 1", "depth: 10000000"), "option_unknown": SMALL.replace("depth", "dpth"),
        "augmentation": SMALL + "augmentation: {mixup: -3}\n", "crop": DIGITS + "preprocessing: {size: [16, 16], resize: crop, crop_ratio: 1.0e-9}\n",
        "data_seed": "data: {name: digits, seed: 12345678901234567890}\n", "validation": "data: {name: digits, validation: -1}\n",
    }  # fmt: skip
    for name, text in texts.items():
        (root / f"{name}.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    (root / "folder.yaml").mkdir()
