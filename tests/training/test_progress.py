"""What is said of accuracy while it trains, where there are few classes."""

import pytest

from patchconvnet.training.progress import TrainingProgress


@pytest.mark.parametrize("classes", [5, 6])
def test_top_5_needs_six_classes(classes: int, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"epoch": 1, "train_loss": 1.0, "train_top1": 0.5, "val_loss": 1.0, "val_top1": 0.5, "val_top5": 1.0}
    with TrainingProgress(1, 1, 0, True, classes) as progress:
        progress.epoch({**row, "images_per_second": 1.0}, True)
    assert ("top-5" in capsys.readouterr().out) is (classes == 6)
