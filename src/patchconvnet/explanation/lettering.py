"""Words in figures: measured before they are drawn, cut or wrapped to their place, in fonts that have their glyphs.

The base font comes with matplotlib; where it lacks a character, an installed font that has it takes over.
"""

import functools
import logging
import warnings
from collections.abc import Iterable, Sequence

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties, findSystemFonts, fontManager, get_font

BASE = "DejaVu Sans"
PREFERRED = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR")
SYMBOLS_ONLY = ("Last Resort", "STIX", "cm", "DejaVu Math", "DejaVu Sans Display", "DejaVu Serif Display")
RESOLUTION = 100  # pixels an inch at which words are measured
HINTING = 1.03  # letters are set on whole pixels, so at another resolution a line may be this much longer


def readable(words: str, otherwise: str) -> str:
    """Words as fonts can show them, on one line; warns once where none of those installed can.

    Args:
        words: a name; may hold control characters, or characters that no installed font has, which are left out.
        otherwise: what stands for it where nothing readable remains.
    """
    one_line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
    missing = {c for c in one_line if not c.isspace() and _family_of(c) is None}
    if not missing:
        return one_line or otherwise
    _warn_of_missing_glyphs()
    rest = " ".join("".join(" " if c in missing else c for c in one_line).split())
    return rest if any(c.isalnum() for c in rest) else otherwise


def families(words: str) -> list[str]:
    """The font families that words need: the base font, and others for what it lacks."""
    return list(dict.fromkeys([BASE, *(family for c in words if (family := _family_of(c)))]))


@functools.lru_cache(8192)
def width_of(words: str, size: float, weight: str = "normal") -> float:
    """Inches that words take, `size` in points."""
    font = FontProperties(family=families(words), size=size, weight=weight)
    pixels, _, _ = _renderer().get_text_width_height_descent(words, font, ismath=False)
    return float(pixels) / RESOLUTION * HINTING


def shortened(words: str, width: float, size: float, weight: str = "normal") -> str:
    """The words, or as many of their letters as fit into `width` inches, and an ellipsis."""
    if width_of(words, size, weight) <= width:
        return words
    fits, too_many = 0, len(words)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if width_of(words[:middle].rstrip() + "…", size, weight) <= width:
            fits = middle
        else:
            too_many = middle
    return words[:fits].rstrip() + "…"


def wrapped(words: str | Iterable[str], width: float, size: float) -> list[str]:
    """Lines of at most `width` inches, broken between words; a single word that is too long is shortened.

    Args:
        words: a sentence, or the pieces between which a line may break.
    """
    lines: list[str] = []
    for word in words.split(" ") if isinstance(words, str) else words:
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, width, size))
    return lines


@functools.cache
def _renderer() -> RendererAgg:
    return RendererAgg(1, 1, RESOLUTION)


@functools.lru_cache(65536)
def _family_of(character: str) -> str | None:
    """The family of a font with that character: the base font if it has it, else another installed one, or None."""
    code = ord(character)
    for fonts in (_fonts, _fonts_installed_since):
        for family, path in fonts():
            try:
                if get_font(path).get_char_index(code):
                    return family
            except (OSError, RuntimeError) as error:  # a font file that is damaged or gone
                logging.getLogger(__name__).debug("font %s cannot be read: %s", path, error)
    return None


@functools.cache
def _fonts() -> Sequence[tuple[str, str]]:
    """(family, file) of upright fonts, the base font first."""
    order = (BASE, *PREFERRED)
    fonts = {
        font.name: font.fname
        for font in fontManager.ttflist
        if font.style == "normal"
        and font.weight in (400, "normal", "regular")
        and not font.name.startswith(SYMBOLS_ONLY)
    }
    return sorted(fonts.items(), key=lambda font: (order.index(font[0]) if font[0] in order else len(order), font[0]))


@functools.cache
def _fonts_installed_since() -> Sequence[tuple[str, str]]:
    """(family, file) of fonts that matplotlib does not know: it lists the installed ones once, and keeps the list."""
    known, before = {font.fname for font in fontManager.ttflist}, len(fontManager.ttflist)
    for path in sorted(set(findSystemFonts()) - known):
        try:
            fontManager.addfont(path)
        except (OSError, RuntimeError, ValueError) as error:
            logging.getLogger(__name__).debug("font %s cannot be read: %s", path, error)
    return [(font.name, font.fname) for font in fontManager.ttflist[before:]]


class _NoWordOfWeights(logging.Filter):
    """A font that takes over may have no bold, and is then drawn as it is: nothing to tell a user."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Failed to find font weight" not in record.msg


logging.getLogger("matplotlib.font_manager").addFilter(_NoWordOfWeights())


@functools.cache
def _warn_of_missing_glyphs() -> None:
    warnings.warn(
        "no installed font has all characters of the names in a figure: they are left out there, or a class's number "
        "is shown instead; its JSON has the names. A font such as Noto Sans CJK shows them.",
        stacklevel=2,
    )
