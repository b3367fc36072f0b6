"""Workers that stand still as they start are ended, and started again."""

import os
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from patchconvnet.data import labelled_images
from patchconvnet.data.labelled_images import in_batches


class Numbers(Dataset[tuple[Tensor, int, int]]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        return torch.full((1,), float(index)), index, os.getpid()


def alive(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="there is no /proc")
@pytest.mark.parametrize("times", [1, 2])
def test_they_are_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    begin = labelled_images._Started.__call__

    def stands_still(self: labelled_images._Started, worker: int) -> None:
        if worker == 1 and len(list(tmp_path.iterdir())) < times:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(1000)
        begin(self, worker)

    monkeypatch.setattr(labelled_images, "FORK_MAY_STAND_STILL", True)
    monkeypatch.setattr(labelled_images, "SECONDS_TO_START", 0.5)
    monkeypatch.setattr(labelled_images._Started, "__call__", stands_still)
    with pytest.warns(UserWarning, match="stood still as they started") as warned:
        batches = list(in_batches(Numbers(), 2, batch_size=3, shuffle=False))
    assert len(warned) == times
    assert torch.cat([labels for _, labels, _ in batches]).tolist() == list(range(20))
    stuck = [int(file.name) for file in tmp_path.iterdir()]
    assert len(stuck) == times
    assert not any(map(alive, stuck))
    assert not {int(process) for _, _, each in batches for process in each} & set(stuck)


def test_no_time_is_lost_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_images, "FORK_MAY_STAND_STILL", True)
    found = [labels for _, labels, _ in in_batches(Numbers(), 2, batch_size=3, shuffle=False)]
    assert torch.cat(found).tolist() == list(range(20))
