"""The table of accuracy by what is known of each test image says what was planted, for the baseline too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stored import plain_key, store_trial

from flowers_bench.contract.dataset import Dataset, Split
from flowers_bench.report.factors import PARTS, factor_tables
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.store.folder import Store

N = 300


def a_dataset(tilt: np.ndarray) -> Dataset:
    def split(name: str, count: int) -> Split:
        return Split([], np.arange(count) % 4, [plain_key(name, i) for i in range(count)])

    return Dataset(
        "meadow",
        ("a", "b", "c", "d"),
        split("train", 40),
        split("val", 20),
        split("test", N),
        fingerprint="f" * 64,
        split_checksum="5" * 64,
        resolution="64x64",
        shown_factors={"tilt": tilt},
    )


@pytest.fixture
def board(tmp_path: Path) -> Leaderboard:
    """One technique is right on the 200 images that are tilted least, its baseline on the 100 that are least; two seeds."""
    tilt = tilts()
    for seed in (0, 1):
        store_trial(tmp_path, "deformable/stage3", seed, tilt < 200)
        store_trial(tmp_path, "deformable/plain", seed, tilt < 100)
    return Leaderboard.of(list(Store(tmp_path).finished()))


def tilts() -> np.ndarray:
    """An order that is not that of the images."""
    return np.random.default_rng(0).permutation(N)


def test_thirds_of_the_images_by_the_factor(board: Leaderboard) -> None:
    (table,) = factor_tables(board, [a_dataset(tilts())])
    assert table.title.endswith("deformable/stage3 / deformable/plain")
    assert table.head == ("test images by", "tilt")
    assert table.body == tuple(zip(PARTS, ("100.0 / 100.0", "100.0 / 0.0", "0.0 / 0.0"), strict=True))
    assert "2 seeds, at least 100 images" in table.notes[0]


def test_photographs_and_other_data_have_no_table(board: Leaderboard) -> None:
    assert factor_tables(board, []) == []
    other = a_dataset(tilts())
    other = type(other)(**{**vars(other), "fingerprint": "0" * 64})
    assert factor_tables(board, [other]) == []
