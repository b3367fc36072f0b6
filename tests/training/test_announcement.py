"""What is said of the data before a training."""

import warnings

import pytest
import torch

from patchconvnet.data.labelled_images import Images
from patchconvnet.data.splits import DataSplits
from patchconvnet.training.announcement import describe_data


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
