"""Maps over the epochs: what is pasted where, the words on it, and the animation."""

import numpy as np
import pytest
from made import bump, collisions
from matplotlib.figure import Figure
from PIL import Image
from skimage import data

from patchconvnet.errors import UserError
from patchconvnet.explanation import evolution
from patchconvnet.explanation.colours import ATTENTION, evidence_print
from patchconvnet.explanation.patch_grid import Grid


def images_and_maps() -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(Image.fromarray(data.chelsea()).resize((36, 24)))
    images = np.stack([pixels, pixels[:, ::-1], pixels[::-1]])
    maps = np.stack([bump(2, 2, 1, (6, 9)), bump(2, 6, 1, (6, 9)), bump(4, 2, 1, (6, 9))])
    return images, maps / maps.sum((1, 2), keepdims=True)


def evolving() -> tuple[np.ndarray, np.ndarray, list[int]]:
    images, maps = images_and_maps()
    uniform = np.full_like(maps, 1 / 54)
    return images, np.stack([uniform + t * (maps - uniform) for t in np.linspace(0, 1, 12)]), list(range(1, 13))


def panels(
    image: Image.Image, left: float, top: float, size: tuple[float, float], pitch: float, count: int
) -> list[np.ndarray]:
    """`count` panels of `size` inches beside each other in a drawing."""
    found = []
    for i in range(count):
        corners = left + i * pitch, top, left + i * pitch + size[0], top + size[1]
        found.append(np.asarray(image.crop([round(evolution.DPI * side) for side in corners]), float))
    return found


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_each_image_stands_beside_its_map():
    images, maps = images_and_maps()
    drawn = evolution.attention_grid(images, maps, columns=3)
    width, height = 1.2, 0.8
    pitch = 2 * width + evolution.CLOSE + evolution.GAP
    for i, panel in enumerate(panels(drawn, evolution.MARGIN, evolution.MARGIN, (width, height), pitch, 3)):
        small = Image.fromarray(images[i]).resize(panel.shape[1::-1], Image.Resampling.NEAREST)
        assert np.abs(panel - np.asarray(small, float)).mean() < 3
    left = evolution.MARGIN + width + evolution.CLOSE
    for i, panel in enumerate(panels(drawn, left, evolution.MARGIN, (width, height), pitch, 3)):
        small = np.asarray(Image.fromarray(images[i]).resize(panel.shape[1::-1], Image.Resampling.NEAREST), float)
        added = (panel - 0.4 * small) / 0.6  # what lies over the image
        row, column = np.unravel_index(maps[i].argmax(), maps[i].shape)
        y, x = int((row + 0.5) / 6 * panel.shape[0]), int((column + 0.5) / 9 * panel.shape[1])
        np.testing.assert_allclose(added[y, x], ATTENTION[-1] * 255, atol=40)
        np.testing.assert_allclose(added[-y, -x], ATTENTION[0] * 255, atol=40)


def test_evidence_is_drawn_as_a_print():
    images, maps = images_and_maps()
    signed = maps - maps.mean((1, 2), keepdims=True)
    drawn = evolution.attention_grid(images[:1], signed[:1], kind="evidence")
    left = evolution.MARGIN + 1.2 + evolution.CLOSE
    panel = panels(drawn, left, evolution.MARGIN, (1.2, 0.8), 0, 1)[0]
    grid = Grid((6, 9), (4.0, 4.0), (2.0, 2.0))
    expected = evolution._blend(evolution._enlarged(images[0]), signed[0], (24, 36), grid, "evidence", None)
    expected = np.asarray(Image.fromarray(expected).resize(panel.shape[1::-1], Image.Resampling.BOX), float)
    assert np.abs(panel - expected).mean() < 3
    assert panel[28, 35, 0] > panel[28, 35, 2] + 60  # red where it speaks for the class
    assert evidence_print(images[0], np.zeros((24, 36)), 1.0).std(-1).max() < 4


