"""How long the page takes to its first answer, and how many frames of a camera it explains in a second.

python benchmarks/page.py [--models cifar10 imagenet] [--rounds 3] [--seconds 8]

Headless Chromium with a fake camera of 640 × 480, without a GPU, beside the server on the same cores. Each round opens
the page in a fresh profile, so that nothing is in a cache; the first answer is that of a sample, asked for as soon as
the page is ready. "static" is the folder of `export --to web` behind a plain server of files; "isolated" the same with
the headers COOP and COEP, which allow threads; "server" is `patchconvnet serve`.
"""

import argparse
import contextlib
import functools
import http.server
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream"]
ISOLATED = {"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["cifar10", "imagenet"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8, help="that the camera runs in each round")
    parser.add_argument("--onnxruntime-web", help="as for patchconvnet export")
    parser.add_argument("--sites", type=Path, help="folder to keep the exported sites in, or to find them")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        sites = a.sites or Path(temporary)
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        print("| model | page | threads | first answer (s) | live images/s |\n|---|---|---|---|---|")
        for model in a.models:
            site = sites / model
            if not site.is_dir():
                words = ["export", "--model", model, "--to", "web", "--out", str(site)]
                words += ["--onnxruntime-web", a.onnxruntime_web] if a.onnxruntime_web else []
                subprocess.run([sys.executable, "-m", "patchconvnet", *words], check=True, stdout=subprocess.DEVNULL)
            for name, place in (
                ("static", files(site, {})),
                ("isolated", files(site, ISOLATED)),
                ("server", serving(model)),
            ):
                with place as url:
                    visits = [visit(browser, url, a.seconds) for _ in range(a.rounds)]
                firsts, rates, threads = zip(*visits, strict=True)
                first, rate = statistics.median(firsts), statistics.median(rates)
                print(f"| {model} | {name} | {threads[0]} | {first:.2f} | {rate:.1f} |", flush=True)
        browser.close()


def visit(browser: Any, url: str, seconds: float) -> tuple[float, float, str]:
    """Seconds from opening the page to its first answer, frames in a second, and the threads that it computes with."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, permissions=["camera"])
    page = context.new_page()
    page.set_default_timeout(60_000)
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_selector("html[data-ready]")
    page.click("#samples button >> nth=0")
    page.wait_for_selector("#answer:not([hidden])")
    first = time.perf_counter() - began
    found = re.search(r"\d+", page.inner_text("#threads"))
    page.click("#home")
    page.click("#empty .camera")
    page.wait_for_selector("#rate:not(:empty)")
    page.wait_for_timeout(1000 * seconds)
    rate = float(page.get_attribute("#rate", "data-rate"))
    context.close()
    return first, rate, found[0] if found else ""


@contextlib.contextmanager
def files(folder: Path, headers: dict[str, str]) -> Iterator[str]:
    """The address of a plain server of files."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextlib.contextmanager
def serving(model: str) -> Iterator[str]:
    """The address of `patchconvnet serve`, which is ready."""
    words = [sys.executable, "-u", "-m", "patchconvnet", "serve", "--model", model, "--port", "0"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        url = next(found[0] for line in process.stdout if (found := re.search(r"http://\S+", line)))
        threading.Thread(target=process.stdout.read, daemon=True).start()
        try:
            for _ in range(600):  # until its model answers
                with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/v2/health/ready"):
                    break
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
