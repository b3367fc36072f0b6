"""Fonts for names in any script: one that was installed after matplotlib made its list counts too."""

from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from patchconvnet.explanation import lettering

LETTER = "\U00010b4d"  # of an old script, which hardly any font has


def font_with(letter: str, path: Path) -> Path:
    pen = TTGlyphPen(None)
    for move, *points in ((pen.moveTo, (0, 0)), (pen.lineTo, (0, 700)), (pen.lineTo, (700, 0))):
        move(*points)
    pen.closePath()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "letter"])
    builder.setupCharacterMap({ord(letter): "letter"})
    builder.setupGlyf({".notdef": pen.glyph(), "letter": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (800, 0), "letter": (800, 0)})
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Newly Installed", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A font in the system's folders that matplotlib's list does not have."""
    path = font_with(LETTER, tmp_path / "new.ttf")
    monkeypatch.setattr(lettering, "findSystemFonts", lambda: [str(path)])
    monkeypatch.setattr(fontManager, "ttflist", list(fontManager.ttflist))
    cached = (lettering._family_of, lettering._fonts, lettering._fonts_installed_since)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.mark.usefixtures("installed")
def test_a_font_installed_after_matplotlibs_list_is_found(caplog: pytest.LogCaptureFixture) -> None:
    assert lettering.readable(LETTER, "class 0") == LETTER
    assert lettering.families(LETTER) == [lettering.BASE, "Newly Installed"]
    figure = Figure()
    figure.text(0.1, 0.1, LETTER, family=lettering.families(LETTER), weight="bold")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *words, **more: pytest.fail(str(words)))  # of a glyph that is missing
        figure.canvas.draw()
    assert "weight" not in caplog.text


def test_a_character_of_no_font_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lettering, "_family_of", lambda character: None if character == LETTER else lettering.BASE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lettering, "_warn_of_missing_glyphs", lambda: None)
        assert lettering.readable(f"cat {LETTER}", "class 0") == "cat"
        assert lettering.readable(LETTER, "class 0") == "class 0"
