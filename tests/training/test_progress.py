"""What is said of the data before a training, and of accuracy where there are few classes."""

import warnings

import pytest
import torch

from patchconvnet.data.splits import DataSplits, Images
from patchconvnet.training.progress import TrainingProgress, describe_data


def data(*counts: int) -> DataSplits:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    names = ["ant", "bee", "cat"][: len(counts)]
    images = Images(torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), labels, names)
    return DataSplits("insects", names, images, None, images)


def test_splits_and_balance_are_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert describe_data(data(2, 7, 3)) == "12 training images, 12 test; 3 classes with 2 (ant) to 7 (bee) each"
        assert describe_data(data(4, 4)) == "8 training images, 8 test; 2 classes with 4 each"


def test_a_class_of_one_image_draws_a_warning() -> None:
    with pytest.warns(UserWarning, match="^bee: one training image or none is too few to learn a class from"):
        describe_data(data(5, 1))


@pytest.mark.parametrize("classes", [5, 6])
def test_top_5_needs_six_classes(classes: int, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"epoch": 1, "train_loss": 1.0, "train_top1": 0.5, "val_loss": 1.0, "val_top1": 0.5, "val_top5": 1.0}
    with TrainingProgress(1, 1, 0, True, classes) as progress:
        progress.epoch({**row, "images_per_second": 1.0}, True)
    assert ("top-5" in capsys.readouterr().out) is (classes == 6)
