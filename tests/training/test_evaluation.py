"""Evaluation against direct computations, and its files."""

import csv
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    top_k_accuracy_score,
)
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCalibrationError

from patchconvnet.data.labelled_images import ImageFiles, Images
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError
from patchconvnet.training.evaluation import Evaluation, evaluate, images_of_a_batch
from patchconvnet.training.evaluation_files import save_evaluation

COUNT, CLASSES = 203, 7
PIXEL = Preprocessing(size=(1, 1))


class Lookup(nn.Module):
    """Gives image i, whose only pixel holds i, the i-th row of given logits."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits
        self.modes: list[bool] = []

    def forward(self, images: Tensor) -> Tensor:
        self.modes.append(self.training)
        numbers = (images[:, 0, 0, 0] * 255).round().long()
        return self.logits[numbers]


def numbered_images(labels: Tensor) -> Images:
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 3, 1, 1)
    return Images(images, labels, [f"class {k}" for k in range(CLASSES)])


@pytest.fixture(scope="module")
def logits() -> Tensor:
    return torch.randn(COUNT, CLASSES, generator=torch.Generator().manual_seed(0)) * 2


@pytest.fixture(scope="module")
def labels(logits: Tensor) -> Tensor:
    """Right for about half of the images; the last class has none."""
    random = torch.randint(0, CLASSES - 1, (COUNT,), generator=torch.Generator().manual_seed(1))
    predicted = logits.argmax(1)
    return torch.where((torch.arange(COUNT) % 2 == 0) & (predicted < CLASSES - 1), predicted, random)


@pytest.fixture(scope="module")
def result(logits: Tensor, labels: Tensor) -> Evaluation:
    return evaluate(Lookup(logits), numbered_images(labels), PIXEL, batch_size=32)


def test_figures_equal_scikit_learns(result: Evaluation, logits: Tensor, labels: Tensor) -> None:
    names = range(CLASSES)
    probabilities = logits.double().softmax(1).numpy()
    assert result.loss == pytest.approx(log_loss(labels, probabilities, labels=names), rel=1e-6)
    assert result.top1 == top_k_accuracy_score(labels, probabilities, k=1, labels=names)
    assert result.top5 == top_k_accuracy_score(labels, probabilities, k=5, labels=names)
    expected = confusion_matrix(labels, probabilities.argmax(1), labels=names)
    np.testing.assert_array_equal(result.confusion.numpy(), expected)
    assert result.count == COUNT
    assert result.to_dict() == {
        "images": COUNT,
        "loss": result.loss,
        "top1": result.top1,
        "top5": result.top5,
        "balanced_accuracy": result.balanced_accuracy,
        "macro_f1": result.macro_f1,
        "calibration_error": result.calibration_error,
    }


def test_calibration_error_equals_its_formula(result: Evaluation, logits: Tensor, labels: Tensor) -> None:
    probabilities = logits.softmax(1).numpy()
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels.numpy()
    expected = 0.0
    for i in range(15):  # Guo et al. 2017, equation 3
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert result.calibration_error == pytest.approx(expected, rel=1e-5)
    assert result.calibration_error > 0.05
    second = MulticlassCalibrationError(CLASSES, n_bins=15)(logits.softmax(1), labels)
    assert result.calibration_error == pytest.approx(second.item(), rel=1e-5)


def test_per_class_equals_scikit_learns(result: Evaluation, logits: Tensor, labels: Tensor) -> None:
    predicted = logits.argmax(1)
    options = {"labels": range(CLASSES), "average": None, "zero_division": np.nan}
    recall = recall_score(labels, predicted, **options)
    precision = precision_score(labels, predicted, **options)
    f1 = f1_score(labels, predicted, **options)
    for k, row in enumerate(result.per_class()):
        assert row["class"] == f"class {k}"
        assert row["images"] == int((labels == k).sum())
        assert row["f1"] == pytest.approx(f1[k])
        assert row["precision"] == pytest.approx(precision[k])
        assert row["recall"] == (pytest.approx(recall[k]) if row["images"] else None)
    assert result.per_class()[-1]["recall"] is None
    assert result.macro_f1 == pytest.approx(f1_score(labels, predicted, average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # scikit-learn's, of the class without images
        assert result.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))


@pytest.mark.parametrize("batch_size", [1, 64, COUNT, 1000])
def test_the_batch_size_does_not_matter(batch_size: int, result: Evaluation, logits: Tensor, labels: Tensor) -> None:
    counted: list[int] = []
    other = evaluate(Lookup(logits), numbered_images(labels), PIXEL, batch_size=batch_size, on_batch=counted.append)
    assert other.to_dict() == pytest.approx(result.to_dict(), rel=1e-5)
    assert torch.equal(other.confusion, result.confusion)
    assert sum(counted) == COUNT


def test_large_images_are_classified_a_few_at_a_time_on_a_cpu(labels: Tensor) -> None:
    assert images_of_a_batch((32, 32), "cpu") == images_of_a_batch((64, 64), "cpu") == 256
    assert images_of_a_batch((224, 224), "cpu") == 20
    assert images_of_a_batch((5000, 5000), "cpu") == 1
    assert images_of_a_batch((224, 224), "cuda") == 256
    counted: list[int] = []
    flat = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, CLASSES))
    evaluate(flat, numbered_images(labels), Preprocessing(size=(256, 512)), on_batch=counted.append)
    assert max(counted) == 8
    assert sum(counted) == COUNT


def test_mirror_takes_the_mean_logits_of_a_image_and_its_mirror_image() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 6, CLASSES))
    images = torch.randint(256, (50, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(50) % CLASSES
    split = Images(images, labels, [f"class {k}" for k in range(CLASSES)])
    inputs = Preprocessing(size=(4, 6)).batch(images)
    with torch.no_grad():
        expected = (linear(inputs) + linear(inputs.flip(3))) / 2
    mirrored = evaluate(linear, split, Preprocessing(size=(4, 6)), mirror=True)
    assert mirrored.loss == pytest.approx(nn.functional.cross_entropy(expected, labels).item(), rel=1e-5)
    assert mirrored.top1 == (expected.argmax(1) == labels).double().mean()
    assert mirrored.loss != pytest.approx(evaluate(linear, split, Preprocessing(size=(4, 6))).loss, rel=1e-5)


def test_images_from_files_are_measured_as_those_in_memory(tmp_path: Path, logits: Tensor, labels: Tensor) -> None:
    images = numbered_images(labels).subset(range(20))
    paths = [tmp_path / f"{i}.png" for i in range(20)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((1, 1, 3), i, np.uint8)).save(path)
    files = ImageFiles(paths, images.labels, images.class_names)
    in_memory, from_files = (evaluate(Lookup(logits), split, PIXEL) for split in (images, files))
    assert from_files.to_dict() == in_memory.to_dict()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_evaluated_in_its_mode_and_left_in_the_one_it_had(
    training: bool, logits: Tensor, labels: Tensor
) -> None:
    model = Lookup(logits).train(training)
    evaluate(model, numbered_images(labels), PIXEL, batch_size=100)
    assert model.modes == [False] * 3
    assert model.training is training


def test_fewer_than_five_classes_have_a_top_5_too() -> None:
    images = Images(torch.zeros(4, 3, 1, 1, dtype=torch.uint8), torch.tensor([0, 1, 0, 1]), ["a", "b"])
    result = evaluate(Lookup(torch.tensor([[2.0, 1.0]])), images, PIXEL)
    assert (result.top1, result.top5) == (0.5, 1.0)


def test_what_does_not_belong_together_is_refused(logits: Tensor, labels: Tensor) -> None:
    with pytest.raises(UserError, match="the model has 6 classes, the data 7"):
        evaluate(Lookup(logits[:, :6]), numbered_images(labels), PIXEL)
    with pytest.raises(UserError, match="no images to evaluate on"):
        evaluate(Lookup(logits), numbered_images(labels[:0]), PIXEL)


def test_files_hold_the_figures(result: Evaluation, tmp_path: Path) -> None:
    paths = save_evaluation(result, tmp_path / "out", {"model": "m", "data": "d"})
    assert [path.name for path in paths] == ["evaluation.json", "per_class.csv", "confusion.csv", "confusion.png"]
    written = json.loads(paths[0].read_text())
    assert written["model"] == "m"
    assert written["top1"] == result.top1
    assert [row["class"] for row in written["classes"]] == result.class_names
    table = list(csv.DictReader(paths[1].open()))
    assert [int(row["images"]) for row in table] == result.confusion.sum(1).tolist()
    assert table[-1]["recall"] == ""
    confusion = list(csv.reader(paths[2].open()))
    assert confusion[0][1:] == [row[0] for row in confusion[1:]] == result.class_names
    assert [[int(cell) for cell in row[1:]] for row in confusion[1:]] == result.confusion.tolist()
    with Image.open(paths[3]) as image:
        assert min(image.size) > 200


@pytest.mark.parametrize("write", [lambda path: path.write_text(""), lambda path: path.mkdir()])
def test_files_that_cannot_be_written_are_an_error_in_words(
    write: Callable[[Path], None], result: Evaluation, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out" / "file")
    target = tmp_path / "out" / "file"
    if target.is_dir():
        (target / "confusion.png").mkdir()  # an image can't replace a folder
    with pytest.raises(UserError, match="cannot write"):
        save_evaluation(result, target, {})
