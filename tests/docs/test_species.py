"""benchmarks/species.py tells pretrainings apart by the weights that trials started from."""

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
def species(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmarks/species.py")


def test_each_pretraining_stands_beside_the_one_with_fewest_species(species: ModuleType, tmp_path: Path) -> None:
    for start in species.STARTS.values():
        for trial, right in (("few", 5), ("many", 8)):
            weights = {"name": f"trial:{trial}", "sha256": trial.encode().hex().ljust(64, "0")}
            store_trial(tmp_path, start, 0, right > HARD, weights=weights)
    table = species.tabulate(tmp_path, {60: "few", 600: "many"})
    assert table.column("species") == ["60", "600"]
    for start in species.STARTS:
        assert table.column(start) == ["50.0", "80.0"]
        assert table.column(f"{start}: gain") == ["", "+30.0"]
