"""What pyproject.toml says by hand must match the folders, the lock file and the page on dependencies."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_every_plugin_has_an_entry_point() -> None:
    points = SETTINGS["project"]["entry-points"]["flowers_bench"]
    folder = ROOT / "plugins" / "flowers_bench_plugins"
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    files |= {path.parent.name for path in folder.glob("*/__init__.py")}
    assert {value.rpartition(".")[2] for value in points.values()} == files


def test_the_harness_imports_no_technique() -> None:
    # Until 0.3 drops them, `flowers_bench.nn` still gives the layers that moved to their techniques, with a warning.
    deprecated = ROOT / "harness" / "flowers_bench" / "nn.py"
    for path in (ROOT / "harness").rglob("*.py"):
        assert path == deprecated or "flowers_bench_plugins" not in path.read_text(), path


def test_the_lock_file_has_every_dependency_within_its_bounds() -> None:
    locked: dict[str, set[str]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if found := re.match(r"([\w.-]+)==([^\s;]+)", line):
            locked.setdefault(found[1], set()).add(found[2])
    project = SETTINGS["project"]
    for requirement in map(Requirement, project["dependencies"] + project["optional-dependencies"]["test"]):
        versions = locked.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement.name}: write requirements.lock anew (docs/dependencies.md)"
        assert all(version in requirement.specifier for version in versions), requirement


def test_every_dependency_is_listed_with_its_licence() -> None:
    listed = re.findall(
        r"^\| ([\w-]+) \| [^|]+ \| [^|]+ \|$", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE
    )
    names = {Requirement(line).name for line in SETTINGS["project"]["dependencies"]}
    assert set(listed) - {"package"} == names
