"""Files are the same whoever writes them, and what goes wrong in another process is told here."""

import errno
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made import made

from patchconvnet.errors import UserError
from patchconvnet.explanation.drawing import check_processes, drawers


def test_another_process_writes_the_same_files(tmp_path: Path) -> None:
    explanation = made()
    with drawers(2) as two, drawers(0) as none:
        begun = [two.save(explanation, tmp_path / "two", f"image_{k}") for k in range(3)]
        assert none.save(explanation, tmp_path / "none", "image_0").done
        assert [drawing.result().json for drawing in begun] == [tmp_path / "two" / f"image_{k}.json" for k in range(3)]
    for file in (tmp_path / "none").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes()
    assert len(list((tmp_path / "two").iterdir())) == 12


@pytest.mark.parametrize("processes", [0, 1])
def test_an_error_comes_back_with_its_cause(tmp_path: Path, processes: int) -> None:
    (tmp_path / "file").write_text("in the way")
    with drawers(processes) as drawing:
        begun = drawing.save(made(), tmp_path / "file", only=("json",))
        with pytest.raises(UserError, match="cannot write the explanation of") as caught:
            begun.result()
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.errno == errno.EEXIST
        assert drawing.save(made(), tmp_path / "folder", only=("json",)).result().json  # the next is written


def test_what_is_left_undone_ends_at_once(tmp_path: Path) -> None:
    began = time.perf_counter()
    try:
        with drawers(1) as drawing:
            assert drawing.save(made(), tmp_path, "first").result().figure
            for k in range(200):
                drawing.save(made(), tmp_path, f"later_{k}")
            interrupted = time.perf_counter()
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert time.perf_counter() - interrupted < interrupted - began + 5
    assert len(list(tmp_path.glob("later_*_figure.png"))) < 100
    assert not list(tmp_path.glob("*.png.part"))


def test_a_process_that_is_killed_is_told_of(tmp_path: Path) -> None:
    with drawers(1) as drawing:
        drawing.save(made(), tmp_path, "first").result()
        for process in multiprocessing.active_children():
            process.kill()
        begun = [drawing.save(made(), tmp_path, f"later_{k}") for k in range(100)]
        with pytest.raises(UserError, match="was ended from outside"):
            begun[-1].result()


def test_drawing_loads_no_torch() -> None:
    code = "import sys, patchconvnet.explanation.figures as f; print('torch' in sys.modules, 'timm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.split() == ["False", "False"]


def test_a_number_of_processes_is_checked() -> None:
    check_processes("auto")
    check_processes(0)
    with pytest.raises(UserError, match="workers is -1; give a number from 0"):
        check_processes(-1)
