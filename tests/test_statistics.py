"""Intervals against simulation and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from flowers_bench.statistics import accuracy_interval, mcnemar, paired_difference

MATRICES = st.tuples(st.integers(1, 4), st.integers(1, 40)).flatmap(lambda shape: arrays(bool, shape))


@given(MATRICES)
def test_interval_contains_the_estimate_and_stays_in_range(correct: np.ndarray) -> None:
    interval = accuracy_interval(correct)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1
    assert interval.value == pytest.approx(correct.mean())
    assert (interval.n_seeds, interval.n_images) == correct.shape


@given(MATRICES)
def test_difference_with_oneself_is_nothing(correct: np.ndarray) -> None:
    interval = paired_difference(correct, correct)
    assert (interval.low, interval.value, interval.high) == (0, 0, 0)


@given(MATRICES, st.data())
def test_difference_turns_its_sign(first: np.ndarray, data: st.DataObject) -> None:
    second = data.draw(arrays(bool, first.shape))
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert there.value == pytest.approx(-back.value)


def test_one_seed_gives_wilson_and_says_so() -> None:
    interval = accuracy_interval(np.array([[True] * 8 + [False] * 2]))
    # Wilson 1927 for 8 of 10, from the closed form.
    z, p, n = 1.959963985, 0.8, 10
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    assert (interval.low, interval.high) == (pytest.approx(centre - half), pytest.approx(centre + half))
    assert "one seed" in interval.over


def test_unpaired_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(np.ones((2, 5), bool), np.ones((2, 6), bool))


def test_mcnemar_is_the_sign_test_on_discordant_images() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 90)
    second = np.array([False] * 9 + [True] * 1 + [True] * 90)
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(first, first) == 1.0


def simulate(rng: np.random.Generator, seeds: int, images: int, spread: float) -> tuple[np.ndarray, float]:
    """Images differ in difficulty, seeds in skill; returns (S, N) outcomes and the population's accuracy."""
    difficulty = rng.normal(0.5, 1.0, images)
    skill = rng.normal(0, spread, (seeds, 1))
    return rng.random((seeds, images)) < 1 / (1 + np.exp(-(difficulty + skill))), _population(spread)


def _population(spread: float) -> float:
    rng = np.random.default_rng(1)
    logit = rng.normal(0.5, 1.0, 400_000) + rng.normal(0, spread, 400_000)
    return float((1 / (1 + np.exp(-logit))).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_coverage_is_at_least_nominal(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(0)
    runs = 400
    population = _population(spread)
    hits = 0
    for _ in range(runs):
        correct, _ = simulate(rng, seeds, 300, spread)
        interval = accuracy_interval(correct)
        hits += interval.low <= population <= interval.high
    # 95 % minus three standard errors of 400 simulations.
    assert hits / runs >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)


@pytest.mark.slow
def test_false_positives_stay_at_their_rate() -> None:
    rng = np.random.default_rng(0)
    runs = 400
    claims = 0
    for _ in range(runs):
        difficulty = rng.normal(0.5, 1.0, 300)
        first, second = (
            rng.random((3, 300)) < 1 / (1 + np.exp(-(difficulty + rng.normal(0, 0.2, (3, 1))))) for _ in range(2)
        )
        interval = paired_difference(first, second)
        claims += interval.low > 0 or interval.high < 0
    assert claims / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
