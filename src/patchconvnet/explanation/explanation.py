"""`Explanation`: the maps of one image with their figure and files."""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from patchconvnet.errors import UserError
from patchconvnet.explanation import figures
from patchconvnet.explanation.maps import Maps
from patchconvnet.files import write_array, write_atomic


class Saved(NamedTuple):
    """The files that `Explanation.save` wrote."""

    figure: Path
    overlay: Path
    map: Path
    json: Path


@dataclass(frozen=True, eq=False, repr=False)
class Explanation(Maps):
    """A prediction with its maps (the fields are those of `Maps`), with a figure and files of them."""

    def figure(self, *, evidence: int = 3) -> Figure:
        """Original, attended and likeliest classes, and below them the evidence for as many of these as `evidence`."""
        return figures.explanation_figure(self, evidence=evidence)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.figure().savefig(buffer, format="png", dpi=100)
        return buffer.getvalue()

    def save(self, folder: str | os.PathLike[str], stem: str | None = None) -> Saved:
        """Write figure, overlay, map and JSON, each aside first and then renamed.

        Args:
            folder: created where it is missing.
            stem: how the files' names begin; the image's name by default.

        Returns:
            `stem_figure.png`, `stem_overlay.png` (`overlay`), `stem_map.npy` (`map_for`) and `stem.json` (`to_dict`).
            None is called `stem.png`: that may be the image itself.

        Raises:
            UserError: the folder cannot be written.
        """
        base = Path(folder)
        stem = self.name if stem is None else stem
        files = Saved(
            base / f"{stem}_figure.png", base / f"{stem}_overlay.png", base / f"{stem}_map.npy", base / f"{stem}.json"
        )
        figure, overlay = self.figure(), self.overlay()
        try:
            base.mkdir(parents=True, exist_ok=True)
            write_atomic(files.figure, lambda path: figure.savefig(path, format="png", dpi=150))
            write_atomic(files.overlay, lambda path: overlay.save(path, format="PNG"))
            write_array(files.map, self.map_for())
            write_atomic(files.json, lambda path: path.write_text(json.dumps(self.to_dict()) + "\n", encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot write the explanation of {self.name} to {base}: {error}") from error
        return files
