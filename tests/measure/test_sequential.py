"""Looking again while seeds are added: levels against another integration, p-values, and simulated sequences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from flowers_bench.measure.sequential import (
    SEEDS,
    SHARE,
    Look,
    adjust_both,
    nominal_levels,
    plan_looks,
    sequential_p_value,
)

LOOKS = plan_looks(30)


def crossed(looks: tuple[Look, ...], levels: tuple[float, ...]) -> float:
    """The probability that equals are called different at one of the looks, by scipy's multivariate normal."""
    seeds = np.array([look.seeds for look in looks], float)
    correlation = np.sqrt(np.minimum.outer(seeds, seeds) / np.maximum.outer(seeds, seeds))
    bounds = stats.norm.isf(np.array(levels) / 2)
    return 1 - float(stats.multivariate_normal(cov=correlation, seed=0).cdf(bounds, lower_limit=-bounds))


def test_looks_are_those_of_the_plan_and_spend_in_proportion() -> None:
    assert tuple(look.seeds for look in LOOKS) == SEEDS
    assert [look.spent for look in LOOKS] == pytest.approx([seeds / 30 for seeds in SEEDS])
    assert [look.seeds for look in plan_looks(12)] == [3, 4, 5, 6, 8, 10, 12]
    assert [look.seeds for look in plan_looks(60)][-4:] == [30, 38, 48, 60]
    assert plan_looks(3) == (Look(3, 1.0),)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 28])
@pytest.mark.parametrize("count", [2, 5, 11])
def test_levels_spend_what_is_planned(alpha: float, count: int) -> None:
    levels = nominal_levels(LOOKS, alpha)[:count]
    assert crossed(LOOKS[:count], levels) == pytest.approx(alpha * LOOKS[count - 1].spent, abs=2e-5)


def test_levels_are_near_those_of_an_independent_simulation() -> None:
    """Simulated ones, of 60,000 sequences: the first is exactly a tenth of alpha, and was found to be .00496."""
    simulated = (0.00496, 0.0033, 0.00328, 0.00362, 0.00559, 0.00662, 0.00899, 0.01107, 0.01446, 0.01837, 0.0212)
    levels = nominal_levels(LOOKS, 0.05)
    assert levels[0] == pytest.approx(0.005, abs=1e-9)
    assert levels == pytest.approx(simulated, abs=4e-4)
    assert levels[-1] == pytest.approx(simulated[-1], abs=1e-4)


def test_more_seeds_than_were_planned_spend_only_what_is_left() -> None:
    longer = plan_looks(60, LOOKS[:6])
    assert longer[:6] == LOOKS[:6]
    assert longer[-1] == Look(60, 1.0)
    spent = [look.spent for look in longer]
    assert spent == sorted(spent)
    assert crossed(longer, nominal_levels(longer, 0.05)) == pytest.approx(0.05, abs=1e-3)
    for seeds_max, done in ((60, LOOKS), (10, LOOKS[:6]), (2, ())):
        with pytest.raises(ValueError, match="no look is left"):
            plan_looks(seeds_max, done)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=11))
def test_a_sequential_p_is_that_alpha_at_which_a_look_rejects(p_values: list[float]) -> None:
    found = sequential_p_value(LOOKS, p_values)
    shares = np.diff([0, *(look.spent for look in LOOKS)])
    cruder = min(p / share for p, share in zip(p_values, shares, strict=False)) / SHARE
    assert found <= min(1, cruder) * 1.01, "never above that of Bonferroni's shares"
    for alpha in (0.05, 0.05 / 28):
        if abs(found / alpha - 1) > 0.01:
            rejected = any(p <= level for p, level in zip(p_values, nominal_levels(LOOKS, alpha * SHARE), strict=False))
            assert rejected == (found < alpha)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=3))
def test_both_claims_are_adjusted_as_the_closed_test_is_that_knows_what_can_be_true(
    pairs: list[tuple[float, float]],
) -> None:
    """Never below the closed test over all sets with at most one hypothesis of each pair (each by Bonferroni)."""
    found = adjust_both([pair[0] for pair in pairs], [pair[1] for pair in pairs])
    sets = [
        [(place, side) for place, side in enumerate(sides) if side is not None]
        for sides in itertools.product((0, 1, None), repeat=len(pairs))
    ]
    for place, side in itertools.product(range(len(pairs)), (0, 1)):
        closed = max(len(chosen) * min(pairs[i][j] for i, j in chosen) for chosen in sets if (place, side) in chosen)
        assert found[side][place] >= min(1, closed) - 1e-12


def test_one_pair_pays_for_one_claim_at_a_time() -> None:
    assert adjust_both([0.01], [0.5]) == ([0.01], [0.5])
    assert adjust_both([0.01, 0.2], [0.9, 0.03]) == ([0.02, 0.4], [0.9, 0.06])
    differ, within = adjust_both([0.01, 0.2], [0.02, 0.03])
    assert (differ, within) == ([0.02, 0.2], [0.04, 0.04]), "the first pair is done with after two claims"


def test_equal_techniques_are_rarely_called_different_and_far_ones_soon() -> None:
    """A part of the committed simulation: 4,000 sequences of normal seeds whose variance is estimated."""
    levels = nominal_levels(LOOKS, 0.05 * SHARE)
    drawn = np.random.default_rng(0).standard_normal((4000, 30))

    def decided(values: np.ndarray, bounds: tuple[float, ...]) -> np.ndarray:
        found = np.zeros(len(values), bool)
        for look, level in zip(LOOKS, bounds, strict=True):
            found |= stats.ttest_1samp(values[:, : look.seeds], 0, axis=1).pvalue < level
        return found

    assert 0.038 <= decided(drawn, levels).mean() <= 0.06
    assert decided(drawn, (0.05,) * len(LOOKS)).mean() > 0.2, "what looking without a plan does"
    assert decided(drawn + 3, levels).mean() > 0.999