@pytest.mark.filterwarnings("ignore:no installed font")
def test_words_fit_whatever_the_names_and_shapes():
    long = ["a name of a class that goes on and on, and says (is another one that goes on)", "猫", "b\nc"]
    for shape in ((24, 36), (10, 90), (90, 10)):
        images = np.zeros((3, *shape, 3), np.uint8)
        maps = np.full((3, 2, 2), 0.25)
        for columns in (1, 3):
            canvas = evolution._grid(images, maps, long, "epoch 3: " + long[0], columns, None, "attention", None, 100)
            assert collisions(canvas.figure) == []
        canvas = evolution._evolution(images, np.stack([maps] * 9), range(1000, 1009), 8, None, "attention", 100)
        assert collisions(canvas.figure) == []


def test_evolution_shows_the_first_and_the_last_epoch():
    images, maps, epochs = evolving()
    canvas = evolution._evolution(images, maps, epochs, 3, None, "attention", 100)
    assert words(canvas.figure)[1::2] == ["epoch 1", "epoch 12"]
    one = evolution._evolution(images, maps[:1], epochs[:1], 8, None, "attention", 100)
    assert words(one.figure) == ["image", "epoch 1"]


def test_evolution_is_on_one_scale():
    images, maps, epochs = evolving()
    drawn = evolution.attention_evolution(images * 0, maps, epochs, columns=3)
    size = (1.15, 1.15 * 24 / 36)
    left, top = evolution.MARGIN + 1.15 + 2 * evolution.CLOSE, evolution.MARGIN + 0.2
    first, middle, last = (p.max(axis=(0, 1)).sum() for p in panels(drawn, left, top, size, 1.15 + evolution.CLOSE, 3))
    assert first < 0.4 * last  # uniform at first
    assert first < middle < last


def test_grid_takes_images_in_both_layouts():
    images, maps = images_and_maps()
    drawn = [evolution.attention_grid(p, maps) for p in (images, images.transpose(0, 3, 1, 2))]
    assert drawn[0].tobytes() == drawn[1].tobytes()


def test_a_grid_has_no_axes_for_each_image():
    images, maps = images_and_maps()
    assert evolution._grid(images, maps, None, "", 4, None, "attention", None, 100).figure.axes == []


def test_gif_plays_every_epoch(tmp_path):
    frames = evolution.evolution_frames(*evolving())
    assert len(frames) == 12
    path = evolution.write_gif(frames, tmp_path / "attention.gif", seconds=0.2, hold=1.5)
    with Image.open(path) as gif:
        assert gif.n_frames == 12
        assert gif.size == frames[0].size
        durations = []
        for index in range(gif.n_frames):
            gif.seek(index)
            durations.append(gif.info["duration"])
            seen = np.asarray(gif.convert("RGB"), float)
            assert np.abs(seen - np.asarray(frames[index], float)).mean() < 6  # 256 colours for all of them
        assert durations == [200] * 11 + [1500]
        assert gif.info["loop"] == 0


@pytest.mark.parametrize("frames", [[], [Image.new("RGB", (4, 4)), Image.new("RGB", (4, 5))]])
def test_gif_refuses_frames_that_do_not_fit(frames, tmp_path):
    with pytest.raises(UserError, match="frames of one size"):
        evolution.write_gif(frames, tmp_path / "a.gif")


def test_shapes_that_do_not_fit_are_refused():
    images, maps, epochs = evolving()
    with pytest.raises(UserError, match="needed are uint8"):
        evolution.attention_grid(images / 255, maps[0])
    with pytest.raises(UserError, match="maps of shape"):
        evolution.attention_grid(images, maps[0, :2])
    with pytest.raises(UserError, match="for 3 epochs"):
        evolution.attention_evolution(images, maps, epochs[:3])
    broken = maps.copy()
    broken[4, 1, 2, 3] = np.nan
    with pytest.raises(UserError, match="not finite"):
        evolution.attention_evolution(images, broken, epochs)
    with pytest.raises(UserError, match="not finite"):
        evolution.attention_grid(images, broken[4])
