"""The tutorial notebook: its cells are those of its script, its outputs are real, and it runs from top to bottom."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOK = json.loads((ROOT / "docs" / "learn" / "notebook.ipynb").read_text())


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    """What writes the notebook."""
    pytest.importorskip("nbclient", reason='pip install ".[test]"')
    pytest.importorskip("ipykernel", reason='pip install ".[test]"')
    return runpy.run_path(str(ROOT / "docs" / "generate_notebook.py"))


def texts(notebook: dict[str, Any]) -> list[str]:
    """What each code cell printed or gave."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    parts = ([o.get("text") or o["data"]["text/plain"] for o in cell["outputs"]] for cell in cells)
    return ["".join("".join(part) for part in outputs) for outputs in parts]


def accuracies(notebook: dict[str, Any]) -> dict[str, float]:
    """The accuracy of each technique, in percent, as the first cell prints it."""
    found = re.findall(r"^(\S+/\S+)\s+(\d+\.\d) \[", texts(notebook)[0], re.M)
    return {name: float(value) for name, value in found}


def test_its_cells_are_those_of_the_script(script: dict[str, Any]) -> None:
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in NOTEBOOK["cells"]]
    assert cells == [tuple(cell) for cell in script["CELLS"]]


def test_its_outputs_are_there() -> None:
    assert len(accuracies(NOTEBOOK)) == 3
    assert all(texts(NOTEBOOK))
    assert "has the highest test accuracy" in texts(NOTEBOOK)[1]
    assert any("image/png" in o.get("data", {}) for cell in NOTEBOOK["cells"] for o in cell.get("outputs", ()))
    assert not re.search(r"/(tmp|home|root)/", json.dumps(NOTEBOOK))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_and_comes_to_the_same(script: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    again = script["executed"](tmp_path)
    assert accuracies(again) == pytest.approx(accuracies(NOTEBOOK), abs=3)
    assert [line.split()[0] for line in texts(again)[2].splitlines() if "/" in line] == [
        line.split()[0] for line in texts(NOTEBOOK)[2].splitlines() if "/" in line
    ]
    assert (tmp_path / "report.html").stat().st_size > 100_000
