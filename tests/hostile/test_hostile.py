"""Whatever is given, the answer is a result or a sentence: no traceback, no exit code 1, no character that is obeyed.

The table is `hostile_cases`; what it names is made by `hostile_files`. Its outcome is printed with -s, and written to
the file $HOSTILE_TABLE.
"""

import os
import re
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hostile_cases import CASES, Case
from hostile_files import make

from patchconvnet.cli import main

pytestmark = pytest.mark.slow
OBEYED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
MOST_SECONDS = 120  # of a busy machine
WRITERS = ("train", "explain", "evaluate", "audit", "predict")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile")
    make(root)
    return root


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows = [f"{'group':9} | exit | seconds | words → said"]
    yield rows
    print("\n".join(rows))
    if path := os.environ.get("HOSTILE_TABLE"):
        Path(path).write_text("\n".join(rows) + "\n", errors="backslashreplace")


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(" ".join(case.words))[1:100])
def test_hostile(
    case: Case,
    world: Path,
    table: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(world)
    words = list(case.words)
    if words[:1] == ["export"] and "required: --out" not in case.said and not any(w.startswith("--out") for w in words):
        words.append(f"--out={tmp_path / 'm.onnx'}")
    if len(words) > 1 and words[0] in WRITERS and not {"--out", "--help"} & set(words):
        words.insert(1, f"--out={tmp_path / 'out'}")
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = lambda message, *_, **__: print(message, file=sys.stderr)  # pytest keeps them otherwise
        exit_code = main(words)
    seconds = time.perf_counter() - began
    printed = capsys.readouterr()
    output = printed.out + printed.err
    told = (printed.err or printed.out).strip().splitlines()
    last = told[-1] if told else ""
    row = f"{case.group:9} | {exit_code} | {seconds:5.1f} | {' '.join(case.words)} → {last}"
    table.append(ascii(row)[1:-1][:400])
    assert exit_code in case.exits, output
    assert case.said in output
    assert "Traceback" not in output
    assert not OBEYED.search(output)
    assert "weights_only=False" not in output
    assert seconds < MOST_SECONDS
