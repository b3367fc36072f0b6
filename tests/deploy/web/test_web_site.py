"""The static site: what is in the folder, what is refused, and that it works without a connection."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import Opened, png, serving_files
from PIL import Image

from patchconvnet import cli
from patchconvnet.deploy import onnxruntime_web
from patchconvnet.deploy.site import PAGE, write_site
from patchconvnet.errors import UserError

pytestmark = pytest.mark.slow
Opening = Callable[..., Opened]


def test_the_folder_holds_all_that_the_page_needs(site: Path) -> None:
    names = {path.relative_to(site).as_posix() for path in site.rglob("*") if path.is_file()}
    ours = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*") if path.is_file()} - {"engine_server.js"}
    added = {"model.onnx", "model.json", "site_files.js", "ort/LICENSE.txt"}
    assert names == ours | added | {f"ort/{one}" for one in onnxruntime_web.FILES}
    about = json.loads((site / "model.json").read_text())
    assert about["bytes"] == (site / "model.onnx").stat().st_size
    assert about["file"].endswith(hashlib.sha256((site / "model.onnx").read_bytes()).hexdigest()[:16])
    assert about["class_names"][3] == "cat"
    assert about["removal"] is True
    listed = json.loads((site / "site_files.js").read_text().splitlines()[1].removeprefix("self.FILES = ").rstrip(";"))
    assert set(listed) == {"./", *names} - {"site_files.js", "service_worker.js"}


def test_another_export_replaces_the_site_and_its_version(site: Path, runtime: Path, tmp_path: Path) -> None:
    out = tmp_path / "site"
    shutil.copytree(site, out)
    (out / "former.txt").write_text("of an earlier export")
    samples = tmp_path / "samples"
    samples.mkdir()
    Image.new("RGB", (2000, 1000), "red").save(samples / "red_wall.png")
    write_site(site / "model.onnx", out, name="walls", onnxruntime_web=runtime, samples=samples)
    assert not (out / "former.txt").exists()
    assert json.loads((out / "samples" / "samples.json").read_text()) == [{"file": "1.jpg", "name": "red wall"}]
    assert Image.open(out / "samples" / "1.jpg").size == (800, 400)
    assert json.loads((out / "model.json").read_text())["name"] == "walls"
    assert (out / "site_files.js").read_text() != (site / "site_files.js").read_text()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_site_is_not_written_over_something_else(site: Path, runtime: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds other files than a site of patchconvnet; give an empty or a new folder"):
        write_site(site / "model.onnx", tmp_path, name="", onnxruntime_web=runtime)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--onnxruntime-web", "nowhere.tgz"], "there is no nowhere.tgz; --onnxruntime-web takes the folder"),
        (["--onnxruntime-web", "."], "is no onnxruntime-web: it has no ort.wasm.bundle.min.mjs"),
        (["--samples", "nowhere"], "--samples takes a folder of 1 to 24 images; nowhere has 0 files"),
        (["--onnxruntime-web", "text.tgz"], "text.tgz cannot be read as the .tgz of an npm package"),
        (["--to", "onnx", "--samples", "images"], "--onnxruntime-web belongs to --to web"),
        (["--batch", "4"], "--batch belongs to --to onnx"),
        (["--out", "text.tgz"], "text.tgz is a file; --out of a site is a folder"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(
    runtime: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.tgz").write_text("no archive")
    options = {"--model": "cifar10", "--to": "web", "--out": "site", "--onnxruntime-web": str(runtime)}
    options |= dict(zip(words[::2], words[1::2], strict=True))
    assert cli.main(["export", *(word for pair in options.items() for word in pair)]) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("site").exists()


def test_the_runtime_is_downloaded_once_and_its_checksum_compared(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = tmp_path / "registry"
    package = registry / "onnxruntime-web" / "-" / runtime.name
    package.parent.mkdir(parents=True)
    shutil.copyfile(runtime, package)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with serving_files(registry) as url:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"{url}/")
        version, files = onnxruntime_web.runtime_files()
        assert version == onnxruntime_web.VERSION
        assert files["ort-wasm-simd-threaded.wasm"][:4] == b"\0asm"
    kept = tmp_path / "cache" / "patchconvnet" / runtime.name
    assert onnxruntime_web.runtime_files() == (version, files)  # the registry is gone
    kept.write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"cannot download http://127\.0\.0\.1.*refused; where there is"):
        onnxruntime_web.runtime_files()
    package.write_bytes(b"something else")
    with serving_files(registry) as url:
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", url)
        with pytest.raises(UserError, match=r"its checksum is sha512-.* and must be sha512-q0y"):
            onnxruntime_web.runtime_files()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", "file:///etc")
    with pytest.raises(UserError, match="it must be an https:// address"):
        onnxruntime_web.runtime_files()


def test_an_unpacked_package_does_too(runtime: Path, tmp_path: Path) -> None:
    with tarfile.open(runtime) as archive:
        archive.extractall(tmp_path, filter="data")
    assert onnxruntime_web.runtime_files(tmp_path / "package") == onnxruntime_web.runtime_files(runtime)
    (tmp_path / "package" / "dist" / onnxruntime_web.FILES[1]).unlink()
    with pytest.raises(UserError, match=r"is no onnxruntime-web: it has no ort-wasm-simd-threaded\.wasm"):
        onnxruntime_web.runtime_files(tmp_path / "package")


@pytest.mark.timeout(300)
def test_it_works_without_a_connection(opening: Opening, site: Path, cat: Image.Image) -> None:
    with serving_files(site) as url:
        tab = opening(url)
        tab.page.evaluate("navigator.serviceWorker.ready.then(() => 0)")
        tab.page.wait_for_function("() => navigator.serviceWorker.controller !== null")
    tab.page.reload()  # from the service worker: the server has gone
    tab.page.wait_for_selector("html[data-ready]")
    tab.answer(png(cat))
    assert tab.page.inner_text("#headline").startswith("cat, ")
    tab.page.context.close()


@pytest.mark.timeout(300)
def test_the_page_can_be_installed(opening: Opening, static_url: str, site: Path) -> None:
    manifest = json.loads((site / "manifest.webmanifest").read_text())
    assert manifest["start_url"] == "./"
    for icon in manifest["icons"]:
        assert (site / icon["src"]).is_file()
    assert Image.open(site / "icon.png").size == (512, 512)
    tab = opening(static_url)
    session = tab.page.context.new_cdp_session(tab.page)
    found = session.send("Page.getAppManifest")
    assert found["errors"] == []
    assert found["url"].endswith("manifest.webmanifest")


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda site: (site / "model.onnx").unlink(), "The network's file could not be loaded (404)"),
        (lambda site: (site / "model.onnx").write_bytes(b"\0" * 10), "The network's file came incomplete; load"),
        (lambda site: (site / "model.json").unlink(), "The model's description, model.json, is missing beside"),
    ],
)
def test_a_damaged_site_says_so(opening: Opening, site: Path, tmp_path: Path, damage: Callable, sentence: str) -> None:
    copy = tmp_path / "site"
    shutil.copytree(site, copy)
    damage(copy)
    with serving_files(copy) as url:
        tab = opening(url, wait=False)
        assert tab.error().startswith(sentence)
        tab.wrong[:] = [text for text in tab.wrong if "404" not in text]  # the browser's own line for a missing file
        tab.page.context.close()


@pytest.mark.timeout(300)
def test_a_server_that_has_gone_is_said(opening: Opening, cat: Image.Image) -> None:
    pytest.importorskip("fastapi")
    from running import running

    with running() as server:
        tab = opening(server.url)
        server.stop()
        tab.drop(png(cat))
        assert tab.error() == "The server does not answer; is it still running?"
        tab.wrong[:] = [text for text in tab.wrong if "ERR_CONNECTION" not in text]


@pytest.mark.timeout(300)
def test_a_servers_token_is_asked_for(opening: Opening, tmp_path: Path, cat: Image.Image) -> None:
    pytest.importorskip("fastapi")
    from running import running

    token = tmp_path / "token"
    token.write_text("a-secret-of-some-length")
    with running("--token", str(token)) as server:
        tab = opening(server.url, wait=False)
        assert tab.error() == "The server asks for an access token."
        tab.page.fill("#token-value", "wrong")
        tab.page.click("#token button")
        tab.page.wait_for_function("() => document.getElementById('error').textContent.includes('refused')")
        tab.page.fill("#token-value", "a-secret-of-some-length")
        tab.page.click("#token button")
        tab.page.wait_for_selector("html[data-ready]")
        tab.answer(png(cat))
        assert tab.page.inner_text("#headline").startswith("cat, ")
        tab.wrong[:] = [text for text in tab.wrong if "401" not in text]


@pytest.mark.timeout(300)
def test_a_servers_refusal_is_shown_as_its_sentence(opening: Opening, cat: Image.Image) -> None:
    pytest.importorskip("fastapi")
    from running import running

    with running("--megapixels", "0.1") as server:
        tab = opening(server.url)
        tab.drop(png(cat))
        assert "pixels" in tab.error()
        assert tab.error().endswith(".")
        tab.wrong[:] = [text for text in tab.wrong if "413" not in text]


def test_a_photograph_is_decoded_as_python_decodes_it(opening: Opening, static_url: str, cat: Image.Image) -> None:
    buffer = io.BytesIO()
    cat.save(buffer, "JPEG", quality=92)
    tab = opening(static_url)
    tab.answer(buffer.getvalue(), "cat.jpg", "image/jpeg")
    tab.kind("none")
    import numpy as np

    theirs = np.asarray(Image.open(io.BytesIO(buffer.getvalue()))).astype(int)
    differences = np.abs(tab.view().astype(int) - theirs)
    assert differences.mean() < 0.5
    assert differences.max() <= 12
