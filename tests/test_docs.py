"""The site builds strictly, shows the whole public API, and its commands and snippets are true."""

import inspect
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from skimage import data

import patchconvnet
from patchconvnet.training.recipe import Recipe

griffe = pytest.importorskip("griffe", reason="the site's generator is not installed: pip install '.[docs]'")
pytest.importorskip("mkdocs", reason="the site's generator is not installed: pip install '.[docs]'")

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
sys.path.insert(0, str(ROOT / "docs"))

import hooks  # noqa: E402


def blocks(language: str) -> list[tuple[str, str]]:
    """(page, block) for every fenced block of a language."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [(page.name, block) for page in PAGES for block in pattern.findall(page.read_text())]


@pytest.mark.slow
def test_the_site_builds_strictly_and_shows_every_public_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reference = "".join(page.read_text() for page in (tmp_path / "site" / "reference").glob("*.html"))
    for name in patchconvnet.__all__:
        public = getattr(patchconvnet, name)
        if inspect.isclass(public) or inspect.isfunction(public):
            assert f'id="{public.__module__}.{public.__qualname__}"' in reference, f"{name} is on no reference page"


@pytest.mark.parametrize(
    ("html", "section"),
    [
        ("<p>A map.</p>\n<p>Args: as <code>placed</code>.</p>", "Args"),
        ("<p>A map.\nReturns:\n (h, w)</p>", "Returns"),
        ("<p>A map whose arguments: none.</p>", None),
    ],
)
def test_a_section_that_is_not_rendered_is_a_warning(
    html: str, section: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="reference/api.md"))
    with caplog.at_level(logging.WARNING, "mkdocs"):
        hooks.on_page_content(f'<h2 id="patchconvnet.x.y">y</h2>{html}', page)
    expected = [] if section is None else [f"'{section}:' in the docstring of patchconvnet.x.y is not rendered"]
    assert [record.getMessage() for record in caplog.records] == expected


def test_docstrings_describe_parameters_that_exist() -> None:
    logging.getLogger("griffe").setLevel(logging.ERROR)
    package = griffe.load("patchconvnet", search_paths=[ROOT / "src"], force_inspection=False)
    wrong, described = [], 0

    def visit(one: "griffe.Object") -> None:
        nonlocal described
        for member in one.members.values():
            if member.is_alias:
                continue
            if member.docstring and (member.is_function or member.is_class):
                names = {parameter.name.lstrip("*") for parameter in member.parameters}
                for section in member.docstring.parse("google", warnings=False):
                    if section.kind is griffe.DocstringSectionKind.parameters:
                        listed = [name for entry in section.value for name in entry.name.split(", ")]
                        described += len(listed)
                        wrong.extend(f"{member.path}: {name}" for name in listed if name.lstrip("*") not in names)
            visit(member)

    visit(package)
    assert described > 300
    assert not wrong


def test_every_recipe_that_ships_is_on_the_page() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    recipes = [path.stem for path in (ROOT / "src" / "patchconvnet" / "recipes").glob("*.yaml")]
    assert [name for name in recipes if f"[`{name}`](#{name})" not in page or f"recipes/{name}.yaml" not in page] == []


def test_every_module_is_drawn_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    package = ROOT / "src" / "patchconvnet"
    files = [*package.rglob("*.py"), *package.rglob("*.js")]
    modules = [path.relative_to(package) for path in files if path.name != "__init__.py"]
    listed = ("metrics", "commands")  # whose modules are named without an ending
    names = {path: rf"{path.stem}(\.py)?" if path.parent.name in listed else re.escape(path.name) for path in modules}
    drawn = {path for path, name in names.items() if re.search(rf"(?<![\w/.]){name}(?!\w)", page)}
    assert sorted(map(str, set(modules) - drawn)) == []


@pytest.mark.slow
def test_commands_use_options_that_exist() -> None:
    known: dict[str, set[str]] = {}
    fields = {".".join(path) for path in _paths(Recipe().to_dict())}
    commands = [line for _, block in blocks("sh") for line in block.splitlines() if line.startswith("patchconvnet ")]
    commands += [line for page in PAGES for line in re.findall(r"`(patchconvnet \w+ -[^`]+)`", page.read_text())]
    assert len(commands) >= 8
    for command in commands:
        _, name, *words = shlex.split(command, comments=True)
        if name not in known:
            help_ = subprocess.run(
                [sys.executable, "-m", "patchconvnet", name, "--help"], capture_output=True, text=True, timeout=300
            )
            assert help_.returncode == 0, f"{command}: {help_.stderr}"
            known[name] = {option.replace("-", "_") for option in re.findall(r"--([\w.+-]+)", help_.stdout)}
        for option in (word[2:].split("=")[0] for word in words if word.startswith("--")):
            assert option.replace("-", "_") in known[name] | (fields if name == "train" else set()), command


def _paths(tree: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in tree.items():
        found += [(*above, key), *(_paths(value, (*above, key)) if isinstance(value, dict) else [])]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("page", "snippet"), blocks("python"))
def test_snippets_of_the_pages_run(page: str, snippet: str, tmp_path: Path) -> None:
    Image.fromarray(data.chelsea()).save(tmp_path / "cat.jpg")
    commands = [["-c", snippet]]
    if "predicted/" in snippet:  # what the page's command before it leaves
        predict = ["predict", "--model=cifar10", "--data=folder:.", "--maps=evidence", "--out=predicted"]
        commands.insert(0, ["-m", "patchconvnet", *predict])
    for words in commands:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )  # fmt: skip
        assert done.returncode == 0, f"{page}\n{words}\n{done.stderr}"
