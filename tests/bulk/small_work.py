"""A small model and folders of small images, for the tests of bulk prediction."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import timm
import torch
from PIL import Image

from patchconvnet.bulk.parts import part_files
from patchconvnet.models import Metadata

CLASSES = ["a", "b", "c", "d", "e", "f", "g"]


def make_model(folder: Path, pooling: str = "additive") -> Path:
    torch.manual_seed(0)
    model = timm.create_model("patchconvnet_micro", num_classes=len(CLASSES), embed_dim=16, depth=1, pooling=pooling)
    torch.nn.init.normal_(model.head.weight)
    model.metadata = Metadata(class_names=CLASSES, preprocessing={"size": [16, 16]}, temperature=1.5)
    return model.save_pretrained(folder)


def make_images(folder: Path, count: int, classes: Sequence[str] = CLASSES) -> Path:
    random = np.random.default_rng(0)
    for i in range(count):
        path = folder / classes[i % len(classes)] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (20, 18, 3), np.uint8)).save(path)
    return folder


def rows_of(folder: Path) -> pyarrow.Table:
    """All rows of all parts."""
    return pyarrow.concat_tables([pyarrow.parquet.read_table(path) for path in part_files(folder)])


def ids_of(folder: Path) -> list[str]:
    """The ids of images as they must be in the rows, in order."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
