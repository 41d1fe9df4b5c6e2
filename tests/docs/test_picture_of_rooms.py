"""docs/architecture.svg and the table of docs/architecture.md are drawn from the imports as they are."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def architecture(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("docs/generate_architecture.py")


def test_picture_and_table_are_up_to_date(architecture: ModuleType) -> None:
    for path, text in architecture.documents().items():
        assert path.read_text() == text, "run: python docs/generate_architecture.py"


def test_every_room_has_a_box(architecture: ModuleType) -> None:
    known = architecture.rooms()
    root = ET.fromstring(architecture.picture(architecture.arrows(), known))
    titles = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text") if "class" not in text.attrib]
    assert sorted(titles) == sorted(known)


def test_rooms_are_found_by_name(architecture: ModuleType) -> None:
    assert architecture.room_of("flowers_bench.cli.app") == "cli"
    assert architecture.room_of("flowers_bench.nn") == architecture.API
    assert architecture.room_of("flowers_bench") == architecture.API
    assert architecture.room_of("flowers_bench.Recipe") == architecture.API
    assert architecture.room_of("flowers_bench_plugins.lora") == architecture.BUILT_IN
    assert architecture.room_of("torch.nn") is None


def test_imports_are_read_from_functions_and_relative_ones_too(architecture: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "layers.py"
    file.write_text("import a.b\nfrom . import x\nfrom .y import z\ndef f():\n    from flowers_bench import ops\n")
    found = set(architecture.imports("flowers_bench.lora.layers", file))
    assert found == {"a.b", "flowers_bench.lora", "flowers_bench.lora.y", "flowers_bench.ops"}


def test_rooms_stand_above_what_they_import(architecture: ModuleType) -> None:
    graph = {"a": Counter(b=1, c=1), "b": Counter(c=2), "c": Counter(), architecture.KERNEL: Counter()}
    graph["c"][architecture.KERNEL] = 1
    layout = architecture.Layout.of(graph)
    assert layout.rows == [["a"], ["b"], ["c"], [architecture.KERNEL]]
    assert ("a", "c") not in layout.ways  # a over b to c says it


def test_an_arrow_that_closes_a_circle_is_named(architecture: ModuleType) -> None:
    graph = {"a": Counter(b=3), "b": Counter(c=2), "c": Counter(a=1)}
    assert architecture.upward(graph) == [("c", "a")]
    assert architecture.circles(graph)["a"] == architecture.circles(graph)["c"]
    assert architecture.upward({"a": Counter(b=1), "b": Counter()}) == []
