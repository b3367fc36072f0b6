"""One set of images for every source."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forms import CLASSES
from PIL import Image
from serving import Served

from patchconvnet.data.sources import fetching


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(datasets_cache: None) -> None:
    """Every test here may convert something."""


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a class; photographs of several kinds, modes and shapes."""
    root = tmp_path_factory.mktemp("pets") / "pets"
    generator = np.random.default_rng(0)
    for name, count in CLASSES.items():
        for i in range(count):
            path = root / name / f"{name[0]}{i:02}.{('jpg', 'png', 'bmp')[i % 3]}"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.integers(0, 256, (20 + i, 30 - i, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert("L" if i % 4 == 3 else "RGB").save(path)
    return root


@pytest.fixture(scope="session")
def shuffled(folder: Path) -> list[tuple[Path, str]]:
    """The files and their classes, in no order that a folder would have."""
    files = [(path, path.relative_to(folder).parts[0]) for path in folder.rglob("*.*")]
    random.Random(3).shuffle(files)
    return files


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A server of the test's folder; it is asked again without much waiting."""
    monkeypatch.setattr(fetching, "FIRST_WAIT", 0.01)
    server = Served(tmp_path)
    yield server
    server.stop()
