"""The demo of `make demo`: train on handwritten digits, evaluate, explain photographs, say where the figures are."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image
from skimage import data

OUT = Path("demo")
PHOTOGRAPHS = {"cat": data.chelsea, "rocket": data.rocket, "astronaut": data.astronaut, "coffee": data.coffee}


def patchconvnet(*arguments: str | Path) -> None:
    """Run a command as a person would type it, and show what was typed."""
    print(f"\n$ patchconvnet {' '.join(map(str, arguments))}", flush=True)
    subprocess.run([sys.executable, "-m", "patchconvnet", *map(str, arguments)], check=True)


def main() -> None:
    started = time.perf_counter()
    shutil.rmtree(OUT, ignore_errors=True)
    run, photographs = OUT / "digits", OUT / "photographs"
    patchconvnet("train", "--recipe", "digits", "--out", run)
    patchconvnet("evaluate", "--model", run / "best", "--data", "digits", "--out", OUT / "evaluation")
    photographs.mkdir(parents=True)
    for name, photograph in PHOTOGRAPHS.items():
        Image.fromarray(photograph()).save(photographs / f"{name}.png")
    patchconvnet("explain", photographs, "--out", OUT / "explanations")
    print(f"\nDone in {time.perf_counter() - started:.0f} s. Look at:")
    for figure in (
        run / "attention" / "evolution.png",
        run / "attention" / "evolution.gif",
        OUT / "evaluation" / "confusion.png",
        *(OUT / "explanations" / f"{name}_figure.png" for name in PHOTOGRAPHS),
        OUT / "explanations" / "contact_sheet.png",
    ):
        print(f"  {figure}")


if __name__ == "__main__":
    main()
