"""The cost of an audit, counted and measured; and what is said of its progress, on a terminal and without one."""

import io
import threading
import time

import pytest
import torch
from rich.console import Console
from torch import nn

from patchconvnet.faithfulness import progress as progress_module
from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.metrics import METRICS
from patchconvnet.faithfulness.metrics.ends import Ends
from patchconvnet.faithfulness.progress import Cost, Progress, duration, estimated_cost, seconds_of_a_pass
from patchconvnet.faithfulness.settings import AuditSettings


class Counting(nn.Module):
    """Counts the images that pass through it."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.lock = threading.Lock()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.images += len(images)
        return images.mean((2, 3))


@pytest.mark.parametrize("name", ["rise", "centre"])
@pytest.mark.parametrize("measures", [("deletion",), ("deletion", "insertion", "road"), ("stability",)])
def test_the_cost_is_the_number_of_passes(name, measures):
    """Counted by a network, beside what the records say: one pass is one second here."""
    settings = AuditSettings(
        methods=(name,), robustness_methods=(name,), measures=measures, rise_masks=8, steps=4, forward_batch=16
    )
    metrics = [METRICS[measure] for measure in measures]
    cost = estimated_cost(1.0, 1.0, (8, 8), settings, [METHODS[name]], metrics)
    model = Counting()
    images, classes = torch.rand(2, 3, 8, 8), torch.zeros(2, 1, dtype=torch.int64)
    from patchconvnet.faithfulness.metrics import Case

    if measures == ("stability",):
        case = Case(model, METHODS[name], images, classes, settings.options, 4, None, images.new_zeros(0), [])
        expected = cost.repeated[name]
    else:
        attribution = METHODS[name](model, images, classes, settings.options)
        maps = attribution.pixels((8, 8))
        ends = Ends(model, images, 16)
        case = Case(model, METHODS[name], images, classes, settings.options, 4, attribution, maps, [], ends=ends)
        expected = cost.maps[name]
        counted = model.images
        assert len(ends.original) == len(ends.blurred) == len(ends.removed) == 2  # once for all methods
        assert model.images == counted + 2 + 2 + 1
        model.images = counted
    for metric in metrics:
        metric.compute(case)
    assert model.images == pytest.approx(2 * expected, abs=0.1)


def test_the_seconds_of_a_pass_are_measured():
    class Sleepy(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            time.sleep(0.02)
            return images[:, :, 0, 0]

    assert seconds_of_a_pass(Sleepy(), torch.zeros(4, 1, 1, 1)) == pytest.approx(0.005, rel=0.5)


def test_costs_add_up():
    cost = Cost(0.5, {"a": 2.0, "b": 3.0}, {2: {"a": 10.0}, 3: {"a": 20.0}}, {"a": 7.0})
    assert cost.total(predicted=4, explained=2, mosaics=1, repeated=3) == 2 + 10 + 30 + 21


def test_what_is_there_costs_nothing_again():
    cost = Cost(0.5, {"a": 2.0, "b": 3.0}, {2: {"a": 10.0}}, {"a": 7.0})
    keys = [("prediction", None, None, 0), ("maps", "b", None, 0), ("mosaics", "a", 2, 0), ("repeated", "a", None, 0)]
    assert cost.of(keys) == 0.5 + 3 + 10 + 7
    stream = io.StringIO()
    with Progress(True, cost, 60.5, Console(file=stream)).started_after(cost.of(keys)):
        pass
    assert stream.getvalue() == "estimated time: 40 s, for what is not measured yet\n"


def written(terminal: bool, steps: int = 200) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, highlight=False)
    with Progress(True, Cost(), 100.0, console) as progress:
        for _ in range(steps):
            progress.at("maps: Evidence")
            progress.advance(100 / steps)
    return stream.getvalue()


def test_without_a_terminal_there_is_a_line_for_each_twentieth():
    lines = written(terminal=False).splitlines()
    assert lines[0] == "estimated time: 2 min"
    assert 19 <= len(lines) <= 22
    assert lines[1].startswith("  5%  maps: Evidence, ")
    assert all(line.endswith("left") for line in lines[1:])


def test_without_a_terminal_there_is_a_line_at_least_every_ten_seconds(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Progress(True, Cost(), 1e6, Console(file=stream)) as progress:
        for _ in range(60):
            now[0] += 1
            progress.advance(1.0)
    assert len(stream.getvalue().splitlines()) == 1 + 6


def test_without_a_terminal_there_are_lines_while_one_thing_takes_long(monkeypatch):
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 0.05)
    stream = io.StringIO()
    with Progress(True, Cost(), 100.0, Console(file=stream, width=100)) as progress:
        progress.advance(50.0)
        progress.at("maps: RISE")
        before = len(stream.getvalue().splitlines())
        time.sleep(0.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= before + 3
    assert lines[-1].startswith(" 50%  maps: RISE, ")


def test_the_time_left_goes_down_while_one_thing_takes_long(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    with Progress(False, Cost(), 100.0) as progress:
        now[0] = 20.0
        progress.advance(50.0)
        assert progress.seconds_left == 20
        now[0] = 26.0
        assert progress.seconds_left == 14
        now[0] = 50.0
        assert progress.seconds_left == 0


def test_the_time_left_is_known_from_the_start():
    assert "-:--:--" not in written(terminal=True)
    progress = Progress(False, Cost(), 50.0)
    assert progress.seconds_left == 50
    progress.skip(20)
    assert progress.seconds_left == 30


def test_it_is_silent_where_it_should_be(capsys):
    with Progress(False, Cost(), 10.0) as progress:
        progress.at("maps")
        progress.advance(10)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "less than a second"), (12.4, "12 s"), (200, "3 min"), (7500, "2 h 5 min")],
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words
