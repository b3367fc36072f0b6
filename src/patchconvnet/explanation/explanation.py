"""`Explanation`: the maps of one image with their figure and files."""

import io
import json
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, get_args

from patchconvnet.errors import UserError
from patchconvnet.explanation.maps import MapChoice, Maps
from patchconvnet.files import write_array, write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL import Image

    from patchconvnet.explanation.removal import Region, Removal

File = Literal["figure", "overlay", "map", "json"]
FILES = get_args(File)
COMPRESSION = 3  # of PNG: a third of the time that 6 takes, for files a quarter larger


class Saved(NamedTuple):
    """The files that `Explanation.save` wrote; None for those not asked for."""

    figure: Path | None
    overlay: Path | None
    map: Path | None
    json: Path | None
    without: Path | None = None


class Askable(Protocol):
    """One image's forward pass, of which is known what it would have answered without some patches."""

    def without(self, image: "Image.Image", region: "Region") -> "Removal":
        """See `Explanation.without`."""


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Maps):
    """A prediction with its maps (the fields are those of `Maps`), with a figure and files of them.

    Attributes:
        forward_pass: what `without` asks again: the network and this image's patches. None leaves it out.
    """

    forward_pass: "Askable | None" = None

    def without(self, region: "Region") -> "Removal":
        """What if this were gone: the answer without a part of the image.

        The patches of the part are taken out of the pooling, exactly: attention is renormalised over the others, and
        nothing runs a second time but pooling and classifier. Beside it, the part's pixels are made grey and the image
        runs through the whole network again.

        Args:
            region: a mask (H, W) of booleans, a box (left, top, right, bottom) in the image's pixels, or several boxes.
                Patches go whose squares are in it by at least half.

        Raises:
            UserError: it is none of these, covers no patch or all, or `forward_pass` was left out.
        """
        if self.forward_pass is None:
            raise UserError(f"the explanation of {self.name} holds no forward pass to ask again; call explain() anew.")
        return self.forward_pass.without(self.image, region)

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
        without: "Removal | None" = None,
    ) -> Saved:
        """Write figure, overlay, map and JSON; each file is complete or not there.

        Args:
            folder: created where it is missing.
            stem: how the files' names begin; the image's name by default.
            only: which of "figure", "overlay", "map" and "json" to write; a figure takes the longest by far.
            map: the kind of map that figure, overlay and map show, as in `map_for`, or "auto": see `shown`.
            without: what `without` returned: the JSON has it, and a second figure `stem_without.png` shows it.

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
            target("json", ".json"), target("figure", "_without.png") if without else None,
        )  # fmt: skip
        try:
            base.mkdir(parents=True, exist_ok=True)
            if files.figure:
                figure = self.figure(map=kind)
                write_atomic(files.figure, lambda path: _save_figure(figure, path))
            if files.without and without:
                from patchconvnet.explanation.figures import removal_figure

                gone = removal_figure(self, without)
                write_atomic(files.without, lambda path: _save_figure(gone, path))
            if files.overlay:
                overlay = self.overlay(map=kind)
                write_atomic(files.overlay, lambda path: overlay.save(path, format="PNG", compress_level=COMPRESSION))
            if files.map:
                write_array(files.map, self.map_for(kind=kind))
            if files.json:
                record: dict[str, Any] = {**self.to_dict(), "shown": kind}
                if without:
                    record["without"] = without.to_dict(self)
                text = json.dumps(record) + "\n"
                write_atomic(files.json, lambda path: path.write_text(text, encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write the explanation of {self.name} to {base}: {error}") from error
        return files


def _save_figure(figure: "Figure", path: Path) -> None:
    figure.savefig(path, format="png", dpi=150, pil_kwargs={"compress_level": COMPRESSION})
