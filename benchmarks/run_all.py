"""Run the speed benchmarks one after another and write their tables into docs/benchmarks.md.

    python benchmarks/run_all.py [--only NAME …] [--keras-python PATH] [--threads N] [--beside MACHINE]

Every script leaves its JSON in docs/benchmarks/; a script that is not run keeps the one it has. The tables stand
between `<!-- speed -->` marks, what is said about them around those. A second machine's figures go beside the first's.
Close everything else: one busy neighbour on two cores makes two threads several times slower than one.
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
KERAS = ("example_training", "example_inference")
SCRIPTS = (*KERAS, "epoch", "s60_inference", "maps", "image_size", "training_memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="these scripts (default: all)")
    parser.add_argument("--keras-python", default=os.environ.get("KERAS_PYTHON"), help="has keras and tensorflow")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each contender")
    parser.add_argument("--beside", metavar="MACHINE", help="its own folder of docs/benchmarks and marks on the page")
    a = parser.parse_args()
    kept = RESULTS / (a.beside or "")
    begin, end = marks(a.beside)
    page = DOCS / "benchmarks.md"
    if begin not in page.read_text():
        sys.exit(f"{page} has no line {begin}; write it, and {end} below it, where the table shall stand")
    kept.mkdir(parents=True, exist_ok=True)
    for name in a.only:
        print(f"{name} …", flush=True)
        keras = ["--keras-python", a.keras_python] if name in KERAS and a.keras_python else []
        command = [sys.executable, str(HERE / f"{name}.py"), "--threads", str(a.threads), *keras]
        environment = {**os.environ, "OMP_NUM_THREADS": str(a.threads)}
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        result = json.loads(done.stdout.splitlines()[-1])
        write_text(kept / f"{name}.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        print(table(result["rows"]), flush=True)
    text = page.read_text()
    before, after = text.split(begin)[0], text.split(end)[1]
    results = {name: json.loads(path.read_text()) for name in SCRIPTS if (path := kept / f"{name}.json").is_file()}
    write_text(page, f"{before}{begin}\n\n{tables(results)}\n\n{end}{after}")
    print(f"written: {page}")


def marks(beside: str | None = None) -> tuple[str, str]:
    """What the page's tables stand between: the first machine's, or those of one beside it."""
    where = f" on {beside}" if beside else ""
    return f"<!-- speed{where}: made by benchmarks/run_all.py -->", f"<!-- end of speed{where} -->"


def write_text(path: Path, text: str) -> None:
    """Whole or not at all."""
    write_atomic(path, lambda part: part.write_text(text))


def tables(results: dict[str, dict[str, Any]]) -> str:
    """The table of aims, then where and when each script ran and the seconds of each contender."""
    parts = [table([row for result in results.values() for row in result["rows"]])]
    for name, result in results.items():
        where = ", ".join(f"{key} {value}" for key, value in result["setup"].items())
        lines = [f"**`benchmarks/{name}.py`** ({where})", ""]
        lines += [f"- {contender}: {1000 * value:,.1f} ms" for contender, value in result["seconds"].items()]
        lines += [f"- {fact}: {_short(value)}" for fact, value in result["facts"].items()]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def table(rows: list[dict[str, Any]]) -> str:
    """Rows as `measuring.row` makes them."""
    lines = ["| what | against | aim | measured (quartiles) | met |", "|---|---|---|---|---|"]
    for row in rows:
        aim = "stated" if row["aim"] is None else f"{'≤' if row['at_most'] else '≥'} {row['aim']:g}"
        measured = row["measured"]
        if not isinstance(measured, str):
            measured = "**{median:.3g}** ({low:.3g} to {high:.3g})".format(**measured)
        met = {True: "yes", False: "no", None: "–"}[row["met"]]
        lines.append(f"| {row['what']} | {row['against']} | {aim} | {measured} | {met} |")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(item)}" for key, item in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
