"""What the machine has: devices, their names, the number formats that they compute in, and threads."""

import ctypes
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from patchconvnet.errors import UserError, first_line
from patchconvnet.thread_count import ThreadCount, check_threads

DEVICES = ("cpu", "cuda", "mps", "xpu")
MEASUREMENTS = 7  # of each number of threads, of which the median counts
WORTH_ONE_FEWER = 0.9  # share of the time with more threads that one fewer may take, to be chosen
WORTH_HALF = (
    1.15  # that half of them may take: where twice as many win so little they wait for cores, which slows steps
)
STEPS_COMPARED = 8  # whose median is compared with the best so far
MARKEDLY_SLOWER = 1.5
SECONDS_WITH_FEWER = 60.0  # after which it is measured whether the others can be had again


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


def give_back_freed_memory() -> None:
    """Give the system what is freed and kept, where blocks of other sizes are needed from now on."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if malloc_trim is not None:
        malloc_trim(0)


class Threads:
    """How many threads torch computes with on a CPU: a number, or the fastest by a short measurement ("auto").

    With "auto" it is measured again when `step` finds that steps take markedly longer than they did, and every minute
    while there are fewer threads than there could be. A number set by OMP_NUM_THREADS stands in for "auto". Sums are
    rounded otherwise with another number of threads.

    Args:
        asked: a number, "auto", or None to leave torch as it is.
        device: "auto" leaves threads alone where another device computes.
        say: is told in a line what was chosen.
        known: the number to begin with instead of measuring, such as a resumed run's; passed over where this machine
            has fewer cores.
        measure, clock: for tests: seconds of some work with so many threads; the time in seconds.

    Raises:
        UserError: not a number of threads.
    """

    def __init__(
        self,
        asked: ThreadCount | None,
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
        *,
        known: int | None = None,
        measure: Callable[[int], float] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        check_threads(asked)
        self._say, self._measure, self._clock = say, measure, clock
        self._best, self._recent = float("inf"), list[float]()
        self.most = self.count = torch.get_num_threads()
        self.is_automatic = (
            asked == "auto"
            and torch.device(device).type == "cpu"
            and "OMP_NUM_THREADS" not in os.environ
            and self.most > 1
        )
        if isinstance(asked, int):
            self._set(asked)
        elif self.is_automatic and known is not None and known <= self.most:
            self._set(known)
        elif self.is_automatic:
            self._choose()
        self.begin()

    def begin(self) -> None:
        """Count the next step's time from now: something else was done since the last one."""
        self._last = self._clock()

    def step(self) -> None:
        """A step is done; all take about equally long."""
        if not self.is_automatic:
            return
        now = self._clock()
        self._recent.append(now - self._last)
        self._last = now
        if len(self._recent) < STEPS_COMPARED:
            return
        median = statistics.median(self._recent)
        self._recent.clear()
        self._best = min(median, self._best)
        was_slowed = median > MARKEDLY_SLOWER * self._best
        if was_slowed or (self.count < self.most and now - self._chosen > SECONDS_WITH_FEWER):
            self._choose(f"steps take {median / self._best:.1f} times as long as before: " if was_slowed else "")
            self.begin()

    def _choose(self, reason: str | None = None) -> None:
        """Measure and set; `reason` is why it is done again, and then only a change is worth a line."""
        before, (count, seconds) = self.count, fastest_threads(self.most, self._measure or seconds_with)
        self._set(count)
        if reason is None or count != before:
            others = ", ".join(f"{n}: {s / seconds[count]:.2f}" for n, s in seconds.items() if n != count)
            self._say(f"{reason or ''}computing on {_threads(count)} (time by number of threads, {count}: 1, {others})")

    def _set(self, count: int) -> None:
        torch.set_num_threads(count)
        self.count = count
        self._chosen = self._clock()
        self._best = float("inf")
        self._recent.clear()


def fastest_threads(most: int, measure: Callable[[int], float]) -> tuple[int, dict[int, float]]:
    """The number of threads that is fastest, and the seconds of those that were tried.

    All, one fewer (for a core that something else keeps busy), a half, a quarter, … as long as that helps (a container
    may have a share of the cores that it sees). Each is measured in turn with all, so that what else the machine does
    slows both.
    """
    seconds: dict[int, float] = {}
    best = most
    for count in dict.fromkeys([most - 1, *(most >> k for k in range(1, most.bit_length()))]):
        pairs = [(measure(best), measure(count)) for _ in range(MEASUREMENTS)]
        seconds[best], seconds[count] = (statistics.median(column) for column in zip(*pairs, strict=True))
        if seconds[count] < seconds[best] * (WORTH_HALF if 2 * count <= most else WORTH_ONE_FEWER):
            best = count
        elif count < most - 1:
            break
    return best, seconds


def seconds_with(threads: int) -> float:
    """Seconds of work like a network's, with matrix products and what lies between them; leaves torch as it was."""
    before = torch.get_num_threads()
    dtype = fastest_dtype(torch.device("cpu"))
    torch.set_num_threads(threads)
    try:
        with torch.no_grad():
            values, weight = torch.ones(2048, 256, dtype=dtype), torch.full((256, 256), 0.01, dtype=dtype)
            values @ weight  # starts the threads
            started = time.perf_counter()
            for _ in range(6):
                values = F.gelu(F.layer_norm(values @ weight, (256,)) + values)
            return time.perf_counter() - started
    finally:
        torch.set_num_threads(before)


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"
