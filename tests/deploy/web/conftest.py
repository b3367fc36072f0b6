"""The page in a real browser, from a server and as a static site, and images to show it.

Needs the `chromium` of a Linux distribution (Debian: `apt-get install chromium`); playwright brings no browser here.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import SECONDS, Opened, serving_files
from PIL import Image
from skimage import data

import patchconvnet
from patchconvnet import cli
from patchconvnet.models import AttentionClassifier

sys.path.append(str(Path(__file__).parents[1] / "server"))  # running.py starts servers

OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
OPTIONS += ["--disable-component-update", "--use-fake-device-for-media-stream"]


@pytest.fixture(scope="module")  # while playwright runs, no test of the same process can run an event loop
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


@pytest.fixture(scope="session")
def static_url(site: Path) -> Iterator[str]:
    """The static site behind `http.server`."""
    with serving_files(site) as url:
        yield url
