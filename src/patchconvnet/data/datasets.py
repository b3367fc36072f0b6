"""Data sets by name: `load("cifar10")`, `"cifar100"`, `"digits"`, `"folder:PATH"`, `"csv:FILE"` and other sources."""

import difflib
import os
import string
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR10, CIFAR100

from patchconvnet.data.folders import load_folder
from patchconvnet.data.labelled_images import Images
from patchconvnet.data.sources.fetching import default_root
from patchconvnet.data.sources.listing import Listing
from patchconvnet.data.sources.litdata_chunks import read_litdata
from patchconvnet.data.sources.names import PLACES, is_source, parsed
from patchconvnet.data.sources.tables import read_csv, read_parquet
from patchconvnet.data.sources.tars import read_tars
from patchconvnet.data.splits import DataSplits, set_aside_count, stratified_split
from patchconvnet.errors import UserError

KNOWN = ("cifar10", "cifar100", "digits", "folder:PATH", *(f"{kind}:{place}" for kind, place in PLACES.items()))


def load(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    validation: float | None = None,
    test: float | None = None,
    seed: int = 0,
    strict: bool = False,
    max_bad: str | None = None,
    download: bool = True,
    show_progress: bool = False,
) -> DataSplits:
    """A data set by name.

    Args:
        name: "cifar10", "cifar100", "digits" (scikit-learn's handwritten digits, 8×8, part of that package),
            "folder:PATH" (one folder a class, see `patchconvnet.data.folders`), or another source (see
            `patchconvnet.data.sources.names`).
        root: where CIFAR lies, or is downloaded to; by default $PATCHCONVNET_DATA or ~/.cache/patchconvnet. A relative
            folder:PATH is taken from there too where `root` is given.
        validation: images set aside from the training images, as a fraction below 1 or a number; 0 for none. CIFAR
            gives its last ones (default 10,000, as in the Keras example), digits and folders a stratified choice
            (default 15 % and 10 %). A folder with a validation folder of its own uses that.
        test: the same for digits and for folders without train/ or test/; CIFAR has a test set of its own.
        seed: of the stratified choice.
        strict: whether a file of a folder that is not a readable image is an error; otherwise it is skipped with a
            warning.
        max_bad: how many images may be skipped, as "0.1%" or "20"; more are an error. By default any number of a
            folder's, and none of another source's.
        download: whether CIFAR may be downloaded where it is missing.
        show_progress: whether to draw a progress bar while a folder's images are checked.

    Raises:
        UserError: the name is unknown, the data is not there, or the options don't fit it.
    """
    if name.startswith("folder:"):
        if name == "folder:":
            raise UserError("dataset 'folder:' names no folder; give folder:PATH with one folder a class in it.")
        if "\0" in name:
            raise UserError(f"there is no folder {name.removeprefix('folder:')!r}.")
        path = Path(os.path.expanduser(Path(root or "", name.removeprefix("folder:"))))
        return load_folder(
            path,
            validation=validation,
            test=test,
            seed=seed,
            strict=strict,
            max_bad=max_bad,
            show_progress=show_progress,
        )
    if is_source(name):
        max_bad = "0" if strict else max_bad
        return open_listing(name, root, max_bad).data_set(
            name,
            validation=validation,
            test=test,
            seed=seed,
            max_bad=max_bad,
            show_progress=show_progress,
        )
    if name == "digits":
        return _digits(0.15 if validation is None else validation, 0.15 if test is None else test, seed)
    if name in ("cifar10", "cifar100"):
        if test is not None:
            raise UserError(f"{name} has its own test set; do not give test.")
        return _cifar(name, root, 10_000 if validation is None else validation, download)
    close = difflib.get_close_matches(name, [known.rstrip(string.ascii_uppercase + "_") for known in KNOWN], n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if os.path.isdir(name):
        hint = f" Did you mean 'folder:{name}'?"
    raise UserError(f"unknown dataset {name!r}; known: {', '.join(KNOWN)}.{hint}")


def open_listing(name: str, root: str | os.PathLike[str] | None = None, max_bad: str | None = None) -> Listing:
    """The images that a source lists, before they are divided; a class that is not given is None.

    Args:
        name: of the source, such as "csv:pets.csv?label=breed".
        root: where a relative path in it is taken from.
        max_bad: how many images may be in files that a server does not send, as for `load`.

    Raises:
        UserError: there is no such source, it cannot be read, or the package that reads it is missing.
    """
    source = parsed(name)
    if source.kind == "csv":
        return read_csv(source, root)
    if source.kind == "parquet":
        return read_parquet(source, root)
    if source.kind == "wds":
        return read_tars(source, root, max_bad)
    if source.kind == "litdata":
        return read_litdata(source, root, max_bad)
    from patchconvnet.data.sources.huggingface import read_hf

    return read_hf(source, root)


def _checked_already(reader: Any) -> Any:
    """torchvision's reader without the checksums of all files, which are for both splits and take 0.3 s each time."""
    return type(reader.__name__, (reader,), {"_check_integrity": lambda _: True})


def _cifar(name: str, root: str | os.PathLike[str] | None, validation: float, download: bool) -> DataSplits:
    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = Path(root).expanduser() if root else default_root()
    if folder.name == reader.base_folder:
        folder = folder.parent
    try:
        training = reader(folder, train=True, download=download)
        testing = _checked_already(reader)(folder, train=False)
    except (OSError, RuntimeError, EOFError, tarfile.TarError) as error:
        reason = f"could not be downloaded ({error})" if download else "is missing or damaged there"
        raise UserError(
            f"{name} {reason}: {folder} must hold the folder {reader.base_folder}. Say where it lies with root, or put "
            f"the unpacked {reader.url} there."
        ) from error
    class_names = list(training.classes)
    images, test = (
        Images(
            torch.from_numpy(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2))),
            torch.tensor(part.targets),
            class_names,
        )
        for part in (training, testing)
    )
    kept = len(images) - set_aside_count(validation, len(images), "validation")
    return DataSplits(
        name=name,
        class_names=class_names,
        train=images.subset(slice(kept)),
        validation=images.subset(slice(kept, None)) if kept < len(images) else None,
        test=test,
    )


def _digits(validation: float, test: float, seed: int) -> DataSplits:
    from sklearn.datasets import load_digits  # takes a second to import, which nothing else here needs

    bunch = load_digits()
    values = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8)  # 0..16 → 0..255
    class_names = [str(digit) for digit in bunch.target_names]
    images = Images(values[:, None].repeat(1, 3, 1, 1), torch.from_numpy(bunch.target).to(torch.int64), class_names)
    counts = [set_aside_count(share, len(images), what) for share, what in ((validation, "validation"), (test, "test"))]
    chosen = stratified_split(images.labels, counts, seed)
    for_validation, for_test, for_training = (images.subset(part) if len(part) else None for part in chosen)
    return DataSplits("digits", class_names, for_training, for_validation, for_test)
