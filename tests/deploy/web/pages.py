"""A page opened in a browser, what a person does on it, and a plain server of files."""

import base64
import contextlib
import functools
import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

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


def png(image: Image.Image | np.ndarray) -> bytes:
    """An image as a PNG file."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG")
    return buffer.getvalue()


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
