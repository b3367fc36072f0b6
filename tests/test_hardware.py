"""Threads: how they wait for one another, how many there are, and when that is measured again."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch

from patchconvnet.cli import main
from patchconvnet.errors import UserError
from patchconvnet.hardware import MARKEDLY_SLOWER, STEPS_COMPARED, Threads, fastest_threads, seconds_with


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a machine with four cores where OMP_NUM_THREADS says nothing."""
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


class Machine:
    """Seconds of a piece of work by number of threads, which a test may change, and a clock that a test moves."""

    def __init__(self, **seconds: float):
        self.seconds = {int(name.removeprefix("with_")): value for name, value in seconds.items()}
        self.time = 0.0
        self.measured: list[int] = []
        self.lines: list[str] = []

    def measure(self, threads: int) -> float:
        self.measured.append(threads)
        return self.seconds[threads]

    def threads(self, asked: int | str | None = "auto", **options: object) -> Threads:
        return Threads(asked, "cpu", self.lines.append, measure=self.measure, clock=lambda: self.time, **options)  # type: ignore[arg-type]

    def steps(self, threads: Threads, count: int, seconds: float) -> None:
        for _ in range(count):
            self.time += seconds
            threads.step()


def what_libgomp_read(*words: str, **environment: str) -> dict[str, str]:
    """What torch's OpenMP says of its settings when a command loads it."""
    kept = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-m", "patchconvnet", *words], capture_output=True, text=True,
        env={**kept, **environment, "OMP_DISPLAY_ENV": "VERBOSE"},
    )  # fmt: skip
    assert done.returncode == 2  # there is no such model
    assert "Traceback" not in done.stderr
    pairs = (line.split(" = ") for line in done.stderr.splitlines() if " = '" in line)
    found = {name.split()[-1]: value.strip("'") for name, value in pairs}
    if "GOMP_SPINCOUNT" not in found:
        pytest.skip("torch's OpenMP here is not GNU's")
    return found


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ("train", "--recipe", "digits", "--model.name", "nope", "--out", os.devnull), marks=pytest.mark.slow
        ),
        ("evaluate", "--model", "nope", "--data", "digits"),
        pytest.param(("audit", "--model", "nope", "--data", "digits"), marks=pytest.mark.slow),
        ("explain", __file__, "--model", "nope", "--out", os.devnull),
    ],
    ids=["train", "evaluate", "audit", "explain"],
)
def test_threads_of_a_command_wait_without_spinning(words: tuple[str, ...]) -> None:
    assert what_libgomp_read(*words)["GOMP_SPINCOUNT"] == "0"


@pytest.mark.slow
def test_how_a_user_lets_threads_wait_stands() -> None:
    words = ("evaluate", "--model", "nope", "--data", "digits")
    assert what_libgomp_read(*words, GOMP_SPINCOUNT="77")["GOMP_SPINCOUNT"] == "77"
    active = what_libgomp_read(*words, OMP_WAIT_POLICY="active")
    assert active["OMP_WAIT_POLICY"] == "ACTIVE"
    assert int(active["GOMP_SPINCOUNT"]) > 1_000_000


def test_the_fastest_number_of_threads() -> None:
    assert fastest_threads(2, {2: 1.0, 1: 1.8}.__getitem__) == (2, {2: 1.0, 1: 1.8})
    assert fastest_threads(2, {2: 4.5, 1: 2.2}.__getitem__)[0] == 1
    assert fastest_threads(2, {2: 1.0, 1: 1.1}.__getitem__)[0] == 1  # the second waits for a core most of the time
    assert fastest_threads(2, {2: 1.0, 1: 1.2}.__getitem__)[0] == 2
    assert fastest_threads(4, {4: 1.0, 3: 0.95, 2: 1.2}.__getitem__)[0] == 4  # too little to tell
    assert fastest_threads(16, lambda threads: 1 / threads)[0] == 16
    assert fastest_threads(4, {4: 2.0, 3: 1.3, 2: 1.5}.__getitem__)[0] == 3  # one core has other work
    # a container that sees 16 cores and has a share of 2
    assert fastest_threads(16, lambda threads: {1: 2.0, 2: 1.0}.get(threads, float(threads)))[0] == 2


def test_a_slow_moment_does_not_decide() -> None:
    seconds = {2: iter([1.0, 9.0, 1.0, 1.0, 9.0, 1.0, 1.0]), 1: iter([1.8] * 7)}
    assert fastest_threads(2, lambda threads: next(seconds[threads]))[0] == 2


