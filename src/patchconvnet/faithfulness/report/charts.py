"""Small charts of an audit as SVG: deletion and insertion, and what is left of a map as its network forgets."""

from collections.abc import Sequence
from html import escape
from math import isfinite

INSERTION, DELETION, INK, FAINT, RULE = "#1f6fb4", "#d1571b", "#1a1a1a", "#6b6b6b", "#d9d9d9"
WIDTH, HEIGHT = 190, 118
LOWEST = -0.3  # of the axis of rank correlations
LEFT, TOP, RIGHT, BOTTOM = 26, 8, 8, 20  # margins of the plot


def curves_chart(deletion: Sequence[float] | None, insertion: Sequence[float] | None, top: float, title: str) -> str:
    """One method's mean curves over the share of pixels exchanged; shaded where insertion is above deletion."""
    lines = [_frame(top, ("0", "half", "all"))]
    points = {
        name: [(_x(i / (len(curve) - 1)), _y(value / top)) for i, value in enumerate(curve) if isfinite(value)]
        for name, curve in (("deletion", deletion), ("insertion", insertion))
        if curve
    }
    if len(points) == 2 and len(points["insertion"]) == len(points["deletion"]):
        above, below = points["insertion"], points["deletion"]
        ahead = [i for i in range(len(above)) if above[i][1] <= below[i][1]]  # y grows downwards
        area = [above[i] for i in ahead] + [below[i] for i in reversed(ahead)]
        lines.append(f'<polygon points="{_points(area)}" fill="{INSERTION}" opacity="0.10"/>')
    for name, colour, dash in (("insertion", INSERTION, ""), ("deletion", DELETION, ' stroke-dasharray="4 2.5"')):
        if name in points:
            lines.append(
                f'<polyline points="{_points(points[name])}" fill="none" stroke="{colour}" stroke-width="1.8"{dash}/>'
            )
    return _svg(lines, f"{title}: mean probability while pixels are exchanged")


def cascade_chart(levels: Sequence[str], values: Sequence[float | None], title: str) -> str:
    """One method's mean rank correlation with its own maps, as more and more of the network is random."""
    lines = [_frame(1.0, (), LOWEST)]
    step = (WIDTH - LEFT - RIGHT) / len(levels)
    for i, (level, value) in enumerate(zip(levels, values, strict=True)):
        x = LEFT + i * step
        middle = x + step / 2
        if value is None:
            lines.append(f'<text x="{middle:.1f}" y="{_y(0, LOWEST) - 3:.1f}" class="t" text-anchor="middle">–</text>')
            continue
        top, bottom = sorted((_y(max(LOWEST, min(1.0, value)), LOWEST), _y(0, LOWEST)))
        lines.append(
            f'<rect x="{x + step * 0.14:.1f}" y="{top:.1f}" width="{step * 0.72:.1f}" '
            f'height="{max(bottom - top, 0.8):.1f}" fill="{INSERTION}">'
            f"<title>{escape(level)} random: {value:.2f}</title></rect>"
        )
    ends = ((0, "start", levels[0]), (len(levels) - 1, "end", levels[-1]))
    for i, anchor, level in ends:
        x = LEFT if i == 0 else WIDTH - RIGHT
        lines.append(f'<text x="{x}" y="{HEIGHT - 6}" class="t" text-anchor="{anchor}">{escape(level)}</text>')
    return _svg(lines, f"{title}: rank correlation as the network is randomised from {levels[0]} to {levels[-1]}")


def _frame(top: float, ticks: Sequence[str], lowest: float = 0.0) -> str:
    parts = []
    for share in (0.0, 0.5, 1.0):
        y = _y(share, lowest)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{RULE}"/>')
        parts.append(f'<text x="{LEFT - 4}" y="{y + 3:.1f}" class="t" text-anchor="end">{share * top:.2g}</text>')
    for i, tick in enumerate(ticks):
        anchor = ("start", "middle", "end")[i]
        x = _x(i / (len(ticks) - 1))
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" class="t" text-anchor="{anchor}">{tick}</text>')
    return "".join(parts)


def _svg(lines: Sequence[str], label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(lines)}</svg>'


def _x(share: float) -> float:
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _y(share: float, lowest: float = 0.0) -> float:
    return HEIGHT - BOTTOM - (share - lowest) / (1 - lowest) * (HEIGHT - TOP - BOTTOM)


def _points(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
