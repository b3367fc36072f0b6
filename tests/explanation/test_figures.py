"""Figures against stored small images, and the facts they print.

Look at a changed figure, then store it with `PATCHCONVNET_STORE_SNAPSHOTS=1 pytest tests/explain/test_figures.py`.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from skimage import data

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError
from patchconvnet.explanation import Explanation, colours, evolution, figures
from patchconvnet.explanation.patch_grid import Grid

SNAPSHOTS = Path(__file__).parent / "snapshots"
TOLERANCE = 2.0  # mean difference, of 255: other versions of matplotlib set letters a pixel aside
NAMES = ["cat", "dog", "frog", "space shuttle, and all its boosters", "$price$_up^"]


def bump(y: float, x: float, width: float, shape: tuple[int, int] = (12, 12)) -> np.ndarray:
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    return np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / width**2).astype(np.float32)


def made(exact: bool = True, **changes) -> Explanation:
    """An explanation of a cat's photograph with maps made by hand: eyes for, nose against."""
    attention = 0.2 + bump(5, 3, 2) + bump(5, 8, 2)
    evidence = np.stack([bump(5, 3, 2), bump(5, 8, 2), -bump(9, 7, 2), bump(2, 2, 3), -bump(2, 2, 3)]) / 8
    logits = np.array([4.0, 2.5, 1.0, 0.0, -1.0], np.float32)
    bias = logits - evidence.sum((1, 2)) - (0 if exact else 0.5)
    return Explanation(
        name="chelsea",
        image=Image.fromarray(data.chelsea()).resize((226, 150)),
        class_names=NAMES,
        logits=logits,
        bias=bias.astype(np.float32),
        attention=(attention / attention.sum())[None],
        evidence=evidence,
        evidence_classes=tuple(range(5)),
        exact=exact,
        grid=Grid((12, 12), (4.0, 4.0), (2.0, 2.0)),
        geometry=Preprocessing((48, 48)).geometry(150, 226),
        **changes,
    )


def several() -> list[Explanation]:
    """Five explanations with different certainties and predictions, and images of different shapes."""
    explanations = []
    for i in range(5):
        logits = np.zeros(5, np.float32)
        logits[i % 3] = i + 0.5
        explanation = replace(made(), logits=logits, name=f"image {i}")
        if i % 2:
            upright = explanation.image.transpose(Image.Transpose.ROTATE_90)
            geometry = Preprocessing((48, 48)).geometry(upright.height, upright.width)
            explanation = replace(explanation, image=upright, geometry=geometry)
        explanations.append(explanation)
    return explanations


def images_and_maps() -> tuple[np.ndarray, np.ndarray]:
    pixels = np.asarray(Image.fromarray(data.chelsea()).resize((36, 24)))
    images = np.stack([pixels, pixels[:, ::-1], pixels[::-1]])
    maps = np.stack([bump(2, 2, 2, (6, 9)), bump(2, 6, 2, (6, 9)), bump(4, 2, 2, (6, 9))])
    return images, maps / maps.sum((1, 2), keepdims=True)


