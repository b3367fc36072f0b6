"""What the numbers of an audit allow to say, and above all what they don't: sentences made from the numbers alone.

Where there are too few values (`statistics.LEAST_VALUES`) no sentence is made.
"""

from typing import NamedTuple

from patchconvnet.faithfulness.methods import Method
from patchconvnet.faithfulness.metrics import Column
from patchconvnet.faithfulness.statistics import LEAST_VALUES, Estimate
from patchconvnet.faithfulness.summary import Summary

SURE = 2.0  # standard errors that a difference must have to be called one
KEPT = 0.5  # mean rank correlation from which a map is said to outlive the network's weights
SHAKY = 0.8  # mean rank correlation below which a map is said to be unstable
ROUNDING = 1e-6  # a difference below this is none
UNCOUNTED = 0.01  # completeness error from which shares are said not to add up


def findings(summary: Summary) -> tuple[list[str], list[str]]:
    """(what our maps are good for, what they are not good for), a sentence or two each, as plain text."""
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


def _rivals(summary: Summary, method: Method, column: Column) -> tuple[list[_Rival], list[str]]:
    """The methods to compare with on a measure, and the titles of those that have too few values for it."""
    rivals, scarce = [], []
    for other in summary.methods:
        # noise by pixels is no measure for maps by patches, see `_of_the_measures`
        if other is method or other.name == "random_pixels" or (other.name, column.name) not in summary.estimates:
            continue
        gap = summary.gap(method.name, other.name, column)
        if gap is None or gap.count < LEAST_VALUES or not summary.estimates[other.name, column.name].is_enough:
            if other.kind == "method":
                scarce.append(other.title)
            continue
        rivals.append(_Rival(other, gap.mean, gap.error))
    return rivals, scarce


def _beside_the_others(summary: Summary, method: Method) -> tuple[list[str], list[str]]:
    best: list[str] = []
    useless: list[str] = []
    unsure: list[str] = []
    worse: dict[str, list[str]] = {}  # measures by the rival that is furthest ahead
    for column in summary.columns:
        # a map that ignores the image is stable, and only some methods claim a sum: being ahead there is no merit
        if not column.contest or _enough(summary, method.name, column.name) is None:
            continue
        known, scarce = _rivals(summary, method, column)
        here = _on(summary, method, column)
        unbeaten = [rival for rival in known if rival.method.kind == "control" and not rival.surely_behind]
        rivals = [rival for rival in known if rival.method.kind == "method"]
        if unbeaten and column.better != "near zero":
            hardest = min(unbeaten, key=lambda rival: rival.behind)
            theirs = summary.estimates[hardest.method.name, column.name]
            control = f"{hardest.method.title.lower()} {theirs.mean:.3f}{_missing(theirs)}"
            (useless if hardest.behind < ROUNDING else unsure).append(f"{here} ({control})")
        elif rivals and all(rival.surely_behind for rival in rivals):
            second = min(rivals, key=lambda rival: rival.behind)
            theirs = summary.estimates[second.method.name, column.name]
            left_out = f"; {_list(scarce)} not compared, for too few values" if scarce else ""
            best.append(
                f"{here} ({second.method.title}{_missing(theirs)} is {second.behind:.3f} ± {second.error:.3f} behind"
                f"{left_out})"
            )
        if ahead := [rival for rival in rivals if rival.surely_ahead]:
            first = min(ahead, key=lambda rival: rival.behind)
            theirs = summary.estimates[first.method.name, column.name]
            worse.setdefault(first.method.title, []).append(
                f"{_title(column)} (by {-first.behind:.3f} ± {first.error:.3f}{_missing(theirs, ', ', '')})"
            )
    strong = [f"{method.title} is ahead of every method that is not ours on {_list(best)}."] if best else []
    weak = []
    if useless:
        weak.append(
            f"{method.title} is no better than a map that ignores the network on {_list(useless)}: it adds "
            "nothing there."
        )
    if unsure:
        weak.append(
            f"There are too few images to tell {method.title} from a map that ignores the network on {_list(unsure)}."
        )
    if worse:
        behind = [f"behind {rival} on {_list(measures)}" for rival, measures in worse.items()]
        weak.append(f"{method.title} is {_list(behind)}; these are the best there.")
    return strong, weak


def _by_itself(summary: Summary, method: Method) -> list[str]:
    sentences = []
    name = method.title
    if (kept := _enough(summary, method.name, "sanity_rank_correlation")) and abs(kept.mean) >= KEPT:
        sentences.append(
            f"{name} depends little on what was learned: with all weights random its rank correlation with the true "
            f"map is still {kept.mean:.2f}{_missing(kept)}. It shows the image as much as the network."
        )
    for measure, what in (
        ("stability_shift", "the image moves by a pixel"),
        ("stability_noise", "faint noise is added"),
    ):
        if (stable := _enough(summary, method.name, measure)) and stable.mean < SHAKY:
            sentences.append(
                f"{name} changes when {what} (rank correlation {stable.mean:.2f}{_missing(stable, ', ', '')}): do not "
                "read its details."
            )
    if (error := _enough(summary, method.name, "completeness")) and error.mean > UNCOUNTED:
        sentences.append(
            f"The shares of {name} do not add up to the logit: {error.mean:.0%} of what the map shows is unaccounted "
            f"for{_missing(error)}. In this network they are a first-order estimate."
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
            f"The measures disagree: deletion prefers {titles[winners['deletion'][0]]}, insertion "
            f"{titles[winners['insertion'][0]]}. Neither alone says which map is right."
        )
    pixels, patches = (_enough(summary, name, "deletion") for name in ("random_pixels", "random"))
    if pixels and patches and pixels.mean < patches.mean - SURE * (pixels.error + patches.error):
        sentences.append(
            f"Deletion rewards scattered holes: noise by pixels has {pixels.mean:.3f}{_missing(pixels)}, by patches "
            f"{patches.mean:.3f}{_missing(patches)}, and both ignore the network. Maps of pixels and maps of patches "
            "cannot be compared by it."
        )
    centre = _enough(summary, "centre", "stability_noise")
    if centre and centre.mean > 0.99:
        sentences.append("Stability is no merit by itself: a Gaussian at the centre, which ignores the image, has it.")
    return sentences


def _enough(summary: Summary, method: str, column: str) -> Estimate | None:
    """An estimate that something may be said about."""
    estimate = summary.estimates.get((method, column))
    return estimate if estimate is not None and estimate.is_enough else None


def _missing(estimate: Estimate, before: str = " (", after: str = ")") -> str:
    return f"{before}{estimate.missing} of {estimate.count} values missing{after}" if estimate.missing else ""


def _title(column: Column) -> str:
    """As it stands within a sentence."""
    first = column.title.split(" ")[0]
    return column.title[0].lower() + column.title[1:] if first[1:].strip(":").islower() else column.title


def _on(summary: Summary, method: Method, column: Column) -> str:
    estimate = summary.estimates[method.name, column.name]
    return f"{_title(column)} {estimate.mean:.3f}{_missing(estimate)}"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
