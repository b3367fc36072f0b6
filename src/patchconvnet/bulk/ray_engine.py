"""The engine of a Ray cluster: Ray Data hands out parts to a pool of actors, each of which writes those it gets.

A part's file is renamed into place as a whole, whoever makes it and however often, so that what Ray tries again after
a lost node leaves neither a missing nor a double row, and a second start passes over the parts that are there. Ray
Data's own `CheckpointConfig` is not needed for that: it is beta, reads all input again when it resumes, and holds all
ids in memory (ray-project/ray #65891).
"""

import os
import pickle
from collections.abc import Callable, Mapping

import numpy as np

from patchconvnet.bulk.parts import PartsFolder
from patchconvnet.bulk.predictor import ModelChoice, Predictor, Settings
from patchconvnet.bulk.work import Part, Work, parts_of
from patchconvnet.errors import UserError, first_line


class PartMaker:
    """An actor: one model on one core or GPU, and the parts that Ray Data gives it.

    Args:
        choice, settings: of the model.
        work: reads the images; every node must reach them.
        folder: where the parts are written; every node must reach it.
    """

    def __init__(self, choice: ModelChoice, settings: Settings, work: Work, folder: PartsFolder):
        import torch

        torch.set_num_threads(max(int(os.environ.get("OMP_NUM_THREADS", "1")), 1))  # Ray sets it to the actor's CPUs
        self._predictor = Predictor(choice, settings)
        self._work, self._folder = work, folder

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Make the parts of a batch; returns how many images each has."""
        parts = [Part(int(n), pickle.loads(items)) for n, items in zip(batch["part"], batch["items"], strict=True)]
        missing = [part for part in parts if not self._folder.has(part.number)]  # tried again after a lost node
        for number, _, table in self._predictor.tables(self._work, missing):
            if table is not None:
                self._folder.write(number, table)
        return {"part": batch["part"], "images": np.array([len(part.items) for part in parts])}


def predict_on_ray(
    choice: ModelChoice,
    settings: Settings,
    work: Work,
    folder: PartsFolder,
    part_size: int,
    *,
    actors: int | None = None,
    on_images: Callable[[int], None] | None = None,
) -> None:
    """Make the parts that are not there yet, on the cluster that $RAY_ADDRESS names, or on this machine.

    Args:
        choice, settings: of the model.
        work: the images.
        folder: where the parts are written.
        part_size: images of a part.
        actors: how many models answer at the same time; by default one for each GPU, or for each CPU where there is
            none.
        on_images: is called with the number of images done, after each part.

    Raises:
        UserError: Ray is not installed, or gave up.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise UserError("--engine ray needs Ray Data: pip install 'patchconvnet[ray]'") from error
    parts = [
        {"part": part.number, "items": pickle.dumps(part.items)} for part in parts_of(work, part_size, folder.done())
    ]
    if not parts:
        return
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(log_to_driver=False)
    try:
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        pool = min(actors or gpus or int(resources.get("CPU", 1)) or 1, len(parts))
        made = ray.data.from_items(parts, override_num_blocks=min(len(parts), 100 * pool)).map_batches(
            PartMaker,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=pool)
            if actors
            else ray.data.ActorPoolStrategy(min_size=1, max_size=pool),
            num_cpus=None if gpus else 1,
            num_gpus=1 if gpus else None,
            fn_constructor_kwargs={"choice": choice, "settings": settings, "work": work, "folder": folder},
        )
        for batch in made.iter_batches(batch_size=1, prefetch_batches=0):
            if on_images:
                on_images(int(batch["images"].sum()))
    except ray.exceptions.RayError as error:
        raise UserError(
            f"Ray gave up: {first_line(error)}; the same command goes on with the parts that are missing"
        ) from error
    finally:
        if started_here:
            ray.shutdown()