def evolving() -> tuple[np.ndarray, np.ndarray, list[int]]:
    images, maps = images_and_maps()
    uniform = np.full_like(maps, 1 / 54)
    return images, np.stack([uniform + t * (maps - uniform) for t in np.linspace(0, 1, 12)]), list(range(1, 13))


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def difference(figure: Figure, name: str) -> float:
    drawn = figures.to_image(figure, dpi=40)
    path = SNAPSHOTS / f"{name}.png"
    if os.environ.get("PATCHCONVNET_STORE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        drawn.quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    with Image.open(path) as stored:
        assert stored.size == drawn.size, f"{name} changed its size"
        return float(np.abs(np.asarray(drawn, float) - np.asarray(stored.convert("RGB"), float)).mean())


FIGURES = {
    "explanation": lambda: made().figure(),
    "explanation_first_order": lambda: made(exact=False, target=3).figure(evidence=2),
    "explanation_without_evidence": lambda: made().figure(evidence=0),
    "evidence": lambda: figures.evidence_figure(made(), ["cat", 2, 4]),
    "difference": lambda: figures.difference_figure(made(), "cat", "frog"),
    "contact_sheet": lambda: figures.contact_sheet(several(), columns=3)[0],
    "certainty_sheet": lambda: figures.certainty_sheet(several(), [0, 1, 2, 1, 1], count=3),
    "attention_grid": lambda: evolution.attention_grid(
        *images_and_maps(), ["a", "b", "c"], heading="epoch 3", columns=2
    ),
    "attention_evolution": lambda: evolution.attention_evolution(*evolving(), columns=4),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_the_stored_one(name):
    assert difference(FIGURES[name](), name) < TOLERANCE


def test_the_tolerance_sees_a_map_in_the_wrong_place():
    moved = made()
    moved = replace(moved, attention=moved.attention[:, ::-1], evidence=moved.evidence[:, ::-1])
    if not os.environ.get("PATCHCONVNET_STORE_SNAPSHOTS"):
        assert difference(moved.figure(), "explanation") > 2 * TOLERANCE


def test_snapshots_are_small():
    assert {path.stem for path in SNAPSHOTS.iterdir()} == set(FIGURES)
    assert max(path.stat().st_size for path in SNAPSHOTS.iterdir()) < 40_000


def test_explanation_figure_says_what_its_evidence_is():
    exact, first_order = words(made().figure()), words(made(exact=False).figure())
    assert "Exact: the patches sum to the class's logit less its bias." in exact
    assert "+0.50 of cat's logit of +4.00 is not in it" in first_order
    assert "Exact" not in first_order
    averaged = words(made(exact=False, refine=3).figure())
    assert "Averaged over shifts and flips: +0.50" in averaged
    assert "4 × 4 patches, refined 3 × 3" in averaged
    assert "226 × 150 pixels" in exact
    assert "12 × 12 patches" in exact
    assert "asked: dog" in words(made(target=1).figure())


def test_names_are_printed_as_they_are():
    printed = words(made().figure())
    assert "$price$_up^" in printed
    assert "space shuttle" in printed


def test_difference_adds_up():
    explanation = made()
    total = float(explanation.evidence_for(0).sum() - explanation.evidence_for(2).sum())
    bias = float(explanation.bias[0] - explanation.bias[2])
    printed = words(figures.difference_figure(explanation, "cat", "frog"))
    assert "why cat and not frog" in printed
    assert f"+3.00 = +{total:.2f} from the patches" in printed
    assert f"{abs(bias):.2f} from the biases." in printed
    with pytest.raises(UserError, match="two different"):
        figures.difference_figure(explanation, "cat", 0)


def test_certainty_sheet_chooses_rightly():
    # certainties rise with i; predictions are 0, 1, 2, 0, 1
    explanations = several()
    printed = words(figures.certainty_sheet(explanations, [0, 1, 2, 1, 2], count=2)).split("\n")
    names = [line.split("·")[-1].strip() for line in printed if "image" in line]
    assert names == ["image 4", "image 3", "image 0", "image 1", "image 4", "image 3"]
    assert "wrong (2 of 5), the surest first" in printed
    assert sum("is frog" in line for line in printed) == 2  # among the most certain, and among the wrong
    without = words(figures.certainty_sheet(explanations, count=2))
    assert "wrong" not in without
    with pytest.raises(UserError, match="1 labels for 5"):
        figures.certainty_sheet(explanations, [0])


def test_contact_sheets_have_pages():
    pages = figures.contact_sheet(several() * 2, columns=2, rows=2)
    assert len(pages) == 3
    assert sum("image" in line for page in pages for line in words(page).split("\n")) == 10
    with pytest.raises(UserError, match="no explanations"):
        figures.contact_sheet([])


def test_evolution_shows_the_first_and_the_last_epoch():
    images, maps, epochs = evolving()
    assert words(evolution.attention_evolution(images, maps, epochs, columns=3)).split("\n")[1::2] == [
        "epoch 1",
        "epoch 12",
    ]
    one = evolution.attention_evolution(images, maps[:1], epochs[:1])
    assert words(one).split("\n") == ["original", "epoch 1"]


def test_grid_takes_images_in_both_layouts():
    images, maps = images_and_maps()
    drawn = [figures.to_image(evolution.attention_grid(p, maps)) for p in (images, images.transpose(0, 3, 1, 2))]
    assert drawn[0].tobytes() == drawn[1].tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (3, 400), (400, 3)])
def test_images_of_extreme_shapes(shape):
    image = Image.new("RGB", shape, "teal")
    geometry = Preprocessing((48, 48)).geometry(image.height, image.width)
    explanation = replace(made(), image=image, geometry=geometry)
    assert figures.to_image(explanation.figure()).width < 2000
    assert figures.to_image(figures.contact_sheet([explanation])[0]).width < 2000


def test_maps_that_are_zero_are_drawn_as_nothing():
    assert (colours.evidence_colours(np.zeros((4, 4), np.float32))[..., 3] == 0).all()
    flat = replace(made(), evidence=np.zeros((5, 12, 12), np.float32))
    figures.to_image(flat.figure())


def test_a_uniform_look_is_one_colour():
    assert len(np.unique(colours.attention_colours(np.full((4, 4), 1 / 16, np.float32)).reshape(-1, 4), axis=0)) == 1


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
