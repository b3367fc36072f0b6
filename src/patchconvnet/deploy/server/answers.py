"""What is answered about one image: the JSON that `patchconvnet explain` writes, with maps beside it, or a PNG."""

import io
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, get_args

from patchconvnet.deploy.server.problems import Problem
from patchconvnet.errors import UserError
from patchconvnet.explanation.explanation import Explanation
from patchconvnet.explanation.maps import KINDS, Kind

Format = Literal["json", "png", "overlay"]
FORMATS = get_args(Format)


def kinds_of(maps: str) -> tuple[Kind, ...]:
    """The kinds of maps that a request names, with commas between them.

    Raises:
        Problem: there is no such kind.
    """
    asked = [name.strip() for name in maps.split(",") if name.strip()]
    if unknown := [name for name in asked if name not in KINDS]:
        raise Problem(422, f"there is no map {unknown[0][:40]!r}; known: {', '.join(KINDS)}")
    return tuple(kind for kind in KINDS if kind in asked)


def as_record(explanation: Explanation, kinds: Sequence[Kind] = ()) -> dict[str, Any]:
    """As `patchconvnet explain` writes it, and under "maps" those asked for of the class that is spoken of.

    Raises:
        Problem: there is no such map of this image.
    """
    record = explanation.to_dict()
    if kinds:
        about, against = explanation.subject, explanation.runner_up
        record["maps"] = {
            kind: {
                "about": asdict(about),
                **({"against": asdict(against)} if kind == "contrast" and against else {}),
                "map": [[float(str(value)) for value in row] for row in _map(explanation, kind)],
            }
            for kind in kinds
        }
    return record


def as_png(explanation: Explanation, form: Format, kinds: Sequence[Kind] = ()) -> bytes:
    """A map on the image ("png"), or by itself and transparent, to lay over it ("overlay").

    Raises:
        Problem: there is no such map of this image.
    """
    kind = kinds[0] if kinds else explanation.shown()
    _map(explanation, kind)
    drawn = explanation.attended(map=kind) if form == "png" else explanation.overlay(map=kind)
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _map(explanation: Explanation, kind: Kind) -> Any:
    try:
        return explanation.map_for(kind=kind)
    except UserError as error:
        raise Problem(422, f"there is no map {kind!r} of this image: {error}") from error
