"""What plugins are given: every public name is documented, and built-in techniques, example and template need no other."""

from __future__ import annotations

import ast
import importlib
import inspect
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from flowers_bench.contract.host import discover

ROOT = Path(__file__).parents[2]
MODULES = (
    "flowers_bench",
    "flowers_bench.nn",
    "flowers_bench.backbones",
    "flowers_bench.ops",
    "flowers_bench.testing",
    "flowers_bench.hookspecs",
)
SOURCES = [
    *(ROOT / "plugins").rglob("*.py"),
    *ROOT.glob("examples/*/**/*.py"),
    *(ROOT / "harness" / "flowers_bench" / "template").rglob("*.py"),
]


@pytest.mark.parametrize("name", [name for name in MODULES if name != "flowers_bench.hookspecs"])
def test_every_public_name_is_listed_and_documented(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    for public in module.__all__:
        value = getattr(module, public)
        if not isinstance(value, (str, int)):  # a version has no docstring of its own
            assert inspect.getdoc(value), f"{name}.{public}"


def test_every_public_module_has_a_page_of_reference() -> None:
    pages = {line for page in (ROOT / "docs" / "api").glob("*.md") for line in page.read_text().splitlines()}
    assert {f"::: {name}" for name in MODULES} <= pages


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_plugins_use_the_public_api_alone(path: Path) -> None:
    others = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            others += [alias.name for alias in node.names if not _is_public(alias.name, None)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            others += [f"{node.module}.{a.name}" for a in node.names if not _is_public(node.module, a.name)]
    assert not others


def _is_public(module: str, name: str | None) -> bool:
    """Say whether plugins may import this name of this module (None: the module itself)."""
    if module.partition(".")[0] != "flowers_bench":
        return True
    if module not in MODULES or name is None:
        return module in MODULES
    return f"{module}.{name}" in MODULES or name in getattr(importlib.import_module(module), "__all__", ())


def test_every_built_in_technique_says_what_differs_from_the_paper() -> None:
    host = discover(only_built_in=True)
    modules = {point.name: point.value for point in entry_points(group="flowers_bench")}
    for name, found in host.techniques.items():
        module = importlib.import_module(modules[found.plugin])
        assert module.__doc__ is not None
        assert "What differs from the paper: " in module.__doc__, name
