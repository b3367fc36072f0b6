"""The report in a real browser: what the marks look like, and that nothing is cut off.

Needs the `chromium` of a Linux distribution (Debian: `apt-get install chromium`); playwright brings no browser here.
"""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from patchconvnet.faithfulness.baselines import METHODS
from patchconvnet.faithfulness.metrics import METRICS
from patchconvnet.faithfulness.report.gallery import Example
from patchconvnet.faithfulness.report.page import html_report
from patchconvnet.faithfulness.statistics import estimate_of
from patchconvnet.faithfulness.summary import Summary

OPTIONS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
OPTIONS += ["--disable-component-update", "--disable-sync"]
ORANGE = "rgb(179, 71, 0)"


def report() -> str:
    """Every method and column; the centre is ahead of all methods on pointing, and Grad-CAM has few values on ROAD."""
    generator = np.random.default_rng(0)
    columns = [column for metric in METRICS.values() for column in metric.columns]
    worse = {"high": 0.3, "low": 0.7, "near zero": 0.7}
    estimates = {
        (method.name, column.name): estimate_of(
            dict(enumerate(generator.normal(worse[column.better] if method.kind == "control" else 0.5, 0.05, 30)))
        )
        for method in METHODS.values()
        for column in columns
    }
    estimates["centre", "pointing"] = estimate_of(dict(enumerate(generator.normal(0.9, 0.05, 30))))
    estimates["gradcam", "road"] = estimate_of({0: -0.021, **dict.fromkeys(range(1, 12))})
    image = generator.integers(0, 255, (32, 48, 3)).astype(np.uint8)
    maps = {name: generator.random((32, 48)) for name in METHODS}
    header = {
        "package": {"version": "0"},
        "model": {"name": "model", "weights": "0"},
        "data": {"name": "data", "images": 30},
        "preprocessing": {"size": [32, 48]},
        "device": "cpu",
        "settings": {"target": "predicted", "quick": True},
    }
    point = estimate_of({0: 0.4, 1: 0.6})
    summary = Summary(
        methods=[*METHODS.values()],
        columns=columns,
        estimates=estimates,
        header=header,
        images=30,
        top1=0.9,
        class_names=["cat", "dog"],
        seconds=dict.fromkeys(METHODS, 0.01),
        curves={(name, kind): [point] * 5 for name in METHODS for kind in ("deletion", "insertion")},
        cascade={name: (["head", "trunk", "stem"], [point] * 3) for name in METHODS},
    )
    example = Example(image, maps, "a_photograph_with_a_rather_long_name.jpg", "cat", "dog", 0.8, maps["rise"] > 0.5)
    return html_report(summary, [example] * 2)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("there is no chromium to look at the report with (Debian: apt-get install chromium)")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=OPTIONS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_content(report())
        yield page
        browser.close()


def colour(page: Any, selector: str) -> str:
    return page.eval_on_selector(selector, "e => getComputedStyle(e).color")


def test_a_control_that_is_ahead_is_orange(page):
    cells = page.query_selector_all("td.beats")
    assert ["Centre, Pointing" in cell.get_attribute("title") for cell in cells] == [True]
    assert colour(page, "td.beats") == ORANGE
    assert colour(page, ".note .beats") == ORANGE
    assert colour(page, "tr.control td.plain") != ORANGE


def test_numbers_of_few_values_are_marked(page):
    assert page.inner_text("td.few").split() == ["-0.021", "11", "missing"]
    assert page.eval_on_selector("td.few", "e => getComputedStyle(e).fontStyle") == "italic"
    assert page.eval_on_selector("td.best", "e => getComputedStyle(e).fontWeight") == "700"


@pytest.mark.parametrize("width", [1280, 1440, 1920])
def test_nothing_is_cut_off(page, width):
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    hidden = page.eval_on_selector_all(".scroll", "all => all.map(e => e.scrollWidth - e.clientWidth)")
    assert len(hidden) == 4
    assert max(hidden) <= 0, hidden


def test_a_narrow_screen_scrolls_tables_and_not_the_page(page):
    page.set_viewport_size({"width": 420, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    page.set_viewport_size({"width": 1280, "height": 900})


def test_the_page_asks_for_nothing(page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_content(report())
    assert not [url for url in asked if not re.match("data:|about:", url)]
