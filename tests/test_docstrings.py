"""Docstrings of functions begin with a verb: what is called tells what it does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "harness" / "flowers_bench"
#: The rooms whose docstrings were rewritten; those that are not here are in `per-file-ignores` of pyproject.toml too.
ROOMS = ("contract", "data", "measure", "models", "ops", "testing", "util")
#: What functions do. A new verb is added here; a noun, "Whether" or "What" is not.
VERBS = """
Add Adjust Allocate Append Apply Bend Bring Build Call Change Check Choose Collect Combine Compare Compile Compute
Convert Convolve Copy Count Create Decode Describe Differentiate Discover Divide Double Download Draw Escape Estimate
Find Fit Freeze Get Give Hash Have Hold Keep Let List Load Look Make Map Measure Move Name Normalise Note Offer Open
Paint Place Plan Predict Put Raise Read Rearrange Reduce Refuse Register Remove Render Replace Run Sample Say Scale
See Seed Send Set Show Stack Subtract Switch Take Teach Tell Turn Unpack Wrap Write
"""
SOURCES = sorted([*HOUSE.glob("*.py"), *(path for room in ROOMS for path in (HOUSE / room).rglob("*.py"))])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(HOUSE).as_posix())
def test_a_functions_docstring_begins_with_a_verb(path: Path) -> None:
    others = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not _is_property(node):
            words = (ast.get_docstring(node) or "").split(maxsplit=1)
            if words and words[0].rstrip(":.,;") not in VERBS.split():
                others.append(f"{path.name}:{node.lineno} {node.name}: {words[0]}")
    assert not others


def _is_property(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(decorator).endswith("property") for decorator in node.decorator_list)
