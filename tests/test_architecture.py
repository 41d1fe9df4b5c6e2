"""The rooms of the house: imports point one way, and private names stay private."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: From the top of the house to its cellar. A module may import from its own room, from its own floor and from below.
FLOORS = (
    {"cli", "testing"},
    {"report", "executors", "plan"},
    {"training"},
    {"measure", "data", "models", "ops"},
    {"store", "contract"},
    {"util"},
)
#: What plugin authors and notebooks import. These modules only pass names on, from whichever room has them.
PUBLIC = {"flowers_bench", "flowers_bench.nn", "flowers_bench.backbones", "flowers_bench.hookspecs"}


@dataclass(frozen=True)
class Import:
    """One imported name.

    Attributes:
        importer, module: dotted names.
        name: what is taken from `module`; None where the module itself is imported.
        typing: whether it is for annotations alone (under `TYPE_CHECKING`).
    """

    importer: str
    module: str
    name: str | None
    typing: bool


def _dotted(path: Path) -> str:
    parts = path.relative_to(ROOT / ("harness" if "harness" in path.parts else "plugins")).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _sources(folder: str) -> list[Path]:
    return [path for path in sorted((ROOT / folder).rglob("*.py")) if "template" not in path.parts]


MODULES = {_dotted(path): path for folder in ("harness", "plugins") for path in _sources(folder)}


def _imports(importer: str) -> Iterator[Import]:
    tree = ast.parse(MODULES[importer].read_text(encoding="utf-8"))
    typed = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (Import(importer, alias.name, None, id(node) in typed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                whole = inner in MODULES
                yield Import(
                    importer, inner if whole else node.module, None if whole else alias.name, id(node) in typed
                )


IMPORTS = [found for module in MODULES for found in _imports(module)]
WITHIN = [found for found in IMPORTS if found.module in MODULES]


def _room(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "flowers_bench" and len(parts) > 1 and module not in PUBLIC else None


def _floor(module: str) -> int | None:
    room = _room(module)
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), None)


def test_every_module_has_a_room() -> None:
    loose = [m for m in MODULES if m.startswith("flowers_bench.") and m not in PUBLIC and _floor(m) is None]
    assert loose == ["flowers_bench.__main__"]


def test_no_arrow_points_up() -> None:
    wrong = []
    for found in WITHIN:
        above, below = _floor(found.importer), _floor(found.module)
        if above is not None and below is not None and below < above and not found.typing:
            wrong.append(f"{found.importer} imports {found.module}")
    assert not wrong


def test_no_circle() -> None:
    edges: dict[str, set[str]] = {module: set() for module in MODULES}
    for found in WITHIN:
        if not found.typing and found.importer not in PUBLIC:
            edges[found.importer].add(found.module)
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for below in sorted(edges[module]):
                visit(below, (*path, module))
            done.add(module)

    for module in MODULES:
        visit(module, ())


def test_private_names_stay_in_their_module() -> None:
    private = [
        f"{found.importer} takes {found.name} of {found.module}"
        for found in WITHIN
        if found.name and found.name.startswith("_") and not found.name.startswith("__")
    ]
    assert not private
    modules = [
        f"{found.importer} imports {found.module}"
        for found in WITHIN
        if found.module.rpartition(".")[2].startswith("_") and _room(found.importer) != _room(found.module)
    ]
    assert not modules


def test_the_harness_imports_no_technique() -> None:
    assert not [
        f for f in IMPORTS if f.importer.startswith("flowers_bench.") and f.module.startswith("flowers_bench_plugins")
    ]
