"""A file of a state dict, by safetensors: of a convolution that is symmetric in a mirror, half is written.

`model.mirror` trains such convolutions (see `mirror.py`): the filters of the second half of their output channels are
those of the first half mirrored, over inputs of exchanged halves. All else is as safetensors writes it.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

# in the file's own header: names, one a line, of the tensors of which it holds the first half of the output channels
MIRRORED = "mirrored"


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> list[str]:
    """Write a state dict, which `read_tensors` gives back.

    Returns:
        the names of the tensors of which half is written.

    Raises:
        SafetensorError: it cannot be written.
    """
    mirrored = [name for name, value in state.items() if _is_symmetric(value)]
    stored = {name: _first_half(value) if name in mirrored else value for name, value in state.items()}
    about = {MIRRORED: "\n".join(mirrored)} if mirrored else None
    save_file({name: value.contiguous() for name, value in stored.items()}, path, about)
    return mirrored


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a file of safetensors, whoever wrote it.

    Raises:
        OSError: it cannot be read.
        SafetensorError: it is no such file, or not whole.
    """
    state = load_file(path)
    with safe_open(path, "pt") as file:
        mirrored = ((file.metadata() or {}).get(MIRRORED) or "").splitlines()
    for name in mirrored:
        if name in state and _can_be_symmetric(half := state[name]):
            state[name] = torch.cat([half, _mirrored(half)])
    return state


def _is_symmetric(value: Tensor) -> bool:
    if not _can_be_symmetric(value) or len(value) % 2 or not value.any():
        return False
    return torch.equal(_mirrored(_first_half(value)), value[len(value) // 2 :])


def _can_be_symmetric(value: Tensor) -> bool:
    """Whether it is a dense convolution's, over two halves of channels."""
    return value.ndim == 4 and value.shape[1] % 2 == 0


def _first_half(value: Tensor) -> Tensor:
    return value[: len(value) // 2]


def _mirrored(value: Tensor) -> Tensor:
    """Filters (O, I, kh, kw) mirrored, over inputs of exchanged halves."""
    return value.roll(value.shape[1] // 2, 1).flip(-1)
