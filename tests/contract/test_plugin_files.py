"""A plugin as one file: its neighbours, its variants by name, and what it says where it has no technique."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lives import TOY

from flowers_bench.cli.options import split_plugins
from flowers_bench.cli.run import _named, _techniques_of
from flowers_bench.contract.host import discover, discover_for
from flowers_bench.util.errors import UsageError

PLUGIN = """
from flowers_bench import Loss, hookimpl
import {neighbour}

@hookimpl
def register_losses():
    return [Loss({neighbour}.NAME, "a loss", build=lambda context: None)]
"""


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    kept = list(sys.path)
    yield
    sys.path[:] = kept


def written(folder: Path, neighbour: str, name: str = "mine") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.py").write_text(PLUGIN.format(neighbour=neighbour))
    (folder / f"{neighbour}.py").write_text(f"from other_of_{neighbour} import NAME\n")
    (folder / f"other_of_{neighbour}.py").write_text(f"NAME = 'of-{neighbour}'\n")
    return folder / f"{name}.py"


def test_a_file_imports_its_neighbours_and_its_identity_covers_them(tmp_path: Path) -> None:
    file = written(tmp_path, "layers_of_one")
    host = discover([file])
    assert "of-layers_of_one" in host.losses, host.plugins["mine"].error
    code = host.plugins["mine"].code
    assert discover_for("0" * 16, {"mine": code}, [file]).plugins["mine"].code == code
    (tmp_path / "other_of_layers_of_one.py").write_text("NAME = 'of-layers_of_one'  # changed\n")
    assert discover([file]).plugins["mine"].code != code
    (tmp_path / "unrelated.py").write_text("")
    assert discover([file]).plugins["mine"].code == discover([file]).plugins["mine"].code


def test_a_neighbour_whose_name_is_taken_is_refused(tmp_path: Path) -> None:
    first = written(tmp_path / "a", "layers_of_two", "one")
    second = written(tmp_path / "b", "layers_of_two", "two")
    host = discover([first, second])
    assert host.plugins["one"].error is None
    assert "whose name another module has" in str(host.plugins["two"].error)


def test_a_file_without_neighbours_is_known_by_its_bytes_alone() -> None:
    import hashlib

    code = discover([TOY]).plugins["toy"].code
    assert code == f"sha256:{hashlib.sha256(TOY.read_bytes()).hexdigest()}"


def test_a_variant_of_a_file_by_name() -> None:
    files, names = split_plugins(f"{TOY}/short,transfer/k0")
    assert files == [TOY]
    host = discover(files)
    assert [name for item in names for name in _named(host, item)] == ["toy/short", "transfer/k0"]
    assert _named(host, f"{TOY}/toy") == ["toy"]
    assert _named(host, f"{TOY}/toy/plain") == ["toy/plain"]
    with pytest.raises(UsageError, match=r"unknown variant of .*toy.py 'shor'"):
        _named(host, f"{TOY}/shor")


def test_a_file_without_a_technique_says_what_to_type(tmp_path: Path) -> None:
    file = written(tmp_path, "layers_of_three")
    with pytest.raises(UsageError, match=r"--plugin .*mine.py,transfer/scratch --loss of-layers_of_three"):
        _techniques_of(discover([file]), file, needed=True)
