"""Figures of any store, for a paper: as SVG and PDF, with the numbers of the leaderboard."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from stored import outcomes, store_trial

from flowers_bench.cli.figures import figures
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.store_figures import draw_cost, draw_matrix
from flowers_bench.store.folder import Store
from flowers_bench.util.errors import UsageError


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stored")
    for seed in range(3):
        store_trial(root, "a/x", seed, outcomes(seed, 0.9), seconds=60.0)
        store_trial(root, "b/$x^2$", seed, outcomes(10 + seed, 0.6), seconds=6.0)
    store_trial(root, "a/x", 0, outcomes(0, 0.9), dataset={"name": "garden"})
    return root


def test_each_table_has_its_figures_in_both_formats(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert figures(None, store, tmp_path / "drawn") == 0
    names = {path.name for path in (tmp_path / "drawn").iterdir()}
    kinds = {"cost-meadow", "curves-meadow", "matrix-meadow", "cost-garden", "curves-garden"}
    assert names == {f"{kind}{suffix}" for kind in kinds for suffix in (".svg", ".pdf")}
    assert "absent: matrix of garden" in capsys.readouterr().out
    assert (tmp_path / "drawn" / "cost-meadow.pdf").read_bytes().startswith(b"%PDF")


def test_the_same_store_gives_the_same_bytes(store: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        figures(None, store, tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


def test_the_numbers_are_those_of_the_table(store: Path, tmp_path: Path) -> None:
    board = Leaderboard.of(Store(store).finished())
    group = next(group for group in board.groups if len(group.rows) > 1)
    cost = draw_cost(group)
    assert not isinstance(cost, str)
    (axes,) = cost.canvas.axes
    assert axes.get_xscale() == "log"
    drawn = {container.get_label(): container for container in axes.containers}
    for row in group.rows:
        line, _, (bars,) = drawn[row.name]
        ((x, y),) = line.get_xydata()
        assert x == row.mean("cost", "seconds")
        assert y == pytest.approx(100 * row.top1.value)
        ((_, low), (_, high)) = bars.get_segments()[0]
        assert (low, high) == pytest.approx((100 * row.top1.low, 100 * row.top1.high))
    matrix = draw_matrix(group)
    assert not isinstance(matrix, str)
    texts = [text.get_text() for text in matrix.canvas.axes[0].texts]
    (pair,) = group.compared.pairs
    value = 100 * pair.difference.value
    assert sorted(texts) == sorted([f"{value:+.1f}", f"{-value:+.1f}"])
    assert pair.claimed
    assert {text.get_fontweight() for text in matrix.canvas.axes[0].texts} == {"bold"}


def test_names_are_shown_as_they_are(store: Path, tmp_path: Path) -> None:
    figures(None, store, tmp_path)
    assert "b/$x^2$" in re.sub(r"<[^>]+>", "", (tmp_path / "cost-meadow.svg").read_text())


def test_an_empty_store_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished trials"):
        figures(None, tmp_path, tmp_path / "drawn")
