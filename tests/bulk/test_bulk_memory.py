"""Memory does not grow with the number of images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_work import make_images, make_model, rows_of

SIDE = 64  # of the network input: 49 kB an image, so that keeping the inputs of 4,000 more would take 200 MB


def peak_megabytes(model: Path, images: Path, out: Path) -> float:
    words = [sys.executable, "-m", "patchconvnet", "predict", "--model", model, "--data", images, "--out", out]
    options = ["--size", SIDE, "--part-size", 500, "--maps", "evidence", "--threads", 1]
    process = subprocess.Popen([*map(str, words), *map(str, options)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0
    return usage.ru_maxrss / 1024


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_five_times_the_images_take_as_much_memory(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    peaks = {}
    for count in (1000, 5000):
        images = make_images(tmp_path / f"{count}", count)
        peaks[count] = peak_megabytes(model, images, tmp_path / f"out{count}")
        assert len(rows_of(tmp_path / f"out{count}")) == count
    assert peaks[5000] < 1.2 * peaks[1000], peaks
