"""benchmarks/defaults.py reads a store and sets each technique against its baseline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from stored import store_trial

#: Of ten images alike, so many are right.
HARD = np.arange(400) % 10


@pytest.fixture
def defaults(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmarks/defaults.py")


def test_each_technique_stands_beside_its_baseline_best_difference_first(defaults: ModuleType, tmp_path: Path) -> None:
    for label, right in (
        ("cold/on", 3),
        ("cold/plain", 5),
        ("even/on", 5),
        ("even/plain", 5),
        ("warm/on", 9),
        ("warm/plain", 5),
    ):
        store_trial(tmp_path, label, 0, right > HARD)
    table = defaults.defaults(defaults.read_rows(tmp_path))
    shown = ("technique", "top-1", "against", "its top-1", "difference", "it is")
    assert list(zip(*map(table.column, shown), strict=True)) == [
        ("warm/on", "90.0", "warm/plain", "50.0", "+40.0", "above"),
        ("even/on", "50.0", "even/plain", "50.0", "+0.0", "not decided"),
        ("cold/on", "30.0", "cold/plain", "50.0", "-20.0", "below"),
    ]


def test_several_seeds_are_refused(defaults: ModuleType, tmp_path: Path) -> None:
    for seed in range(2):
        for label in ("warm/on", "warm/plain"):
            store_trial(tmp_path, label, seed, seed < HARD)
    with pytest.raises(ValueError, match="warm/on"):
        defaults.defaults(defaults.read_rows(tmp_path))
