"""The engine of one machine: all its cores, and a thread that writes."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from patchconvnet.bulk.parts import PartsFolder
from patchconvnet.bulk.predictor import Predictor
from patchconvnet.bulk.work import Work, parts_of
from patchconvnet.errors import UserError

if TYPE_CHECKING:
    import pyarrow

PARTS_WAITING = 1  # to be written while the next one is computed; beyond, the network waits for the disk


def predict_locally(
    predictor: Predictor,
    work: Work,
    folder: PartsFolder,
    part_size: int,
    *,
    readers: int,
    on_images: Callable[[int], None] | None = None,
    most_failed: int | None = None,
) -> None:
    """Make the parts that are not there yet.

    Args:
        predictor: answers.
        work: the images.
        folder: where the parts are written.
        part_size: images of a part.
        readers: threads that decode.
        on_images: is called with the number of images done, after each pass.
        most_failed: images that may get an error instead of an answer, those of earlier runs included; the part that
            exceeds it is not written.

    Raises:
        UserError: the folder cannot be written, more images failed than may, or a server does not send its images.
    """
    _, failed = folder.progress() if most_failed is not None else (0, 0)
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        writing: deque[Future[None]] = deque()
        parts = parts_of(work, part_size, folder.done())
        for number, count, table in predictor.tables(work, parts, readers=readers):
            if table is not None:
                if most_failed is not None:
                    failed += _check_failed(table, failed, most_failed)
                writing.append(writer.submit(folder.write, number, table))
                while len(writing) > PARTS_WAITING:
                    writing.popleft().result()
            if on_images:
                on_images(count)
        for each in writing:
            each.result()


def _check_failed(table: "pyarrow.Table", before: int, most: int) -> int:
    """How many images of a part failed.

    Raises:
        UserError: with those before them they are more than may.
    """
    errors = [pair for pair in zip(table["id"].to_pylist(), table["error"].to_pylist(), strict=True) if pair[1]]
    if errors and before + len(errors) > most:
        name, why = errors[-1]
        raise UserError(
            f"{before + len(errors):,} images could not be predicted, {most:,} may fail (--max-bad); the last is "
            f"{name}: {why}. Their part is not written; the same command tries it again"
        )
    return len(errors)
