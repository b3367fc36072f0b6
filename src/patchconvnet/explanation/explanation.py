"""`Explanation`: the maps of one image with their figure and files."""

import io
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from patchconvnet.errors import UserError
from patchconvnet.explanation.maps import MapChoice, Maps
from patchconvnet.files import write_array, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

File = Literal["figure", "overlay", "map", "json"]
FILES = get_args(File)


class Saved(NamedTuple):
    """The files that `Explanation.save` wrote; None for those not asked for."""

    figure: Path | None
    overlay: Path | None
    map: Path | None
    json: Path | None


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Maps):
    """A prediction with its maps (the fields are those of `Maps`), with a figure and files of them."""

    def figure(self, *, evidence: int = 3, map: MapChoice = "auto") -> "Figure":
        """The image, its map and the likeliest classes, and below them the evidence for as many of these.

        Args:
            evidence: for how many classes.
            map: a kind of map as in `map_for`, or "auto": see `shown`.
        """
        from patchconvnet.explanation.figures import explanation_figure  # who draws no figure need not wait for this

        return explanation_figure(self, evidence=evidence, map=map)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def save(
        self,
        folder: str | os.PathLike[str],
        stem: str | None = None,
        *,
        only: Collection[File] = FILES,
        map: MapChoice = "auto",
    ) -> Saved:
        """Write figure, overlay, map and JSON; each file is complete or not there.

        Args:
            folder: created where it is missing.
            stem: how the files' names begin; the image's name by default.
            only: which of "figure", "overlay", "map" and "json" to write; a figure takes the longest by far.
            map: the kind of map that figure, overlay and map show, as in `map_for`, or "auto": see `shown`.

        Returns:
            `stem_figure.png`, `stem_overlay.png` (`overlay`), `stem_map.npy` (`map_for`) and `stem.json` (`to_dict`).
            None is called `stem.png`: that may be the image itself.

        Raises:
            UserError: the folder cannot be written, or `only` names no such file.
        """
        if not only or not set(only) <= set(FILES) or isinstance(only, str):
            raise UserError(f"`only` is {only!r}; it must name some of {', '.join(FILES)}, as a tuple.")
        base, kind = Path(folder), self.shown(map)
        stem = self.name if stem is None else stem

        def target(file: File, ending: str) -> Path | None:
            return base / f"{stem}{ending}" if file in only else None

        files = Saved(
            target("figure", "_figure.png"), target("overlay", "_overlay.png"), target("map", "_map.npy"),
            target("json", ".json"),
        )  # fmt: skip
        try:
            base.mkdir(parents=True, exist_ok=True)
            if files.figure:
                figure = self.figure(map=kind)
                write_atomic(files.figure, lambda path: figure.savefig(path, format="png", dpi=150))
            if files.overlay:
                overlay = self.overlay(map=kind)
                write_atomic(files.overlay, lambda path: overlay.save(path, format="PNG"))
            if files.map:
                write_array(files.map, self.map_for(kind=kind))
            if files.json:
                text = json.dumps({**self.to_dict(), "shown": kind}) + "\n"
                write_atomic(files.json, lambda path: path.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write the explanation of {self.name} to {base}: {error}") from error
        return files
