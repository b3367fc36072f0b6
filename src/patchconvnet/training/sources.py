"""Training pictures, uint8 and on the device, for any set of indices: from memory where they fit, else from files."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import PictureFiles, Split

Batch = tuple[Tensor, Tensor]


def batch_source(
    split: Split,
    canvas: Preprocessing,
    device: torch.device,
    *,
    memory_gb: float,
    workers: int,
    show_progress: bool,
) -> Callable[[list[Tensor]], Iterator[Batch]]:
    """Something that, given lists of places in the data set, yields their (images uint8 (B, C, H, W), labels (B,)).

    Args:
        canvas: the size that pictures from files are brought to before augmentation takes its part of them.
        memory_gb: pictures from files are read once and kept on the device while they need no more than this.
        workers: processes that read files.
    """
    if isinstance(split, PictureFiles):
        if not split.fits_in_memory(canvas.size, int(memory_gb * 2**30), canvas.channels):
            return lambda places: _from_files(split, canvas, device, places, workers)
        split = split.to_memory(canvas, workers=workers, show_progress=show_progress)
    images, labels = split.images.to(device), split.labels.to(device)

    def from_memory(places: list[Tensor]) -> Iterator[Batch]:
        for place in places:
            place = place.to(device)
            yield images[place], labels[place]

    return from_memory


def _from_files(
    split: PictureFiles, canvas: Preprocessing, device: torch.device, places: list[Tensor], workers: int
) -> Iterator[Batch]:
    loader = DataLoader(
        split.tensors(canvas.canvas),
        batch_sampler=[place.tolist() for place in places],
        num_workers=workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # or the loader would change the global random state
    )
    for images, labels, _ in loader:
        yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
