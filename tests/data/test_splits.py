"""Images in memory and as files are interchangeable, and stratified splits keep the classes' proportions."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchconvnet.data.batches import batches
from patchconvnet.data.labelled_images import ImageFiles, Images
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import DataSplits, set_aside_count, stratified_split
from patchconvnet.errors import UserError


@pytest.fixture
def files(tmp_path: Path) -> ImageFiles:
    generator = np.random.default_rng(0)
    paths = []
    for number in range(7):
        paths.append(tmp_path / f"{number}.png")
        Image.fromarray(generator.integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)).save(paths[-1])
    return ImageFiles(paths, torch.tensor([0, 1, 2, 0, 1, 2, 0]), ["a", "b", "c"])


@pytest.mark.parametrize("workers", [0, 2])
def test_to_memory_keeps_images_labels_and_order(files: ImageFiles, workers: int) -> None:
    preprocessing = Preprocessing((24, 30), interpolation="bicubic")
    images = files.to_memory(preprocessing, batch_size=2, workers=workers)
    assert images.images.dtype == torch.uint8
    assert images.images.shape == (7, 3, 24, 30)
    assert torch.equal(images.labels, files.labels)
    for index in range(7):
        exact = preprocessing(files.image(index)) * 255
        assert (images.images[index] - exact).abs().max() <= 0.501
    image, label = files[4]  # 24 × 30 already: kept to the bit
    assert np.array_equal(np.asarray(images.image(4)), np.asarray(image))
    assert images[4][1] == label


@pytest.mark.parametrize("workers", [0, 1])
def test_a_image_that_is_gone_is_named_in_one_line_by_workers_too(files: ImageFiles, workers: int) -> None:
    files.paths[3].unlink()
    preprocessing = Preprocessing((24, 30))
    for read in (
        lambda: files.to_memory(preprocessing, workers=workers),
        lambda: list(batches(files, preprocessing, 2, workers=workers)),
    ):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == f"there is no image file {files.paths[3]}."


def test_to_memory_leaves_the_cut_to_the_preprocessing(files: ImageFiles) -> None:
    preprocessing = Preprocessing((16, 16), "crop", 0.8)
    from_memory = preprocessing.batch(files.to_memory(preprocessing.with_size(20)).images)
    from_files = torch.stack([preprocessing(files.image(index)) for index in range(7)])
    assert (from_memory - from_files).abs().mean() < 0.02


def test_fits_in_memory_counts_bytes(files: ImageFiles) -> None:
    needed = files.to_memory(Preprocessing((24, 30))).images.nbytes
    assert files.fits_in_memory((24, 30), needed)
    assert not files.fits_in_memory((24, 30), needed - 1)


def test_subsets(files: ImageFiles) -> None:
    memory = files.to_memory(Preprocessing((8, 8)))
    for indices in ([5, 0, 3], torch.tensor([5, 0, 3])):
        assert files.subset(indices).paths == [files.paths[5], files.paths[0], files.paths[3]]
        assert files.subset(indices).labels.tolist() == [2, 0, 0]
        assert torch.equal(memory.subset(indices).images, memory.images[[5, 0, 3]])
    assert files.subset(slice(2)).paths == files.paths[:2]
    assert len(memory.subset(slice(2, None))) == 5


def test_batches_give_each_image_once_and_touch_no_random_state(files: ImageFiles) -> None:
    preprocessing = Preprocessing((8, 8))
    state = torch.get_rng_state()
    for split in (files, files.to_memory(preprocessing)):
        parts = list(batches(split, preprocessing, 3))
        assert [len(images) for images, _, _ in parts] == [3, 3, 1]
        assert torch.cat([indices for _, _, indices in parts]).tolist() == list(range(7))
        assert torch.cat([labels for _, labels, _ in parts]).tolist() == files.labels.tolist()
        chosen = list(batches(split, preprocessing, 4, indices=[6, 2]))
        assert chosen[0][2].tolist() == [6, 2]
        assert chosen[0][1].tolist() == [0, 2]
        assert torch.equal(chosen[0][0][1], parts[0][0][2])
    assert torch.equal(torch.get_rng_state(), state)


def test_grey_images_in_memory_are_shown_as_rgb() -> None:
    images = torch.arange(64, dtype=torch.uint8).view(1, 1, 8, 8)
    image = Images(images, torch.tensor([0]), ["a", "b"]).image(0)
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image)[..., 1], images[0, 0].numpy())


def test_require_names_what_is_missing(files: ImageFiles) -> None:
    splits = DataSplits("mine", files.class_names, train=files)
    assert splits.require("train") is files
    with pytest.raises(UserError, match="'mine' has no test split; it has: train"):
        splits.require("test")
    with pytest.raises(UserError, match="unknown split 'tset'; known: train, validation, test"):
        splits.require("tset")  # type: ignore[arg-type]


def test_stratified_split_is_exact_seeded_and_proportional() -> None:
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate((500, 300, 150, 49, 1))])
    labels = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
    parts = stratified_split(labels, [101, 200], seed=3)
    assert [len(part) for part in parts] == [101, 200, 699]
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(1000))
    for part, share in zip(parts, (0.101, 0.2, 0.699), strict=True):
        counts = labels[part].bincount(minlength=5)
        assert (counts[:4] - share * torch.tensor([500, 300, 150, 49])).abs().max() <= 2
    assert labels[parts[-1]].bincount().tolist()[4] == 1  # the class of one stays to be trained on
    again = stratified_split(labels, [101, 200], seed=3)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))
    assert not torch.equal(stratified_split(labels, [101, 200], seed=4)[0], parts[0])
    assert len(stratified_split(labels, [0], seed=0)[0]) == 0


def test_too_much_set_aside_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="3 images cannot be set aside from 4 in 2 classes"):
        stratified_split(torch.tensor([0, 0, 1, 1]), [3], seed=0)


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.1, 10), (0.001, 1), (5, 5), (5.0, 5)])
def test_shares(share: float, count: int) -> None:
    assert set_aside_count(share, 100, "validation") == count


@pytest.mark.parametrize("share", [-1, 1.5, 100, 1000, -0.1])
def test_bad_shares_are_refused_in_words(share: float) -> None:
    with pytest.raises(UserError, match=f"validation is {share}"):
        set_aside_count(share, 100, "validation")
