"""Fixtures for all tests: the real data, where it is present, and a cache of converted data."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def cifar10_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root that `torchvision.datasets.CIFAR10` reads: $PATCHCONVNET_TEST_DATA, or restored from ../shared/data.

    Without either the test is skipped.
    """
    given = os.environ.get("PATCHCONVNET_TEST_DATA")
    if given:
        return Path(given)
    restore = SHARED_DATA / "restore_cifar10.py"
    if not restore.is_file():
        pytest.skip(f"no real CIFAR-10: neither $PATCHCONVNET_TEST_DATA nor {restore} is there")
    root = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(restore), str(root)], check=True)
    return root


@pytest.fixture(scope="session")
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """`datasets` keeps what it converted; not in the user's home."""
    datasets = pytest.importorskip("datasets", reason="the data extra is not installed")
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("hf")
