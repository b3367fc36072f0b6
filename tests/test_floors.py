"""The floors of docs/architecture.md: who may import whom. Read from the source; imports inside functions count too."""

import ast
from pathlib import Path

import pytest

import patchconvnet

ROOT = Path(patchconvnet.__file__).parent
MODULES = {
    ".".join(("patchconvnet", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# what each part of the package may import besides itself; what a floor stands on is all it may import
GROUND = {"_registration", "_version", "errors", "files", "hardware", "progress_bar", "thread_count"}
BELOW_COMMANDS = GROUND | {"models", "data", "explanation", "faithfulness", "training", "deploy", "bulk", "api"}
FLOORS: dict[str, set[str]] = {
    **{part: set() for part in GROUND},
    "files": {"errors"},
    "hardware": {"errors", "thread_count"},
    "thread_count": {"errors"},
    "models": GROUND,
    "data": GROUND,
    "explanation": GROUND | {"models", "data"},
    "faithfulness": GROUND | {"models", "data", "explanation"},
    "training": GROUND | {"models", "data"},
    "deploy": GROUND | {"models", "data", "explanation"},
    "bulk": GROUND | {"models", "data", "explanation", "training", "deploy"},
    "api": BELOW_COMMANDS - {"deploy", "bulk", "api"},
    "commands": BELOW_COMMANDS,
    "cli": BELOW_COMMANDS | {"commands"},
    "__main__": {"cli"},
}
# training shows attention through explanation, in its monitor and nowhere else
EXCEPTIONS = {"patchconvnet.training.monitor": {"explanation"}}


def imports(module: str) -> set[str]:
    """The modules of the package that `module` imports, with a package for what its `__init__` holds.

    What stands under `if TYPE_CHECKING` counts: a circle that only a type checker walks is one for the reader too.
    """
    path = MODULES[module]
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parent = node.module or ""
            if node.level:
                base = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                parent = ".".join([*base[: len(base) - node.level + 1], *filter(None, [node.module])])
            for alias in node.names:
                name = f"{parent}.{alias.name}"
                found.add(name if name in MODULES else parent)
    return {name for name in found if name.split(".")[0] == "patchconvnet"} - {module}


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("module", [module for module in MODULES if part(module)])
def test_no_import_runs_upward_or_sideways(module: str) -> None:
    allowed = FLOORS[part(module)] | {part(module)} | EXCEPTIONS.get(module, set())
    for imported in imports(module):
        assert imported in MODULES, f"{module} imports {imported}, which does not exist"
        assert imported != "patchconvnet", f"{module} must import from where a name lives, not from the front door"
        assert part(imported) in allowed, f"{module} must not import {imported}"


def test_the_front_door_shows_type_checkers_what_it_hands_out() -> None:
    homes = {name: home for home, names in patchconvnet._HOMES.items() for name in names}
    (for_types,) = [node for node in ast.parse(MODULES["patchconvnet"].read_text()).body if isinstance(node, ast.If)]
    assert {alias.name: line.module for line in for_types.body for alias in line.names} == homes
    assert set(patchconvnet.__all__) == {*homes, "__version__"}


def test_there_is_no_circle() -> None:
    graph = {module: imports(module) for module in MODULES}
    finished: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle of imports: {' → '.join((*way, module))}"
        if module not in finished:
            for imported in graph.get(module, set()):
                visit(imported, (*way, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_helpers_live_with_their_subject() -> None:
    names = {path.stem for path in MODULES.values()}
    assert not names & {"utils", "util", "helpers", "misc", "common"}
