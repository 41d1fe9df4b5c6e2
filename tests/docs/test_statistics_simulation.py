"""The simulation behind docs/statistics.md, repeated in part: the same code on fewer runs gives the committed figures."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture
def simulation(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmarks/statistics_simulation.py")


@pytest.fixture
def committed(script: Callable[[str], ModuleType]) -> Callable[..., dict[str, str]]:
    tables = script("benchmarks/tables.py")

    def row(file: str, **wanted: str) -> dict[str, str]:
        found = tables.Table.read(f"statistics/{file}")
        rows = [dict(zip(found.columns, cells, strict=True)) for cells in found.rows]
        (one,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
        return one

    return row


def near(found: float, runs: int, committed: float, its_runs: int) -> bool:
    """Whether two shares in percent are within three standard errors, those of a share of at least 2 %."""
    share = min(max(committed, 2.0), 98.0) / 100
    error = np.sqrt(share * (1 - share) * (1 / runs + 1 / its_runs))
    return abs(found - committed) <= 300 * error


def test_a_world_has_the_accuracies_that_it_was_asked_for(simulation: ModuleType) -> None:
    world = simulation.World(3, 400, [4.8, 1.2, 0.0], [0.0, 2.0, 0.0])
    rng = np.random.default_rng(0)
    found = np.mean([world.draw(rng).mean((1, 2)) for _ in range(200)], 0)
    assert found == pytest.approx([0.80, 0.82, 0.80], abs=0.012)
    collapsing = simulation.World(3, 400, [1.2] * 400, [0.0] * 400, collapse=0.05)
    assert collapsing.draw(rng).mean() == pytest.approx(0.95 * 0.8 + 0.05 * 0.1, abs=0.02)


@pytest.mark.parametrize("world", ["none, 0", "2 points, 0.25", "none, 0.04; sd 0.85"])
def test_sequences_repeat_the_committed_figures(
    simulation: ModuleType, committed: Callable[..., dict], world: str
) -> None:
    runs = 3000
    for row in simulation.sequential(runs, {world: simulation.SEQUENCES[world]}):
        known = committed(
            "sequential.csv", **{"true difference and variance over images": world, "tested": row["tested"]}
        )
        for column in ("called different %", "called within 1 point %"):
            if known[column]:
                assert near(float(row[column]), runs, float(known[column]), int(known["runs"])), (row, known)
        assert float(row["mean seeds"]) == pytest.approx(float(known["mean seeds"]), abs=0.6)


def test_the_committed_plan_keeps_what_it_promises(committed: Callable[..., dict]) -> None:
    """Of equals, near 5 % are called different where images add nothing, and fewer where they do; peeking calls 23 %."""
    for world in ("none, 0", "none, 0.25", "none, 1"):
        known = committed("sequential.csv", **{"true difference and variance over images": world, "tested": "the plan"})
        low = 4.5 if world == "none, 0" else 0
        assert low <= float(known["called different %"]) <= 5.5
    peeking = {"true difference and variance over images": "none, 0", "tested": "looking at 0.05"}
    assert float(committed("sequential.csv", **peeking)["called different %"]) == pytest.approx(23, abs=0.5)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
def test_equals_are_rarely_claimed_to_differ_whatever_their_seeds_do(
    simulation: ModuleType, committed: Callable[..., dict], seeds: int
) -> None:
    runs, method = 60, simulation.METHODS[2]
    for row in simulation.families(runs, [(seeds, method)]):
        known = committed(
            "families.csv",
            **{"seeds": str(seeds), "seeds are": method, "seeds' deviations": row["seeds' deviations"]},
        )
        column = "any of 28 claimed %"
        assert near(float(row[column]), runs, float(known[column]), int(known["runs"])), (row, known)
        assert float(known[column]) <= 100 * (0.05 + 3 * np.sqrt(0.05 * 0.95 / int(known["runs"])))


@pytest.mark.slow
def test_power_repeats_the_committed_figures(simulation: ModuleType, committed: Callable[..., dict]) -> None:
    runs = 30
    for row in simulation.powers(runs, simulation.CELLS[:3]):
        known = committed("powers.csv", **{key: str(row[key]) for key in ("seeds", "points", "seeds are")})
        for column in ("seen, the pair alone %", "seen among all 28 pairs %"):
            assert near(float(row[column]), runs, float(known[column]), int(known["runs"])), (row, known)


@pytest.mark.slow
def test_curves_repeat_the_committed_figures(simulation: ModuleType, committed: Callable[..., dict]) -> None:
    runs = 50
    for row in simulation.curves(runs, (2, 5), (200, 1000)):
        known = committed("curves.csv", **{key: str(row[key]) for key in ("seeds", "test images")})
        for column in ("false positives %", "coverage %", "power at 2 points %"):
            # Pairs of one run share their images: they count as fewer.
            assert near(float(row[column]), 2 * runs, float(known[column]), int(known["pairs"]) // 2), (row, known)
