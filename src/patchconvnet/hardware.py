"""What the machine has: devices, their names, and the number formats that they compute in."""

import ctypes
import os
import platform
import sys

import torch

from patchconvnet.errors import UserError, first_line

DEVICES = ("cpu", "cuda", "mps", "xpu")


def find_device(name: str = "auto") -> torch.device:
    """The device of that name; "auto" is CUDA's where there is one, else Apple's, else the CPU.

    Raises:
        UserError: no such device is known, or this machine has none.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        known = torch.device(name).type in DEVICES
    except RuntimeError:
        known = False
    if not known:
        raise UserError(
            f"unknown device {name!r}; known: auto, {', '.join(DEVICES)}, or one of several, such as cuda:1"
        )
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch's words for what is not there
        raise UserError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return torch.device(name)


def fastest_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it (twice the matrix rate of float32 on a CPU), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device.type == "cpu" and cpu_has_bfloat16() else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16; where it does not, emulation is several times slower than float32."""
    return _torch_says("_is_avx512_bf16_supported") or cpu_has_matrix_units()


def cpu_has_matrix_units() -> bool:
    """Whether this CPU has Intel's AMX, which multiplies bfloat16 several times faster than AVX-512 does."""
    return _torch_says("_is_amx_tile_supported")


def _torch_says(probe: str) -> bool:
    return bool(getattr(torch.cpu, probe, lambda: False)())


def device_name(device: torch.device) -> str:
    """What a person calls the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{platform.machine()} CPU with {os.cpu_count() or 1} cores" + (" and AMX" if cpu_has_matrix_units() else "")


def keep_freed_memory() -> None:
    """Let the C library keep what is freed, for the next step asks for as much again.

    Given back to the system it comes back page by page: 30,000 page faults and 4 % of a step's time for the Keras
    example's network on a CPU. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, -1)
        mallopt(_M_MMAP_MAX, 0)


_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h
