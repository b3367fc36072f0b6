"""What the figures of an audit allow to say, and above all what they don't: sentences made from the numbers alone.

Sentences are HTML with <b> as its only tag.
"""

from html import escape
from typing import NamedTuple

from patchconvnet.faithfulness.methods import Method
from patchconvnet.faithfulness.statistics import Measure, Summary

SURE = 2.0  # standard errors that a difference must have to be called one
KEPT = 0.5  # mean rank correlation from which a map is said to outlive the network's weights
SHAKY = 0.8  # mean rank correlation below which a map is said not to hold still
ROUNDING = 1e-6  # a lead below this is none
UNCOUNTED = 0.01  # completeness error from which shares are said not to add up


def findings(summary: Summary) -> tuple[list[str], list[str]]:
    """(what our maps are good for, what they are not good for), a sentence or two each."""
    strong: list[str] = []
    weak: list[str] = []
    for method in summary.methods:
        if method.kind == "ours":
            ahead, behind = _beside_the_others(summary, method)
            strong += ahead
            weak += behind + _by_itself(summary, method)
    return strong + _time(summary), weak + _of_the_measures(summary)


class _Rival(NamedTuple):
    """Another method, by how much it is behind (below zero: ahead) on a measure, and the standard error of that."""

    method: Method
    behind: float
    error: float

    @property
    def surely_behind(self) -> bool:
        return self.behind > SURE * self.error

    @property
    def surely_ahead(self) -> bool:
        return -self.behind > SURE * self.error


def _beside_the_others(summary: Summary, method: Method) -> tuple[list[str], list[str]]:
    best: list[str] = []
    useless: list[str] = []
    unsure: list[str] = []
    worse: dict[str, list[str]] = {}  # measures by the rival that is furthest ahead
    for column in summary.columns:
        if column.part_of in ("stability", "completeness"):
            continue  # a map of nothing is stable, and only some claim a sum: no contest
        known = [
            _Rival(other, *gap)
            for other in summary.methods
            # noise by pixels is no measure for maps by patches, see `_of_the_measures`
            if other is not method
            and other.name != "random_pixels"
            and (gap := summary.gap(method.name, other.name, column)) is not None
        ]
        if not known:
            continue
        here = _on(summary, method, column)
        unbeaten = [rival for rival in known if rival.method.kind == "control" and not rival.surely_behind]
        rivals = [rival for rival in known if rival.method.kind == "method"]
        if unbeaten and column.part_of != "sanity":
            hardest = min(unbeaten, key=lambda rival: rival.behind)
            control = (
                f"{escape(hardest.method.title.lower())} {summary.figures[hardest.method.name, column.name].mean:.3f}"
            )
            (useless if hardest.behind < ROUNDING else unsure).append(f"{here} ({control})")
        elif rivals and all(rival.surely_behind for rival in rivals):
            second = min(rivals, key=lambda rival: rival.behind)
            best.append(f"{here} ({escape(second.method.title)} is {second.behind:.3f} ± {second.error:.3f} behind)")
        if ahead := [rival for rival in rivals if rival.surely_ahead]:
            first = min(ahead, key=lambda rival: rival.behind)
            measure = here.rpartition(" ")[0]
            worse.setdefault(escape(first.method.title), []).append(
                f"{measure} (by {-first.behind:.3f} ± {first.error:.3f})"
            )
    name = f"<b>{escape(method.title)}</b>"
    strong = [f"{name} is ahead of every method that is not ours on {_list(best)}."] if best else []
    weak = []
    if useless:
        weak.append(f"{name} is no better than a map that knows no network on {_list(useless)}: there it adds nothing.")
    if unsure:
        weak.append(f"Too few images to tell {name} from a map that knows no network on {_list(unsure)}.")
    if worse:
        behind = [f"behind {rival} on {_list(measures)}" for rival, measures in worse.items()]
        weak.append(f"{name} is {_list(behind)}; these are the best there.")
    return strong, weak


def _by_itself(summary: Summary, method: Method) -> list[str]:
    sentences = []
    name = f"<b>{escape(method.title)}</b>"

    def mean(measure: str) -> float | None:
        figure = summary.figures.get((method.name, measure))
        return None if figure is None else figure.mean

    if (kept := mean("sanity_rank_correlation")) is not None and abs(kept) >= KEPT:
        sentences.append(
            f"{name} depends little on what was learned: with all weights random it still has a rank correlation of "
            f"{kept:.2f} with the true map. It shows the image as much as the network."
        )
    for measure, what in (
        ("stability_shift", "the image moves by a pixel"),
        ("stability_noise", "faint noise is added"),
    ):
        if (stable := mean(measure)) is not None and stable < SHAKY:
            sentences.append(f"{name} changes when {what} (rank correlation {stable:.2f}): do not read its details.")
    if (error := mean("completeness")) is not None and error > UNCOUNTED:
        sentences.append(
            f"The shares of {name} do not add up to the logit: {error:.0%} of what the map shows is unaccounted for. "
            "In this network they are an estimate of first order."
        )
    if nothing := summary.uninformative.get(method.name):
        sentences.append(f"{nothing:.1%} of the maps of {name} are uniform or not finite; each counts as a miss.")
    return sentences


def _time(summary: Summary) -> list[str]:
    spent = [summary.seconds[m.name] for m in summary.methods if m.kind == "ours" and m.name in summary.seconds]
    rise = summary.seconds.get("rise")
    if not rise or not spent:
        return []
    return [
        f"Our maps come with the network's answer, in {max(spent) * 1000:.2g} ms an image here; RISE takes "
        f"{rise * 1000:,.0f} ms, {rise / max(spent):,.0f} times as long."
    ]


def _of_the_measures(summary: Summary) -> list[str]:
    sentences = []
    columns = {column.name: column for column in summary.columns}
    titles = {method.name: method.title for method in summary.methods}
    winners = {name: summary.best(columns[name]) for name in ("deletion", "insertion") if name in columns}
    if len(winners) == 2 and all(winners.values()) and not set(winners["deletion"]) & set(winners["insertion"]):
        sentences.append(
            f"The measures disagree: deletion prefers {escape(titles[winners['deletion'][0]])}, insertion "
            f"{escape(titles[winners['insertion'][0]])}. Neither alone says which map is right."
        )
    pixels, patches = (summary.figures.get((name, "deletion")) for name in ("random_pixels", "random"))
    if pixels and patches and pixels.mean < patches.mean - SURE * (pixels.error + patches.error):
        sentences.append(
            f"Deletion rewards scatter: noise by pixels has {pixels.mean:.3f}, by patches {patches.mean:.3f}, and "
            "neither knows anything. Maps of pixels and maps of patches cannot be compared by it."
        )
    centre = summary.figures.get(("centre", "stability_noise"))
    if centre and centre.mean > 0.99:
        sentences.append(
            "Stability is no merit by itself: a Gaussian at the centre, which ignores the image, has it in full."
        )
    return sentences


def _on(summary: Summary, method: Method, column: Measure) -> str:
    first = column.title.split(" ")[0]
    title = column.title[0].lower() + column.title[1:] if first[1:].strip(":").islower() else column.title
    return f"{escape(title)} {summary.figures[method.name, column.name].mean:.3f}"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
