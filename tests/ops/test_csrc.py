"""The kernel's sources: each counts in the build's key, travels in the package, compiles alone."""

from __future__ import annotations

import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from flowers_bench.ops import _build

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
#: What lies in csrc/ and is not compiled.
OTHERS = {"__init__.py", "README.md"}


def files() -> list[str]:
    return sorted(
        path.relative_to(CSRC).as_posix()
        for path in CSRC.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.name not in OTHERS
    )


HEADERS = [name for name in files() if name.endswith((".h", ".inl", ".cuh"))]


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of csrc/, which the build takes in its stead."""
    folder = tmp_path / "csrc"
    shutil.copytree(CSRC, folder)
    monkeypatch.setattr(_build, "source_root", lambda: folder)
    return folder


def compiler() -> str:
    return shutil.which("g++") or shutil.which("c++") or pytest.skip("no C++ compiler here")


@pytest.mark.parametrize("name", files())
def test_the_key_changes_with_every_file(name: str, copy: Path) -> None:
    program, cuda = compiler(), Path(name).parent.name == "cuda"
    part, other = (_build.FIRST, _build.DRAW) if name.startswith("deform_conv/") else (_build.DRAW, _build.FIRST)
    before = {with_cuda: _build._key(program, with_cuda, part) for with_cuda in (False, True)}
    elsewhere, shared = _build._key(program, True, other), name.startswith("cuda/")
    with (copy / name).open("a") as file:
        file.write("// changed\n")
    assert _build._key(program, True, part) != before[True]
    assert (_build._key(program, False, part) == before[False]) == cuda, (
        "the CPU's library has no CUDA sources, and all others"
    )
    assert (_build._key(program, True, other) == elsewhere) != shared, (
        "another operator's library is compiled for nothing"
    )


def test_a_page_beside_the_sources_is_no_reason_to_compile(copy: Path) -> None:
    program = compiler()
    before = _build._key(program, cuda=True)
    (copy / "README.md").write_text("other words")
    assert _build._key(program, cuda=True) == before


def test_every_file_travels_in_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["flowers_bench.csrc"]
    left_behind = [name for name in files() if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert not left_behind


@pytest.mark.parametrize("name", HEADERS)
def test_every_header_compiles_alone(name: str) -> None:
    done = subprocess.run(
        [compiler(), "-std=c++20", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-Wno-unused-function",
         "-isystem", str(Path(torch.__file__).parent / "include"), *_build.DEFINES, "-x", "c++", "-"],
        input=f'#include "{CSRC / name}"\n', capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
