"""docs/hooks.md says what the code says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "docs" / "generate_hooks.py"


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate_hooks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text() == script.document(), "run: python docs/generate_hooks.py"
    for hook in ("register_models", "trial_figures"):
        assert f"### `{hook}`" in script.document()
