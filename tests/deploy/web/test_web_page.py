"""What people do on the page, asked of a server and computed in the browser: one source, one behaviour."""

import io
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Opened, png
from PIL import Image

from patchconvnet import Explanation, explain
from patchconvnet.explanation.colours import attention_colours, attention_scale, evidence_scale
from patchconvnet.models import AttentionClassifier

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
Opening = Callable[..., Opened]


@pytest.fixture(params=["server", "static"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture(scope="module")
def explanation(model: AttentionClassifier, cat: Image.Image) -> Explanation:
    return explain(model, cat)


@pytest.fixture
def asked(opening: Opening, url: str, cat: Image.Image) -> Opened:
    """The page with its answer about the photograph."""
    tab = opening(url)
    tab.answer(png(cat))
    return tab


def close(shown: np.ndarray, expected: np.ndarray, levels: float = 3) -> None:
    """Both (H, W, 3) uint8, the same but for rounding."""
    assert shown.shape == expected.shape
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= levels


def test_a_dropped_image_is_named(asked: Opened, explanation: Explanation) -> None:
    likely = explanation.top_classes(5)
    shown = asked.classes()
    assert list(shown) == [one.name for one in likely]
    assert shown["cat"] == f"{likely[0].probability:.1%}".replace("%", " %")
    assert asked.page.inner_text("#headline").startswith("cat, ")
    assert "cat" in asked.page.inner_text("#status")
    widths = asked.page.eval_on_selector_all(
        "#classes .bar i", "all => all.map(e => e.offsetWidth / e.parentElement.offsetWidth)"
    )
    np.testing.assert_allclose(widths, [one.probability for one in likely], atol=0.02)


def test_a_pasted_or_picked_image_is_named_too(opening: Opening, url: str, cat: Image.Image) -> None:
    tab = opening(url)
    tab.paste(png(cat))
    tab.page.wait_for_selector("#answer:not([hidden])")
    assert tab.page.inner_text("#headline").startswith("cat")
    tab.page.click("#home")
    assert tab.page.is_hidden("#answer")
    with tab.page.expect_file_chooser() as chooser:
        tab.page.click("#empty .pick")
    chooser.value.set_files({"name": "cat.png", "mimeType": "image/png", "buffer": png(cat)})
    tab.page.wait_for_selector("#answer:not([hidden])")
    assert tab.page.inner_text("#headline").startswith("cat")


def test_samples_are_named(opening: Opening, url: str) -> None:
    tab = opening(url)
    tab.page.wait_for_selector("#samples button")
    assert [one.inner_text() for one in tab.page.locator("#samples button").all()][:1] == ["boat"]
    tab.page.click("#samples button >> nth=0")
    tab.page.wait_for_selector("#answer:not([hidden])")
    assert tab.page.inner_text("#headline").startswith("ship")


def test_attention_is_drawn_where_it_is(asked: Opened, explanation: Explanation) -> None:
    asked.kind("attention")
    asked.strength(100)
    values = explanation.map_for()
    expected = attention_colours(explanation.placed(), attention_scale(values))[..., :3]
    shown = asked.view()
    assert shown.shape == expected.shape
    # at the steps of the colour table rounding decides between two neighbours
    assert np.abs(shown.astype(int) - expected.astype(int)).max() <= 6
    assert np.abs(shown.astype(int) - expected.astype(int)).mean() < 0.3


def test_the_slider_goes_from_the_image_to_the_map(asked: Opened, cat: Image.Image) -> None:
    asked.kind("attention")
    asked.strength(0)
    image = np.asarray(cat)
    close(asked.view(), image, 0)
    asked.strength(100)
    whole = asked.view()
    asked.strength(50)
    close(asked.view(), (image.astype(float) + whole) / 2)
    asked.kind("none")
    close(asked.view(), image, 0)
    assert asked.page.is_disabled("#strength")


def test_a_click_on_a_class_shows_its_evidence(asked: Opened, explanation: Explanation) -> None:
    other = explanation.top_classes(2)[1].name
    asked.page.click(f"#classes button:has-text('{other}')")
    assert asked.page.get_attribute("#classes button >> nth=1", "aria-pressed") == "true"
    assert asked.page.get_attribute("#classes button >> nth=0", "aria-pressed") == "false"
    assert asked.page.is_checked("#kinds input[value=evidence]")
    assert f"Red parts speak for {other}, blue parts against it" in asked.page.inner_text("#caption")
    asked.strength(100)
    colours_follow(asked.view(), explanation.placed(other, "evidence"), evidence_scale(explanation.evidence_for(other)))


def test_why_this_and_not_that(asked: Opened, explanation: Explanation) -> None:
    asked.kind("contrast")
    first, second, third = (one.name for one in explanation.top_classes(3))
    assert asked.page.locator("#against").evaluate("e => e.selectedOptions[0].text") == second
    asked.strength(100)
    for rival in (second, third):
        asked.page.select_option("#against", label=rival)
        assert asked.page.inner_text("#caption") == f"Red parts speak for {first}, blue parts for {rival}."
        difference = explanation.evidence_for(first) - explanation.evidence_for(rival)
        placed = explanation.placed(first, "evidence") - explanation.placed(rival, "evidence")
        colours_follow(asked.view(), placed, evidence_scale(difference))


def colours_follow(shown: np.ndarray, placed: np.ndarray, scale: float) -> None:
    """Red where values are high, blue where they are low, grey where they are zero."""
    redness = shown[..., 0].astype(float) - shown[..., 2]
    assert (redness[placed > 0.5 * scale] > 30).all()
    assert (redness[placed < -0.5 * scale] < -30).all()
    assert np.abs(redness[np.abs(placed) < 0.01 * scale]).max(initial=0) < 12
    assert np.corrcoef(redness.ravel(), placed.ravel())[0, 1] > 0.9


def test_another_class_is_asked_for_by_name(asked: Opened, explanation: Explanation) -> None:
    unlisted = explanation.top_classes(10)[-1].name
    assert unlisted not in asked.classes()
    asked.page.fill("#other", unlisted.upper())
    asked.page.press("#other", "Tab")
    asked.page.wait_for_selector(f"#classes button[aria-pressed=true]:has-text('{unlisted}')")
    assert unlisted in asked.page.inner_text("#caption")
    asked.page.fill("#other", "unicorn")
    asked.page.press("#other", "Tab")
    assert asked.error() == "The network knows no class “unicorn”; choose one of the names that are offered."


def test_what_if_this_were_gone(asked: Opened, explanation: Explanation) -> None:
    asked.page.click("#erase")
    box = asked.page.locator("#view").bounding_box()
    asked.page.locator("#brush").fill("20")

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    asked.page.mouse.move(*at(0.35, 0.3))
    asked.page.mouse.down()
    asked.page.mouse.move(*at(0.6, 0.6), steps=5)
    asked.page.mouse.up()
    asked.page.wait_for_function("() => document.getElementById('gone').textContent.includes('patches are gone')")
    saved = json.loads(asked.saved("#save-data"))
    removed = np.array(saved["without"]["patches"], bool)
    assert 4 < removed.sum() < 40
    assert f"{removed.sum()} of 64 patches are gone" in asked.page.inner_text("#gone")
    logits = explanation.forward_pass.logits_of(0, ~removed)
    shares = explanation.probabilities_of(logits)
    for one in saved["without"]["classes"]:
        np.testing.assert_allclose(one["logit"], logits[one["index"]], atol=1e-4)
        np.testing.assert_allclose(one["probability"], shares[one["index"]], atol=1e-4)
    best = explanation.class_names[shares.argmax()]
    assert f"Without it: {best}" in asked.page.inner_text("#detail")
    before, after = (f"{one[explanation.class_index('cat')]:.1%}" for one in (explanation.probabilities, shares))
    said = before if before == after else f"{before} → {after}"
    assert asked.classes()["cat"] == said.replace("%", " %")
    # what is gone is hatched in two light greys, whatever the map
    shown = asked.view().astype(int)
    for y, x in np.argwhere(removed):
        rows, columns = (
            slice(int((i + 0.2) * side / 8), int((i + 0.8) * side / 8)) for i, side in ((y, 426), (x, 640))
        )
        assert np.ptp(shown[rows, columns], axis=-1).max() < 20
    asked.page.click("#restore")
    assert asked.page.inner_text("#detail") == ""
    assert asked.classes()["cat"] == before.replace("%", " %")


def test_patches_are_taken_out_by_keyboard(asked: Opened, explanation: Explanation) -> None:
    asked.page.click("#erase")
    asked.page.focus("#view")
    for key in ("ArrowRight", "ArrowRight", "ArrowUp", " "):  # the first goes to the middle
        asked.page.keyboard.press(key)
    assert "Gone. " in asked.page.inner_text("#status")
    removed = np.zeros((8, 8), bool)
    removed[3, 5] = True
    saved = json.loads(asked.saved("#save-data"))
    np.testing.assert_array_equal(saved["without"]["patches"], removed)
    logits = explanation.forward_pass.logits_of(0, ~removed)
    assert saved["without"]["classes"][0]["logit"] == pytest.approx(logits.max(), abs=1e-4)
    asked.page.focus("#view")
    asked.page.keyboard.press(" ")
    assert "Back. " in asked.page.inner_text("#status")
    asked.page.keyboard.press("Escape")
    assert asked.page.get_attribute("#erase", "aria-pressed") == "false"


def test_everything_gone_is_said(asked: Opened) -> None:
    asked.page.click("#erase")
    asked.page.locator("#brush").fill("40")
    box = asked.page.locator("#view").bounding_box()
    for share in (0.15, 0.5, 0.85):
        asked.page.mouse.move(box["x"], box["y"] + share * box["height"])
        asked.page.mouse.down()
        asked.page.mouse.move(box["x"] + box["width"], box["y"] + share * box["height"], steps=3)
        asked.page.mouse.up()
    asked.page.wait_for_function("() => document.getElementById('gone').textContent.startsWith('Nothing is left')")


def test_the_camera_is_explained_live(opening: Opening, url: str) -> None:
    tab = opening(url)
    tab.page.click("#empty .camera")
    tab.page.wait_for_selector("#rate:not(:empty)")
    first = tab.view()
    assert first.shape == (480, 640, 3)  # the fake camera's shape
    tab.page.wait_for_function("() => Number(document.getElementById('rate').dataset.rate) > 0.5")
    tab.page.wait_for_timeout(1000)
    assert (tab.view() != first).any()  # its clock has moved on
    assert tab.page.is_disabled("#erase")
    assert len(tab.classes()) == 5
    tab.page.click("#freeze")
    kept = tab.view()
    tab.page.wait_for_timeout(500)
    np.testing.assert_array_equal(tab.view(), kept)
    assert tab.page.is_enabled("#erase")
    assert tab.page.evaluate("document.getElementById('video').srcObject") is None


def test_a_refused_camera_is_said(opening: Opening, url: str) -> None:
    tab = opening(url, permissions=[])
    tab.page.click("#empty .camera")
    assert tab.error() == "The camera was refused; allow it for this site in the browser's settings."


@pytest.mark.parametrize(
    ("content", "name", "sentence"),
    [
        (b"", "nothing.png", "nothing.png is empty."),
        (b"hello", "letter.txt", "letter.txt is not an image that this browser can read; try a JPEG, PNG, WebP or GIF"),
        (png(np.zeros((9, 9, 3), np.uint8))[:50], "half.png", "half.png is not an image that this browser can read;"),
    ],
)
def test_what_is_no_image_is_said(opening: Opening, url: str, content: bytes, name: str, sentence: str) -> None:
    tab = opening(url)
    tab.drop(content, name)
    assert tab.error().startswith(sentence)
    assert tab.page.get_attribute("#error", "role") == "alert"
    assert tab.page.is_visible("#empty")


def test_an_address_is_not_fetched(opening: Opening, url: str) -> None:
    tab = opening(url)
    tab.page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.setData("text/uri-list", "https://example.com/cat.jpg");
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }"""
    )
    assert tab.error() == "That is not an image file; addresses are not fetched. Save the image and choose the file."


def test_the_policy_forbids_what_comes_from_elsewhere(opening: Opening, url: str) -> None:
    tab = opening(url)
    refused = tab.page.evaluate(
        """async () => {
            const refused = [];
            addEventListener("securitypolicyviolation", (event) => refused.push(event.effectiveDirective));
            await fetch("https://example.com/").catch(() => {});
            document.body.append(Object.assign(document.createElement("script"), { textContent: "window.ran = true" }));
            document.body.setAttribute("style", "color: red");
            document.body.append(Object.assign(new Image(), { src: "https://example.com/a.png" }));
            await new Promise((resolve) => setTimeout(resolve, 200));
            return { refused, ran: window.ran === true };
        }"""
    )
    assert {"connect-src", "script-src-elem", "style-src-attr", "img-src"} <= set(refused["refused"])
    assert not refused["ran"]
    assert len(tab.wrong) >= 4
    tab.wrong.clear()  # the console says so too
    tab.asked[:] = [one for one in tab.asked if "example.com" not in one]


def test_the_data_is_what_explain_writes(asked: Opened, explanation: Explanation) -> None:
    saved, written = json.loads(asked.saved("#save-data")), explanation.to_dict()
    assert saved["shown"] == explanation.shown()
    for key in ("image", "input", "grid", "temperature"):
        same(saved[key], {k: v for k, v in written[key].items() if k in saved[key]} if key == "grid" else written[key])
    assert [one["name"] for one in saved["classes"]] == [one["name"] for one in written["classes"]]
    same([one["logit"] for one in saved["classes"]], [one["logit"] for one in written["classes"]])
    same(saved["attention"]["maps"], written["attention"]["maps"])
    assert [one["index"] for one in saved["evidence"]["maps"]] == [one["index"] for one in written["evidence"]["maps"]]
    for ours, theirs in zip(saved["evidence"]["maps"], written["evidence"]["maps"], strict=True):
        same(ours["map"], theirs["map"])


def same(ours: Any, theirs: Any) -> None:
    """The same numbers, to 1e-4."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), [theirs[key] for key in ours]
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    else:
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_the_figure_is_saved(asked: Opened, cat: Image.Image) -> None:
    figure = Image.open(io.BytesIO(asked.saved("#save-figure"))).convert("RGB")
    assert figure.width > 2 * figure.height
    left = figure.crop((32, 80, 32 + 720, 80 + 480)).resize((64, 43))  # the image as it is stands left
    np.testing.assert_allclose(np.asarray(left), np.asarray(cat.resize((64, 43))), atol=40)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read_and_nothing_is_cut_off(opening: Opening, url: str, cat: Image.Image, scheme: str) -> None:
    tab = opening(url, color_scheme=scheme, viewport={"width": 390, "height": 844})
    tab.answer(png(cat))
    tab.kind("contrast")
    for width in (320, 390, 860, 1280):
        tab.page.set_viewport_size({"width": width, "height": 844})
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    for selector in ("#model", "#caption", "#headline", "#classes .name", "#classes .share", "button.primary", "#home"):
        ink, paper = tab.page.locator(selector).first.evaluate(
            """(element) => {
                const ink = getComputedStyle(element).color;
                let under = element;
                const paper = (at) => getComputedStyle(at).backgroundColor;
                while (under.parentElement && paper(under) === "rgba(0, 0, 0, 0)") under = under.parentElement;
                return [ink, paper(under)];
            }"""
        )
        assert contrast(ink, paper) >= 4.5, selector  # WCAG 2.2, 1.4.3


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours that CSS writes as rgb()."""

    def luminance(colour: str) -> float:
        rgb = np.array([int(part) for part in re.findall(r"\d+", colour)[:3]]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_it_is_used_by_keyboard_and_read_aloud(asked: Opened) -> None:
    named = asked.page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas[role]")]
            .filter((e) => e.offsetParent !== null)
            .map((e) => [e.id || e.className, e.ariaLabel || e.textContent || "", [...(e.labels ?? [])]])
            .map(([id, own, labels]) => [id, own.trim() || labels.map((label) => label.textContent).join("")])"""
    )
    assert len(named) > 12
    assert [one for one, name in named if not name.strip()] == []
    assert "strongest in the " in asked.page.get_attribute("#view", "aria-label")
    asked.page.focus("#kinds input:checked")
    asked.page.keyboard.press("ArrowRight")
    assert asked.page.is_checked("#kinds input[value=evidence]")
    asked.page.focus("#classes button >> nth=1")
    asked.page.keyboard.press("Enter")
    assert asked.page.get_attribute("#classes button >> nth=1", "aria-pressed") == "true"
    assert asked.page.evaluate("document.activeElement === document.querySelectorAll('#classes button')[1]")


@pytest.mark.skipif("PATCHCONVNET_SCREENSHOTS" not in os.environ, reason="$PATCHCONVNET_SCREENSHOTS names no folder")
def test_screenshots_for_the_docs(opening: Opening, static_url: str) -> None:
    folder = Path(os.environ["PATCHCONVNET_SCREENSHOTS"])
    tab = opening(static_url)
    tab.page.click("#samples button >> nth=0")
    tab.page.wait_for_selector("#answer:not([hidden])")
    for name, width, height in (("page", 1280, 800), ("page_phone", 390, 844)):
        tab.page.set_viewport_size({"width": width, "height": height})
        tab.page.wait_for_timeout(300)
        shot = Image.open(io.BytesIO(tab.page.screenshot())).convert("RGB")
        shot.save(folder / f"{name}.jpg", quality=82, optimize=True)
        assert (folder / f"{name}.jpg").stat().st_size < 150_000
