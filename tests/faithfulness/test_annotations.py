"""Boxes and masks: read from files or given, checked against their images, laid onto the network input."""

import numpy as np
import pytest
import torch
from PIL import Image

from patchconvnet import UserError
from patchconvnet.data.labelled_images import ImageFiles, Images
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.faithfulness.annotations import read_annotations

HEIGHT, WIDTH = 40, 60


@pytest.fixture
def files(tmp_path) -> ImageFiles:
    paths = []
    for place in ("cat/a.jpg", "cat/b.jpg", "dog/a.jpg"):
        path = tmp_path / "images" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), "gray").save(path)
        paths.append(path)
    return ImageFiles(paths, torch.tensor([0, 0, 1]), ["cat", "dog"])


@pytest.fixture
def images() -> Images:
    return Images(torch.zeros(2, 3, HEIGHT, WIDTH, dtype=torch.uint8), torch.tensor([0, 1]), ["cat", "dog"])


def mask_of(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[y0:y1, x0:x1] = 255
    return mask


BOX = (12, 10, 30, 20)


@pytest.mark.parametrize(
    ("preprocessing", "expected"),
    [
        (Preprocessing((20, 30)), (6, 5, 15, 10)),
        (Preprocessing((20, 20), resize="crop"), (1, 5, 10, 10)),
        (Preprocessing((60, 60), resize="letterbox"), (12, 20, 30, 30)),
        (Preprocessing((8, 8), resize="crop", crop_ratio=0.5), (0, 0, 4, 2)),
    ],
)
def test_boxes_and_masks_land_on_the_same_pixels(images, preprocessing, expected):
    geometry = preprocessing.geometry(HEIGHT, WIDTH)
    from_box = read_annotations(images, [0], [np.array([BOX])] * 2, None).on_input(0, geometry)
    from_mask = read_annotations(images, [0], None, [mask_of(*BOX)] * 2).on_input(0, geometry)
    if preprocessing.crop_ratio == 1:
        np.testing.assert_allclose(from_box.boxes, [expected])
        np.testing.assert_allclose(from_mask.boxes, [expected])
    x0, y0, x1, y1 = expected
    wanted = np.zeros(preprocessing.size, bool)
    if preprocessing.crop_ratio == 1:
        wanted[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(from_box.mask, wanted)
    np.testing.assert_array_equal(from_mask.mask, from_box.mask)


def test_what_the_network_does_not_see_is_cut_off(images):
    middle = Preprocessing((20, 20), resize="crop").geometry(HEIGHT, WIDTH)  # sees x from 10 to 50
    found = read_annotations(images, [0], [np.array([[0, 0, 8, 40]])] * 2, None).on_input(0, middle)
    assert found.boxes.shape == (0, 4)
    assert not found.mask.any()


def test_boxes_from_a_file(files, tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text("image,x0,y0,x1,y1\ncat/a.jpg,1,2,11,12\nb.jpg,0,0,60,40\ndog/a.jpg,3,4,5,6\ndog/a.jpg,7,8,9,10\n")
    objects = read_annotations(files, range(3), table, None)
    assert [boxes.tolist() for boxes in objects.boxes] == [
        [[1, 2, 11, 12]],
        [[0, 0, 60, 40]],
        [[3, 4, 5, 6], [7, 8, 9, 10]],
    ]


def test_tables_of_earlier_versions_are_read(files, tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text("picture,x0,y0,x1,y1\na.jpg,1,2,11,12\n")
    assert read_annotations(files, [0], table, None).boxes[0].tolist() == [[1, 2, 11, 12]]


def test_masks_from_a_folder(files, tmp_path):
    masks = tmp_path / "masks"
    (masks / "dog").mkdir(parents=True)
    Image.fromarray(mask_of(*BOX)).save(masks / "dog" / "a.png")
    Image.fromarray(mask_of(0, 0, 3, 3)).save(masks / "a.png")
    Image.fromarray(mask_of(0, 0, 4, 4) > 0).save(masks / "b_mask.png")  # one bit a pixel
    objects = read_annotations(files, range(3), None, masks)
    geometry = Preprocessing((HEIGHT, WIDTH)).geometry(HEIGHT, WIDTH)
    assert [objects.on_input(i, geometry).mask.sum() for i in range(3)] == [9, 16, 180]


def test_masks_beside_their_images(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (WIDTH, HEIGHT), "white").save(tmp_path / name)
    Image.fromarray(mask_of(*BOX)).save(tmp_path / "a_mask.png")
    files = ImageFiles([tmp_path / "a.png", tmp_path / "b.png"], torch.tensor([0, 1]), ["cat", "dog"])
    geometry = Preprocessing((HEIGHT, WIDTH)).geometry(HEIGHT, WIDTH)
    assert read_annotations(files, [0], None, tmp_path).on_input(0, geometry).mask.sum() == 180
    with pytest.raises(UserError, match=r"no mask for 1 of 2 images: .*b\.png"):
        read_annotations(files, [0, 1], None, tmp_path)


def test_nothing_given_is_no_objects(images):
    assert read_annotations(images, [0, 1], None, None) is None


def test_a_fingerprint_changes_with_the_boxes(images):
    first, second = ([np.array([[0, 0, side, 5]])] * 2 for side in (5, 6))
    prints = [read_annotations(images, [0], boxes, None).fingerprint() for boxes in (first, first, second)]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("box", "words"),
    [
        ((0, 0, 61, 40), "outside of the image, which is 60 pixels wide and 40 high"),
        ((-1, 0, 10, 10), "outside"),
        ((10, 10, 10, 20), "empty"),
        ((20, 10, 10, 20), "x0 < x1"),
    ],
)
def test_wrong_boxes_are_refused_in_words(images, box, words):
    objects = read_annotations(images, [1], [np.array([box])] * 2, None)
    with pytest.raises(UserError, match=words):
        objects.on_input(1, Preprocessing((8, 8)).geometry(HEIGHT, WIDTH))


def test_wrong_masks_are_refused_in_words(files, images, tmp_path):
    geometry = Preprocessing((8, 8)).geometry(HEIGHT, WIDTH)
    with pytest.raises(UserError, match="mask of 1 is 30 × 20 pixels, the image 60 × 40"):
        read_annotations(images, [1], None, [np.ones((20, 30), bool)] * 2).on_input(1, geometry)
    with pytest.raises(UserError, match="mask of 1 is empty"):
        read_annotations(images, [1], None, [mask_of(0, 0, 0, 0)] * 2).on_input(1, geometry)
    for place in ("cat/a.png", "cat/b.png", "dog/a.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(b"no image")
    with pytest.raises(UserError, match=r"b\.png is not a readable"):
        read_annotations(files, range(3), None, tmp_path).on_input(1, geometry)


def test_wrong_files_are_refused_in_words(files, images, tmp_path):
    table = tmp_path / "boxes.csv"
    with pytest.raises(UserError, match="cannot be read"):
        read_annotations(files, range(3), table, None)
    table.write_text("name,x0,y0,x1,y1\n")
    with pytest.raises(UserError, match="no column 'image'"):
        read_annotations(files, range(3), table, None)
    table.write_text("image,x0,y0,x1,y1\na.jpg,1,2,three,4\n")
    with pytest.raises(UserError, match="not four numbers"):
        read_annotations(files, range(3), table, None)
    table.write_text("image,x0,y0,x1,y1\na.jpg,1,2,3,4\n")
    with pytest.raises(UserError, match=r"no box for 1 of 3 images: cat/b\.jpg"):
        read_annotations(files, range(3), table, None)
    assert read_annotations(files, [0, 2], table, None)  # the third is not needed
    with pytest.raises(UserError, match="no folder of masks"):
        read_annotations(files, range(3), None, tmp_path / "nowhere")
    with pytest.raises(UserError, match="no mask for 3 of 3"):
        read_annotations(files, range(3), None, tmp_path)
    with pytest.raises(UserError, match="boxes for 1 images, but the data has 2"):
        read_annotations(images, [0], [np.zeros((1, 4))], None)
