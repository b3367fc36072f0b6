"""The page's modules: each is one idea, they import one another in one direction, and all of them are used."""

import graphlib
import re

from patchconvnet.deploy.site import PAGE

MOST_LINES = 250
IMPORT = re.compile(r'^(?:import|export)\b[^;]*?\bfrom "\./([\w.]+)";', re.MULTILINE)
STARTED = re.compile(r'new URL\("\./(\w+\.js)"|register\("(\w+\.js)"')  # a worker is no import


def modules() -> dict[str, str]:
    """Text by name."""
    return {path.name: path.read_text(encoding="utf-8") for path in PAGE.glob("*.js")}


def imports() -> dict[str, set[str]]:
    """By module the modules that it imports."""
    return {name: set(IMPORT.findall(text)) for name, text in modules().items()}


def test_every_import_is_there_and_none_leads_back() -> None:
    asked = imports()
    assert {"state.js", "rendering.js", "engine.js"} <= asked["app.js"]
    for name, others in asked.items():
        assert others <= asked.keys(), name
    list(graphlib.TopologicalSorter(asked).static_order())  # raises CycleError


def test_every_module_is_used() -> None:
    texts, asked = modules(), imports()
    used, open_ = set(), {"app.js", "engine_local.js"}  # a site's engine.js imports the latter
    while open_:
        name = open_.pop()
        used.add(name)
        started = {one or other for one, other in STARTED.findall(texts[name])}
        open_ |= (asked[name] | started) - used
    assert used == texts.keys()


def test_no_module_is_long() -> None:
    assert {name: text.count("\n") for name, text in modules().items() if text.count("\n") > MOST_LINES} == {}
