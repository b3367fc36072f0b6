"""Wheel and sdist install and run outside of the checkout."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image
from skimage import data

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both distributions; the wheel is built from the sdist, so the sdist is whole."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    return folder


@pytest.mark.slow
def test_the_wheel_runs_outside_of_the_checkout(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site), str(wheel)],
        check=True, timeout=300,
    )  # fmt: skip
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.jpg")
    environment = {**os.environ, "PYTHONPATH": str(site)}
    where = subprocess.run(
        [sys.executable, "-c", "import patchconvnet; print(patchconvnet.__file__)"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(site))
    for arguments in (["--version"], ["explain", "cat.jpg"], ["train", "--recipe", "digits", "--print_config"]):
        subprocess.run(
            [sys.executable, "-m", "patchconvnet", *arguments], cwd=tmp_path, env=environment, check=True, timeout=300
        )
    assert (tmp_path / "explanations" / "cat_figure.png").is_file()


@pytest.mark.slow
def test_distributions_hold_what_they_need_and_no_images_of_others(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "py.typed",
        "recipes/digits.yaml",
        "pretrained/cifar10/model.safetensors",
        "pretrained/cifar10/config.json",
    ):
        assert f"patchconvnet/{needed}" in names
    package = ROOT / "src"
    page = {one.relative_to(package).as_posix() for one in (package / "patchconvnet/deploy/web").rglob("*.*")}
    assert "patchconvnet/deploy/web/app.js" in page
    assert page <= set(names)
    assert not [name for name in names if name.startswith("tests/")]
    with tarfile.open(sdist) as archive:
        members = archive.getnames()
    for needed in ("README.md", "LICENSE", "CHANGELOG.md", "tests/test_packaging.py", "examples/demo.py"):
        assert any(member.endswith(f"/{needed}") for member in members), needed
