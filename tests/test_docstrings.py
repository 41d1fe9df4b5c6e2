"""Docstrings of functions begin with a verb: what is called tells what it does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "harness" / "flowers_bench"
#: What functions do. A new verb is added here; a noun, "Whether" or "What" is not.
VERBS = """
Add Adjust Allocate Append Apply Arrange Bend Bring Broadcast Build Call Change Check Choose Collect Combine Compare Compile
Complete Compute Connect Continue Convert Convolve Copy Count Create Declare Decode Derive Describe Differentiate Discard
Discover Divide Double Download Draw Encode Escape Estimate Exit Export Find Fit Flatten Freeze Gather Get Give Group Hash
Have Hold Import Join Keep Leave Let List Listen Load Look Make Map Measure Merge Mix Move Name Normalise Note Offer
Open Paint Pair Parse Pick Place Plan Predict Prepare Print Project Propose Put Raise Read Rearrange Record Reduce Refuse
Register Remove Render Replace Report Round Run Sample Say Scale Score Search See Seed Select Send Set Show Sort Split Stack
Start Subtract Sum Switch Take Teach Tell Train Try Turn Unpack Update Wait Wrap Write
"""
FOLDERS = (HOUSE, ROOT / "plugins" / "flowers_bench_plugins", ROOT / "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in folder.rglob("*.py") if "template" not in path.parts)


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
