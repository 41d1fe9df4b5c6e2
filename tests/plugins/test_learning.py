"""Techniques learn drawn flowers from scratch: how far above chance, stated for each."""

from __future__ import annotations

from pathlib import Path

import pytest
from lives import live

SPECIES = 20


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "times_chance", "settings"),
    [
        ("triplet/batch-hard", 4, {}),
        ("triplet/semi-hard", 4, {}),
        ("triplet/entropy", 3, {"epochs": "25"}),
        ("mixing/random", 4, {}),
        ("mixing/per-image", 4, {}),
        ("prototypical/euclidean", 4, {}),
        ("prototypical/cosine", 4, {}),
        ("cosine-loss/combined", 4, {}),
        ("cosine-loss/cosine", 4, {}),
        # What random convolutions happen to see.
        ("knn/untrained", 2, {"epochs": "0", "warmup_epochs": "0"}),
        ("linear-probe/logistic", 3, {"epochs": "0", "warmup_epochs": "0"}),
    ],
)
def test_it_learns_petals(tmp_path: Path, name: str, times_chance: float, settings: dict[str, str]) -> None:
    given = {"epochs": "12", "warmup_epochs": "1", "image_size": "64", "data.species": str(SPECIES), **settings}
    result = live(tmp_path, name, data="petals", **given).result()
    print(name, result["test"]["top1"], result["retrieval"], result.get("episodic"), result.get("mixed"))
    assert result["test"]["top1"] > times_chance / SPECIES