@pytest.mark.usefixtures("four_threads")
def test_the_choice_is_set_and_said_in_one_line() -> None:
    machine = Machine(with_4=3.0, with_3=2.0, with_2=1.0, with_1=1.5)
    assert machine.threads().count == torch.get_num_threads() == 2
    (line,) = machine.lines
    assert line == "computing on 2 threads (time by number of threads, 2: 1, 4: 3.00, 3: 2.00, 1: 1.50)"


@pytest.mark.usefixtures("four_threads")
def test_a_number_is_taken_as_it_is() -> None:
    machine = Machine()
    threads = machine.threads(3)
    assert threads.count == torch.get_num_threads() == 3
    machine.steps(threads, 100, 1.0)
    machine.steps(threads, 100, 9.0)
    assert machine.threads(None).count == 3
    assert not machine.measured
    assert not machine.lines


@pytest.mark.usefixtures("four_threads")
def test_nothing_is_measured_where_it_is_known_or_not_ours_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine()
    assert machine.threads(known=3).count == torch.get_num_threads() == 3
    torch.set_num_threads(4)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert machine.threads().count == torch.get_num_threads() == 4
    assert machine.threads(known=2).count == 4
    assert machine.threads(2).count == 2  # typed, and so nearer than the environment
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert not Threads("auto", "cuda", machine.lines.append, measure=machine.measure).is_automatic
    assert not machine.measured
    assert not machine.lines


@pytest.mark.usefixtures("four_threads")
def test_it_is_measured_again_when_steps_become_slow() -> None:
    machine = Machine(with_4=1.0, with_3=1.3, with_2=2.0)
    threads = machine.threads()
    assert threads.count == 4
    machine.measured.clear()
    machine.steps(threads, 5 * STEPS_COMPARED, 1.0)
    machine.steps(threads, STEPS_COMPARED, 0.95 * MARKEDLY_SLOWER)
    assert not machine.measured
    machine.seconds[4] = 7.0  # a browser
    machine.steps(threads, STEPS_COMPARED, 7.0)
    assert threads.count == torch.get_num_threads() == 3
    assert machine.lines[1].startswith("steps take 7.0 times as long as before: computing on 3 threads (")
    machine.measured.clear()
    machine.steps(threads, STEPS_COMPARED, 1.3)  # the new normal
    assert not machine.measured


@pytest.mark.usefixtures("four_threads")
def test_one_slow_step_is_no_reason_and_neither_is_what_comes_between() -> None:
    machine = Machine(with_4=1.0, with_3=1.3, with_2=2.0)
    threads = machine.threads()
    machine.measured.clear()
    for _ in range(5):
        machine.steps(threads, STEPS_COMPARED - 1, 1.0)
        machine.steps(threads, 1, 50.0)
    machine.time += 1000  # validation
    threads.begin()
    machine.steps(threads, STEPS_COMPARED, 1.0)
    assert not machine.measured


@pytest.mark.usefixtures("four_threads")
def test_all_threads_come_back_when_the_machine_is_quiet_again() -> None:
    machine = Machine(with_4=5.0, with_3=4.0, with_2=1.0, with_1=1.9)
    threads = machine.threads()
    assert threads.count == 2
    machine.seconds |= {4: 0.5, 3: 0.7}
    machine.steps(threads, 2 * STEPS_COMPARED, 1.0)
    assert threads.count == 2  # not a minute yet
    machine.steps(threads, 60, 1.0)
    assert threads.count == torch.get_num_threads() == 4
    assert len(machine.lines) == 2


@pytest.mark.usefixtures("four_threads")
def test_the_measurement_computes_and_leaves_torch_as_it_was() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert 0 < seconds_with(1) < 30
    assert torch.get_num_threads() == 4
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("asked", ["0", "-3", "100000"])
def test_too_few_and_too_many_threads_are_refused(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["evaluate", "--data", "digits"], ["audit", "--data", "digits"], ["explain", __file__]):
        assert main([*words, "--model", "cifar10", f"--threads={asked}"]) == 2
        assert f"threads is {asked}; give a number from 1 to 1024, or auto" in capsys.readouterr().err
    assert main(["evaluate", "--data", "digits", "--model", "cifar10", "--threads", "many"]) == 2
    assert "--threads: expected a whole number or one of auto, not many" in capsys.readouterr().err
    with pytest.raises(UserError, match="threads is"):
        Threads(int(asked))
