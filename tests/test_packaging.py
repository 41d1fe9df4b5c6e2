"""The package list in pyproject.toml is written by hand; it must match the folders."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_listed() -> None:
    found = {"flowers_bench.csrc"}
    for base in (ROOT / "harness", ROOT / "plugins"):
        found |= {".".join(path.parent.relative_to(base).parts) for path in base.rglob("__init__.py")}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == found


def test_every_plugin_file_has_an_entry_point() -> None:
    points = SETTINGS["project"]["entry-points"]["flowers_bench"]
    files = {path.stem for path in (ROOT / "plugins" / "flowers_bench_plugins").glob("*.py")} - {"__init__"}
    assert {value.rpartition(".")[2] for value in points.values()} == files


def test_the_harness_imports_no_technique() -> None:
    for path in (ROOT / "harness").rglob("*.py"):
        assert "flowers_bench_plugins" not in path.read_text(), path
