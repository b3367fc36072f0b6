"""Figures: their images against stored ones, the facts they print, and a layout that holds for all shapes and names.

What is stored is what figures draw from: the pixels of their panels, without matplotlib's letters, frames and
resampling. Look at a changed figure, then store it: `PATCHCONVNET_STORE_SNAPSHOTS=1 pytest tests/explanation`.
"""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made import bump, collisions, flat, made, words
from matplotlib import font_manager
from matplotlib.collections import PathCollection
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.errors import UserError
from patchconvnet.explanation import Explanation, figures, lettering

SNAPSHOTS = Path(__file__).parent / "snapshots"
TOLERANCE = 1.0  # mean difference, of 255: versions of Pillow round a resized image differently
PANEL = 64  # pixels of a stored panel's longer side


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


def panels(figure: Figure) -> Image.Image:
    """The images of a figure, small, beside each other in the order of drawing."""
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    images = [Image.fromarray(np.asarray(pixels, np.uint8)) for pixels in shown]
    strip = Image.new("RGB", (PANEL * len(images), PANEL), "white")
    for i, image in enumerate(images):
        image.thumbnail((PANEL, PANEL), Image.Resampling.BOX)
        strip.paste(image, (i * PANEL, 0))
    return strip


def difference(figure: Figure, name: str) -> float:
    drawn, path = panels(figure), SNAPSHOTS / f"{name}.png"
    if os.environ.get("PATCHCONVNET_STORE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        drawn.save(path, optimize=True)
    with Image.open(path) as stored:
        assert stored.size == drawn.size, f"{name} has another number of panels"
        return float(np.abs(np.asarray(drawn, float) - np.asarray(stored.convert("RGB"), float)).mean())


FIGURES = {
    "explanation": lambda: made().figure(),
    "explanation_first_order": lambda: made(exact=False, target=3).figure(evidence=2),
    "explanation_without_evidence": lambda: made().figure(evidence=0),
    "explanation_flat": lambda: flat().figure(),
    "explanation_contrast": lambda: made().figure(map="contrast", evidence=0),
    "evidence": lambda: figures.evidence_figure(made(), ["cat", 2, 4]),
    "difference": lambda: figures.difference_figure(made(), "cat", "frog"),
    "contact_sheet": lambda: figures.contact_sheet(several(), columns=3)[0],
    "certainty_sheet": lambda: figures.certainty_sheet(several(), [0, 1, 2, 1, 1], count=3),
}


@pytest.mark.parametrize("name", FIGURES)
def test_panels_are_the_stored_ones(name):
    figure = FIGURES[name]()
    assert difference(figure, name) < TOLERANCE
    assert collisions(figure) == []


def test_the_tolerance_sees_a_map_in_the_wrong_place():
    moved = made()
    moved = replace(moved, attention=moved.attention[:, ::-1], evidence=moved.evidence[:, ::-1])
    if not os.environ.get("PATCHCONVNET_STORE_SNAPSHOTS"):
        assert difference(moved.figure(), "explanation") > 5 * TOLERANCE


def test_snapshots_are_small():
    assert {path.stem for path in SNAPSHOTS.iterdir()} == set(FIGURES)
    assert max(path.stat().st_size for path in SNAPSHOTS.iterdir()) < 120_000


def test_panels_stand_beside_each_other_and_keep_the_shape_of_their_image():
    figure = made().figure()
    boxes = [axes.get_position() for axes in figure.axes if axes.images]
    assert len(boxes) == 5  # the image and its map, and evidence for three classes
    for box in boxes:
        inches = box.width * figure.get_figwidth(), box.height * figure.get_figheight()
        assert inches[0] / inches[1] == pytest.approx(226 / 150, rel=0.01)
    assert boxes[0].x1 < boxes[1].x0
    assert boxes[0].y0 == pytest.approx(boxes[1].y0)
    assert boxes[2].y1 < boxes[0].y0
    assert [box.x0 for box in boxes[2:]] == sorted(box.x0 for box in boxes[2:])


def test_bars_are_as_long_as_probabilities():
    figure = made().figure()
    bars = [artist.get_width() for artist in figure.artists if isinstance(artist, Rectangle)]
    whole, shares = bars[0::2], bars[1::2]
    np.testing.assert_allclose(np.divide(shares, whole), [p.probability for p in made().top_classes()], rtol=1e-6)


def test_dashed_outlines_are_around_what_speaks_against():
    outlined = {}
    for name, axes in zip(["cat", "dog", "frog"], made().figure().axes[3:6], strict=True):
        contours = [c for c in axes.collections if isinstance(c, ContourSet) and not isinstance(c, PathCollection)]
        outlined[name] = [("against" if c.levels[0] < 0 else "for", c.get_linestyle()[0][1] is None) for c in contours]
    assert outlined == {"cat": [("for", True)], "dog": [("for", True)], "frog": [("against", False)]}


def test_explanation_figure_says_what_its_evidence_is():
    exact, first_order = (words(made(exact=e).figure()).replace("\n", " ") for e in (True, False))
    assert "Exact: the patches sum to the class's logit less its bias." in exact
    assert "+0.50 of cat's logit of +4.00 is not in it" in first_order
    assert "Exact" not in first_order
    averaged = words(made(exact=False, refine=3).figure())
    assert "Averaged over shifts and flips: +0.50" in averaged.replace("\n", " ")
    assert "4 × 4 patches, refined 3 × 3" in averaged
    assert "226 × 150 pixels" in exact
    assert "12 × 12 patches" in exact
    assert "asked: dog" in words(made(target=1).figure())


def test_the_caption_says_which_map_is_shown():
    def printed(explanation: Explanation, **options) -> list[str]:
        return words(explanation.figure(evidence=0, **options)).split("\n")

    assert "attention" in printed(made())
    assert "evidence for cat" in printed(flat())
    assert "attention" in printed(flat(), map="attention")
    assert "evidence for cat" in printed(made(), map="evidence")
    assert "cat less dog" in printed(made(), map="contrast")
    assert any("Attention is nearly uniform here" in line for line in printed(flat()))
    sheet = words(figures.contact_sheet([made(), flat()])[0]).replace("\n", " ")
    assert "attention (yellow: most) or, where attention is nearly uniform, evidence for the predicted class" in sheet
    sheet = words(figures.contact_sheet([made()], map="contrast")[0]).replace("\n", " ")
    assert "less that for the likeliest other one" in sheet
    with pytest.raises(UserError, match="unknown map 'heat'; known: auto, attention, evidence, contrast"):
        made().figure(map="heat")  # type: ignore[arg-type]


def test_evidence_above_is_not_repeated_below():
    titles = [line for line in words(flat().figure()).split("\n") if line.startswith("evidence for")]
    assert titles == [f"evidence for {name}" for name in ("cat", "dog", "frog", "space shuttle")]


def test_what_the_crop_left_out_is_marked_and_said():
    cropped, whole = (made(geometry=Preprocessing((48, 48), how).geometry(150, 226)) for how in ("crop", "stretch"))
    for explanation, says in ((cropped, True), (whole, False)):
        for figure in (explanation.figure(), figures.contact_sheet([explanation])[0]):
            assert ("outside of the crop, not seen by the network" in words(figure).replace("\n", " ")) is says
    outlines = cropped.figure().axes[0].patches
    left, _, right, _ = cropped.geometry.box
    scale = figures.DISPLAY_SIDE / 226
    assert outlines[0].get_x() == pytest.approx(left * scale, abs=1)
    assert outlines[0].get_width() == pytest.approx((right - left) * scale, abs=1)
    assert not whole.figure().axes[0].patches


def test_names_are_printed_as_they_are():
    printed = words(made().figure())
    assert "$price$_up^" in printed
    assert "space shuttle" in printed


def test_difference_adds_up():
    explanation = made()
    total = float(explanation.evidence_for(0).sum() - explanation.evidence_for(2).sum())
    bias = float(explanation.bias[0] - explanation.bias[2])
    printed = words(figures.difference_figure(explanation, "cat", "frog")).replace("\n", " ")
    assert "why cat and not frog" in printed
    assert f"+3.00 = +{total:.2f} from the patches" in printed
    assert f"{abs(bias):.2f} from the biases." in printed
    with pytest.raises(UserError, match="two different"):
        figures.difference_figure(explanation, "cat", 0)


def test_certainty_sheet_chooses_rightly():
    # certainties rise with i; predictions are 0, 1, 2, 0, 1
    explanations = several()
    printed = words(figures.certainty_sheet(explanations, [0, 1, 2, 1, 2], count=2)).split("\n")
    names = [line.split("·")[-1].strip() for line in printed if line.split("·")[-1].strip().startswith("image ")]
    assert names == ["image 4", "image 3", "image 0", "image 1", "image 4", "image 3"]
    assert "wrong (2 of 5), most confident first" in printed
    assert sum("is frog" in line for line in printed) == 2  # among the most certain, and among the wrong
    without = words(figures.certainty_sheet(explanations, count=2))
    assert "wrong" not in without
    with pytest.raises(UserError, match="1 labels for 5"):
        figures.certainty_sheet(explanations, [0])


def test_contact_sheets_have_pages():
    pages = figures.contact_sheet(several() * 2, columns=2, rows=2)
    assert len(pages) == 3
    assert sum(line.startswith("image ") for page in pages for line in words(page).split("\n")) == 10
    with pytest.raises(UserError, match="no explanations"):
        figures.contact_sheet([])


SIZES = [(400, 1200), (3000, 400), (1, 5000), (1, 1)]
MORE_SIZES = [(1080, 2340), (5000, 1), (3, 400), (400, 3)]
LONG = "the very long name of a class that nobody would ever shorten, " * 3
HARD_NAMES = {
    "long": [LONG.replace(",", ""), "Donaudampfschifffahrtsgesellschaftskapitän" * 3, LONG, "d", "e"],
    "cjk": ["猫", "犬と猫", "青蛙 frog", "고양이" * 12, "ネコ" * 40],
    "odd": ["", "a\nb\tc\x1b[31m", "\ud800", "مرحبا", "🐱"],
}


@pytest.mark.parametrize("names", HARD_NAMES)
@pytest.mark.parametrize("size", [*SIZES, *(pytest.param(s, marks=pytest.mark.slow) for s in MORE_SIZES)], ids=str)
@pytest.mark.filterwarnings("ignore:no installed font")
def test_no_words_overlap_or_leave_the_figure(size, names):
    image = Image.new("RGB", size, "teal")
    geometry = Preprocessing((48, 48)).geometry(image.height, image.width)
    explanation = made(
        image=image, geometry=geometry, class_names=HARD_NAMES[names], name=HARD_NAMES[names][0] * 2, target=1
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")  # matplotlib's word for a box in place of a letter
        for figure in (
            explanation.figure(),
            explanation.figure(evidence=1, map="contrast"),
            figures.evidence_figure(explanation, [0, 1]),
            figures.difference_figure(explanation, 0, 1),
            figures.contact_sheet([explanation] * 2)[0],
            figures.certainty_sheet([explanation] * 2, [0, 1], count=1),
        ):
            assert collisions(figure) == []
            assert figure.get_figwidth() < 22


def test_the_measure_sees_words_that_overlap():
    sheet = figures.Sheet(3, 1)
    sheet.text(0.1, 0.2, "some words")
    sheet.text(0.3, 0.25, "others")
    sheet.text(2.8, 0.6, "beyond the edge")
    found = collisions(sheet.figure)
    assert len(found) == 2
    assert "lies on" in found[0]
    assert "leaves the figure" in found[1]


def test_maps_that_are_zero_are_drawn_as_nothing():
    neutral = made(evidence=np.zeros((5, 12, 12), np.float32)).figure().axes[3].images[0].get_array()
    assert np.ptp(np.asarray(neutral, int)[100:200, 200:300], axis=-1).max() <= 2  # grey


def test_one_bright_patch_is_bright_and_the_rest_dark():
    attention = 0.01 + bump(5, 5, 1)
    values = np.asarray(made(attention=(attention / attention.sum())[None]).overlay(), int)[..., :3].sum(-1)
    seen = np.asarray(made().overlay().getchannel("A")) == 153
    assert values[seen].max() > 4 * np.median(values[seen])


def test_shortened_and_wrapped_words_fit():
    for width in (0.3, 1.0, 2.5):
        for words_ in (LONG, "Donaudampfschifffahrtsgesellschaft" * 5, "a"):
            short = lettering.shortened(words_, width, 9)
            assert lettering.width_of(short, 9) <= width
            assert short == words_ or short.endswith("…")
            lines = lettering.wrapped(words_, width, 9)
            assert all(lettering.width_of(line, 9) <= width for line in lines)
    assert lettering.wrapped("a b c", 9, 9) == ["a b c"]


@pytest.fixture
def fonts(monkeypatch):
    """Makes an order of fonts the only ones, as if no others were installed."""

    def only(*names: str) -> None:
        paths = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.style == "normal"}
        monkeypatch.setattr(lettering, "_fonts", lambda: [(name, paths[name]) for name in names])
        monkeypatch.setattr(lettering, "_fonts_installed_since", list)
        monkeypatch.setattr(lettering, "BASE", names[0])
        for cached in (lettering._family_of, lettering.width_of, lettering._warn_of_missing_glyphs):
            cached.cache_clear()

    yield only
    for cached in (lettering._family_of, lettering.width_of):
        cached.cache_clear()


def test_names_without_glyphs_are_replaced_and_said_once(fonts):
    fonts("DejaVu Sans")
    with pytest.warns(UserWarning, match="no installed font"):
        assert lettering.readable("猫 cat", "class 3") == "cat"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert lettering.readable("猫", "class 3") == "class 3"
        assert lettering.readable("", "class 5") == "class 5"
        assert lettering.readable("a\nb\x1b[1m\ud800c", "") == "a b [1m c"


def test_a_font_that_has_the_glyph_takes_over(fonts):
    fonts("cmss10", "DejaVu Sans")
    assert lettering.families("cat") == ["cmss10"]
    assert lettering.families("кот") == ["cmss10", "DejaVu Sans"]
    assert lettering.readable("кот", "class 3") == "кот"


def test_other_letters_change_neither_panels_nor_order(fonts):
    before = {name: panels(FIGURES[name]()).tobytes() for name in ("explanation", "certainty_sheet")}
    fonts("DejaVu Serif")
    for name, stored in before.items():
        figure = FIGURES[name]()
        assert panels(figure).tobytes() == stored
        assert collisions(figure) == []
