"""Accuracy against training images: one figure over tables that stay apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from stored import outcomes, store_trial

from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.shots import families
from flowers_bench.report.text import json_text, sheets
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import Protocol


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Leaderboard:
    root: Path = tmp_path_factory.mktemp("shots")
    for seed in range(2):
        for shots, accuracy in ((1, 0.3), (5, 0.6), (None, 0.8)):
            size = {"n_train": 4 * (shots or 10)}
            store_trial(root, "wise/good", seed, outcomes(seed, accuracy), dataset=size, protocol=Protocol(shots=shots))
            store_trial(
                root, "wise/plain", seed, outcomes(seed, accuracy - 0.1), dataset=size, protocol=Protocol(shots=shots)
            )
    store_trial(root, "wise/once", 0, outcomes(0, 0.7), dataset={"n_train": 40})
    store_trial(root, "wise/good", 0, outcomes(0, 0.9), dataset={"name": "garden"})
    return Leaderboard.of(Store(root).finished())


def test_different_shots_never_share_a_table(board: Leaderboard) -> None:
    for group in board.groups:
        assert len({row.config.protocol.shots for row in group.rows}) == 1
    titles = [group.title for group in board.groups if group.title.startswith("meadow")]
    assert sum("(5 of each class)" in title for title in titles) == 1
    assert {row["shots"] for row in json.loads(json_text(board))} == {1, 5, None}


def test_the_figure_has_every_configuration_with_its_interval(board: Leaderboard) -> None:
    (family,) = dict.fromkeys(families(board).values())
    assert list(family.columns) == ["1", "5", "all (10)"]
    assert [curve.name for curve in family.curves] == ["wise/good", "wise/plain"], "one point is no curve"
    points = family.curves[0].points
    assert [round(top1.value, 2) for top1 in points.values()] == [0.3, 0.6, 0.8]
    assert all(top1.low < top1.value < top1.high for top1 in points.values())
    assert len(families(board)) == 3, "every group of the three numbers shows it, the garden does not"
    sheet = list(sheets(board))[-1]
    assert sheet.head[2:] == ("1", "5", "all (10)")
    assert sheet.body[0][2].startswith("30.0 [")
