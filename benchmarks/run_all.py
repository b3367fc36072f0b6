"""Run the speed benchmarks one after another and write their table into docs/benchmarks.md.

    python benchmarks/run_all.py [--only NAME …] [--keras-python PATH] [--threads N] [--beside MACHINE]

Every script leaves its results, raw timings included, as JSON in docs/benchmarks/; a script that is not run keeps the
ones it has. A further machine has a folder of its own there and a column in the table. Close everything else first:
with one of two cores busy, two threads are several times slower than one.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from patchconvnet.files import write_atomic

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"
RESULTS = DOCS / "benchmarks"
KERAS = ("example_training", "example_inference", "busy_neighbour")
SCRIPTS = (*KERAS, "epoch", "s60_inference", "maps", "image_size", "training_memory")
BEGIN, END = "<!-- speed: made by benchmarks/run_all.py -->", "<!-- end of speed -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="these scripts (default: all)")
    parser.add_argument("--keras-python", default=os.environ.get("KERAS_PYTHON"), help="has keras and tensorflow")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender")
    parser.add_argument("--beside", metavar="MACHINE", help="a further machine: its folder in docs/benchmarks")
    a = parser.parse_args()
    kept = RESULTS / (a.beside or "")
    kept.mkdir(parents=True, exist_ok=True)
    for name in a.only:
        print(f"{name} …", flush=True)
        keras = ["--keras-python", a.keras_python] if name in KERAS and a.keras_python else []
        command = [sys.executable, str(HERE / f"{name}.py"), "--threads", str(a.threads), *keras]
        environment = {**os.environ, "OMP_NUM_THREADS": str(a.threads)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        result = json.loads(done.stdout.splitlines()[-1])
        write_text(kept / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(table({name: result}), flush=True)
    replace_between(DOCS / "benchmarks.md", BEGIN, END, table(*stored()))


def stored() -> list[dict[str, dict[str, Any]]]:
    """The results in docs/benchmarks/, script by script: the first machine's, then those of its folders by name."""
    folders = [RESULTS, *sorted(path for path in RESULTS.iterdir() if path.is_dir())]
    return [
        {name: json.loads(path.read_text()) for name in SCRIPTS if (path := folder / f"{name}.json").is_file()}
        for folder in folders
    ]


def replace_between(page: Path, begin: str, end: str, made: str) -> None:
    """Puts what was made between a page's two marks."""
    text = page.read_text()
    if begin not in text or end not in text:
        sys.exit(f"{page} has no lines {begin} and {end}; write them where the table belongs")
    write_text(page, f"{text.split(begin)[0]}{begin}\n\n{made}\n\n{end}{text.split(end)[1]}")
    print(f"written: {page}")


def write_text(path: Path, text: str) -> None:
    """Atomic: the file is complete or as it was."""
    write_atomic(path, lambda part: part.write_text(text))


def table(*machines: dict[str, dict[str, Any]]) -> str:
    """One column of ratios for each machine's results, then what they were measured on.

    Args:
        machines: for each machine, each script's result as `measuring.report` prints it.
    """
    names = [_machine(results) for results in machines]
    measured: dict[tuple[Any, ...], list[str]] = {}
    for column, results in enumerate(machines):
        for row in (row for result in results.values() for row in result["rows"]):
            key = (row["what"], row["against"], row["aim"], row["at_most"])
            measured.setdefault(key, ["–"] * len(machines))[column] = _cell(row)
    lines = [f"| what | against | aim | {' | '.join(names)} |", "|" + "---|" * (3 + len(names))]
    for (what, against, aim, at_most), cells in measured.items():
        wanted = "stated" if aim is None else f"{'≤' if at_most else '≥'} {aim:g}"
        lines.append(f"| {what} | {against} | {wanted} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n\n" + "\n".join(line for results in machines for line in _where(results))


def _machine(results: dict[str, dict[str, Any]]) -> str:
    return " / ".join(dict.fromkeys(str(result["setup"]["machine"]) for result in results.values()))


def _cell(row: dict[str, Any]) -> str:
    """Median and quartiles, and whether the aim is met."""
    measured = row["measured"]
    if not isinstance(measured, str):
        measured = "**{median:.3g}** ({low:.3g} to {high:.3g})".format(**measured)
    return measured + {True: " ✓", False: " ✗", None: ""}[row["met"]]


def _where(results: dict[str, dict[str, Any]]) -> list[str]:
    """Date, threads and versions, once for all scripts that share them."""
    scripts: dict[str, list[str]] = {}
    for name, result in results.items():
        scripts.setdefault(", ".join(f"{key} {value}" for key, value in result["setup"].items()), []).append(name)
    return [f"- {', '.join(f'`{name}`' for name in names)}: {setup}" for setup, names in scripts.items()]


if __name__ == "__main__":
    main()
