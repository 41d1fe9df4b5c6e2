"""Docstrings of functions begin with a verb: what is called tells what it does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "harness" / "flowers_bench"
#: The rooms whose docstrings were rewritten; those that are not here are in `per-file-ignores` of pyproject.toml too.
ROOMS = ("cli", "contract", "data", "measure", "models", "ops", "plan", "report", "testing", "util")
#: What functions do. A new verb is added here; a noun, "Whether" or "What" is not.
VERBS = """
Add Adjust Allocate Append Apply Bend Bring Build Call Change Check Choose Collect Combine Compare Compile Compute
Convert Convolve Copy Count Create Decode Describe Differentiate Discard Discover Divide Double Download Draw Escape
Estimate Exit Find Fit Flatten Freeze Get Give Group Hash Have Hold Join Keep Leave Let List Load Look Make Map
Measure Merge Move Name Normalise Note Offer Open Paint Pair Parse Place Plan Predict Prepare Print Propose Put Raise
Read Rearrange Record Reduce Refuse Register Remove Render Replace Round Run Sample Say Scale Search See Seed Send Set
Show Split Stack Subtract Sum Switch Take Teach Tell Train Try Turn Unpack Wrap Write
"""
FOLDERS = (*(HOUSE / room for room in ROOMS), ROOT / "benchmarks")
SOURCES = sorted([*HOUSE.glob("*.py"), *(path for folder in FOLDERS for path in folder.rglob("*.py"))])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
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
