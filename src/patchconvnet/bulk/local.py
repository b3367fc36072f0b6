"""The engine of one machine: all its cores, and a thread that writes."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from patchconvnet.bulk.parts import PartsFolder
from patchconvnet.bulk.predictor import Predictor
from patchconvnet.bulk.work import Work, parts_of
from patchconvnet.hardware import Threads

PARTS_WAITING = 1  # to be written while the next one is computed; beyond, the network waits for the disk


def predict_locally(
    predictor: Predictor,
    work: Work,
    folder: PartsFolder,
    part_size: int,
    *,
    readers: int,
    threads: Threads | None = None,
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Make the parts that are not there yet.

    Args:
        predictor: answers.
        work: the images.
        folder: where the parts are written.
        part_size: images of a part.
        readers: threads that decode.
        threads: is told how long batches take.
        on_images: is called with the number of images done, after each batch.

    Raises:
        UserError: the folder cannot be written.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
        writing: deque[Future[None]] = deque()
        parts = parts_of(work, part_size, folder.done())
        for number, count, table in predictor.tables(work, parts, readers=readers, threads=threads):
            if table is not None:
                writing.append(writer.submit(folder.write, number, table))
                while len(writing) > PARTS_WAITING:
                    writing.popleft().result()
            if on_images:
                on_images(count)
        for each in writing:
            each.result()
