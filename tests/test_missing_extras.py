"""Where a package of an extra is missing there is a sentence with the extra's name, and exit code 2."""

import subprocess
import sys
from pathlib import Path

import pytest

# one process for all, as importing PyTorch takes longer than all the rest
SCRIPT = """
import sys
from patchconvnet.cli import main

for package, *words in [
    ("pyarrow", "shard", "--data", "parquet:images.parquet", "--out", "out"),
    ("datasets", "shard", "--data", "hf:images", "--out", "out"),
    ("braceexpand", "shard", "--data", "wds:{0..2}.tar", "--out", "out"),
    ("litdata", "shard", "--data", "litdata:images", "--out", "out"),
    ("litdata", "shard", "--data", "folder:images", "--format", "litdata", "--out", "out"),
    ("pyarrow", "predict", "--model", "cifar10", "--data", "images", "--out", "out"),
    ("ray", "predict", "--model", "cifar10", "--data", "images", "--out", "out", "--engine", "ray"),
]:
    sys.modules[package] = None  # an import of it raises ImportError
    print(main(words), file=sys.stderr)
    del sys.modules[package]
"""
SAID = [
    "parquet: needs the package pyarrow: pip install 'patchconvnet[data]'",
    "hf: needs the package datasets: pip install 'patchconvnet[data]'",
    "wds: needs the package braceexpand: pip install 'patchconvnet[data]'",
    "litdata: needs the package litdata: pip install 'patchconvnet[litdata]'",
    "--format litdata: needs the package litdata: pip install 'patchconvnet[litdata]'",
    "predictions are written with pyarrow: pip install 'patchconvnet[bulk]'",
    "--engine ray needs Ray Data: pip install 'patchconvnet[ray]'",
]


@pytest.mark.slow
def test_a_missing_package_is_named_with_its_extra(tmp_path: Path) -> None:
    (tmp_path / "images.parquet").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").touch()
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True
    )
    assert "Traceback" not in answer.stderr
    assert answer.stderr.splitlines() == [line for said in SAID for line in (f"patchconvnet: {said}", "2")]
