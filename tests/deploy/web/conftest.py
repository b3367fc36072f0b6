"""The page in a real browser, from a server and as a static site, and images to show it.

Needs the `chromium` of a Linux distribution (Debian: `apt-get install chromium`); playwright brings no browser here.
"""

import base64
import contextlib
import functools
import http.server
import io
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

import patchconvnet
from patchconvnet import cli
from patchconvnet.models import AttentionClassifier

sys.path.append(str(Path(__file__).parents[1] / "server"))  # running.py starts servers

OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
OPTIONS += ["--disable-component-update", "--use-fake-device-for-media-stream"]
SECONDS = 60_000  # ms, on a busy machine


@dataclass
class Opened:
    """The page in a tab, with what went wrong in it."""

    page: Any
    url: str
    wrong: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def drop(self, content: bytes, name: str = "image.png", kind: str = "image/png") -> None:
        """Drop a file onto the page."""
        self._bring("drop", content, name, kind)

    def paste(self, content: bytes, name: str = "image.png", kind: str = "image/png") -> None:
        """Paste a file into it."""
        self._bring("paste", content, name, kind)

    def _bring(self, event: str, content: bytes, name: str, kind: str) -> None:
        self.page.evaluate(
            """([event, content, name, kind]) => {
                const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
                const data = new DataTransfer();
                data.items.add(new File([bytes], name, { type: kind }));
                const made = event === "drop"
                    ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
                    : new ClipboardEvent("paste", { clipboardData: data, bubbles: true, cancelable: true });
                document.body.dispatchEvent(made);
            }""",
            [event, base64.b64encode(content).decode(), name, kind],
        )

    def answer(self, content: bytes, name: str = "image.png", kind: str = "image/png") -> None:
        """Drop an image and wait for what the page says."""
        self.drop(content, name, kind)
        self.page.wait_for_selector("#answer:not([hidden])", timeout=SECONDS)
        self.page.wait_for_selector("#working", state="hidden", timeout=SECONDS)

    def view(self) -> np.ndarray:
        """(H, W, 3) uint8, what is drawn."""
        text = self.page.evaluate(
            """() => {
                const view = document.getElementById("view");
                return view.toDataURL("image/png").split(",")[1];
            }"""
        )
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))

    def kind(self, name: str) -> None:
        """Choose a kind of map."""
        self.page.locator(f"#kinds input[value={name}]").check(force=True)

    def strength(self, percent: int) -> None:
        """Move the slider."""
        self.page.locator("#strength").fill(str(percent))

    def classes(self) -> dict[str, str]:
        """What is listed: shares by name."""
        return dict(
            self.page.eval_on_selector_all(
                "#classes button",
                "all => all.map((e) => [...e.querySelectorAll('.name, .share')].map((p) => p.innerText))",
            )
        )  # at once, for the camera changes them

    def saved(self, button: str) -> bytes:
        """The file that a button downloads."""
        with self.page.expect_download() as download:
            self.page.click(button)
        return Path(download.value.path()).read_bytes()

    def error(self) -> str:
        """The sentence that is shown."""
        self.page.wait_for_selector("#error:not([hidden])", timeout=SECONDS)
        return self.page.inner_text("#error")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no chromium to open the page with (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The shipped model behind `patchconvnet serve`."""
    pytest.importorskip("fastapi", reason="the server is not installed: pip install 'patchconvnet[serve]'")
    from running import running

    with running() as server:
        yield server.url


@pytest.fixture
def opening(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Opens an address in a tab; afterwards nothing may have gone wrong in it, nor been asked of others."""
    contexts, tabs = [], []

    def open_(url: str, *, wait: bool = True, **options: Any) -> Opened:
        options = {"viewport": {"width": 1280, "height": 860}, "permissions": ["camera"], **options}
        context = browser.new_context(**options)
        contexts.append(context)
        tab = Opened(context.new_page(), url)
        tab.page.set_default_timeout(SECONDS)
        tab.page.on("console", lambda said: said.type in ("error", "warning") and tab.wrong.append(said.text))
        tab.page.on("pageerror", lambda error: tab.wrong.append(str(error)))
        context.on("request", lambda request: tab.asked.append(request.url))
        tab.page.goto(url)
        if wait:
            tab.page.wait_for_selector("html[data-ready]")
        tabs.append(tab)
        return tab

    yield open_
    for context in contexts:
        context.close()
    for tab in tabs:
        assert tab.wrong == []
        assert [url for url in tab.asked if not url.startswith((tab.url, "blob:" + tab.url, "data:image"))] == []


@pytest.fixture(scope="session")
def model() -> AttentionClassifier:
    return patchconvnet.load("cifar10")


def png(image: Image.Image | np.ndarray) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="session")
def cat() -> Image.Image:
    """A photograph, as large as it is drawn."""
    return Image.fromarray(data.chelsea()).resize((640, 426))


@pytest.fixture(scope="session")
def runtime() -> Path:
    """The npm package of onnxruntime-web, from the user's cache or the npm registry."""
    from patchconvnet.deploy import onnxruntime_web

    try:
        onnxruntime_web.runtime_files()
    except patchconvnet.UserError as error:
        pytest.skip(f"there is no onnxruntime-web: {error}")
    return onnxruntime_web.cache_folder() / f"onnxruntime-web-{onnxruntime_web.VERSION}.tgz"


@pytest.fixture(scope="session")
def site(runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model as a static site, exported by the command."""
    out = tmp_path_factory.mktemp("web") / "site"
    words = ["export", "--model", "cifar10", "--to", "web", "--out", str(out), "--onnxruntime-web", str(runtime)]
    assert cli.main(words) == 0
    return out


@contextlib.contextmanager
def serving_files(folder: Path, **headers: str) -> Iterator[str]:
    """The address of a plain server of files, with headers added to its answers."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            super().end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def static_url(site: Path) -> Iterator[str]:
    """The static site behind `http.server`."""
    with serving_files(site) as url:
        yield url
