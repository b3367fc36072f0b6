"""Network inputs in batches, for evaluation and explanation: the same tensors wherever the images lie."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Subset

from patchconvnet.data.labelled_images import Images, in_batches
from patchconvnet.data.preprocessing import Preprocessing
from patchconvnet.data.splits import Split


def batches(
    split: Split,
    preprocessing: Preprocessing,
    batch_size: int,
    *,
    device: torch.device | str = "cpu",
    indices: Tensor | Sequence[int] | None = None,
    workers: int = 0,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The images of a split, in order.

    Args:
        split: images in memory, which are preprocessed on the device, or files.
        preprocessing: from image to network input.
        batch_size: images at a time; the last batch may hold fewer.
        device: where the tensors go.
        indices: which images, in which order; all by default.
        workers: processes that read files; 0 reads in this one. Images in memory need none.

    Yields:
        (images (B, C, h, w) float32, labels (B,) int64, indices (B,) int64), all on the device.
    """
    chosen = torch.arange(len(split)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
    if isinstance(split, Images):
        for part in chosen.split(batch_size):
            images = preprocessing.batch(split.images[part].to(device))
            yield images, split.labels[part].to(device), part.to(device)
        return
    chosen_files = Subset(split.tensors(preprocessing), chosen.tolist())
    for images, labels, part in in_batches(chosen_files, workers, batch_size=batch_size):
        yield images.to(device), labels.to(device), part.to(device)
