"""Intervals against simulation and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from flowers_bench.statistics import (
    accuracy_interval,
    holm,
    image_mean,
    mcnemar,
    paired_difference,
    paired_p_value,
    seeds_needed,
)

MATRICES = st.tuples(st.integers(1, 4), st.integers(1, 40)).flatmap(lambda shape: arrays(bool, shape))


@settings(deadline=None, max_examples=30)
@given(MATRICES)
def test_interval_contains_the_estimate_and_stays_in_range(correct: np.ndarray) -> None:
    interval = accuracy_interval(correct)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= 1
    assert interval.value == pytest.approx(correct.mean())
    assert (interval.n_seeds, interval.n_images) == correct.shape


@settings(deadline=None, max_examples=30)
@given(MATRICES)
def test_difference_with_oneself_is_nothing(correct: np.ndarray) -> None:
    interval = paired_difference(correct, correct)
    assert (interval.low, interval.value, interval.high) == (0, 0, 0)


@settings(deadline=None, max_examples=30)
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


@settings(deadline=None, max_examples=30)
@given(MATRICES, st.floats(0.1, 3))
def test_mean_of_a_figure_stays_in_range(correct: np.ndarray, most: float) -> None:
    interval = image_mean(correct * most, most)
    assert 0 <= interval.low <= interval.value + 1e-12
    assert interval.value - 1e-12 <= interval.high <= most + 1e-12
    assert (interval.n_seeds, interval.n_images) == correct.shape


def test_mean_of_a_figure_over_the_images_of_one_seed_is_students() -> None:
    values = np.random.default_rng(0).gamma(2, 1, (1, 40))
    expected = stats.ttest_1samp(values[0], 0).confidence_interval()
    interval = image_mean(values, np.inf)
    assert (interval.low, interval.high) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert "one seed" in interval.over


def test_mean_of_a_figure_that_only_seeds_vary_is_students() -> None:
    of_seed = np.array([1.0, 1.4, 2.3])
    expected = stats.ttest_1samp(of_seed, 0).confidence_interval()
    interval = image_mean(of_seed[:, None] * np.ones(50), np.inf)
    assert (interval.low, interval.high) == (pytest.approx(max(0, expected.low)), pytest.approx(expected.high))


@pytest.mark.parametrize("seeds", [1, 3, 10])
def test_mean_of_hits_is_nearly_the_accuracys_interval(seeds: int) -> None:
    rng = np.random.default_rng(0)
    correct, _ = simulate(rng, seeds, 500, 0.2)
    accuracy, mean = accuracy_interval(correct), image_mean(correct.astype(float), 1.0)
    assert mean.value == pytest.approx(accuracy.value)
    assert mean.high - mean.low == pytest.approx(accuracy.high - accuracy.low, rel=0.2)


def test_unpaired_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="not paired"):
        paired_difference(np.ones((2, 5), bool), np.ones((2, 6), bool))


def test_mcnemar_is_the_sign_test_on_discordant_images() -> None:
    first = np.array([True] * 9 + [False] * 1 + [True] * 90)
    second = np.array([False] * 9 + [True] * 1 + [True] * 90)
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(first, first) == 1.0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_with_bonferroni(p_values: list[float]) -> None:
    """Marcus, Peritz & Gabriel 1976: a hypothesis falls when every set of hypotheses that holds it falls."""
    places = range(len(p_values))
    sets = [chosen for size in range(1, len(p_values) + 1) for chosen in itertools.combinations(places, size)]
    level = {chosen: min(1.0, len(chosen) * min(p_values[i] for i in chosen)) for chosen in sets}
    expected = [max(level[chosen] for chosen in sets if place in chosen) for place in places]
    assert holm(p_values) == pytest.approx(expected)


def test_where_only_seeds_vary_it_is_students_t_test() -> None:
    """All images alike: what is left is a t-test over seeds, from another implementation."""
    of_seed = np.array([1, 0, 0, 1, 0, -1, 0])[:, None] * np.ones((1, 50), int)
    first, second = of_seed == 1, of_seed == -1
    assert paired_p_value(first, second) == pytest.approx(stats.ttest_1samp(of_seed[:, 0], 0).pvalue, rel=1e-6)
    interval = paired_difference(first, second)
    expected = stats.ttest_1samp(of_seed[:, 0], 0).confidence_interval()
    assert interval.low == pytest.approx(expected.low, abs=0.03)
    assert interval.high == pytest.approx(expected.high, abs=0.03)


def test_where_only_images_vary_it_is_scipys_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.tile(rng.random(500) < share, (3, 1)) for share in (0.75, 0.7))
    interval = paired_difference(first, second)
    values = first[0].astype(float) - second[0]
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=rng).confidence_interval
    assert (interval.low, interval.high) == (
        pytest.approx(expected.low, abs=0.004),
        pytest.approx(expected.high, abs=0.004),
    )
    z = values.mean() / np.sqrt(values.var() / 500)
    assert paired_p_value(first, second) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.1)


@pytest.mark.parametrize("shift", [-0.08, -0.02, 0.0, 0.03, 0.08])
def test_p_value_and_interval_agree(shift: float) -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.random(400)
    first, second = (
        difficulty < 0.6 + s + rng.normal(0, 0.02, (4, 1)) + rng.normal(0, 0.1, (4, 400)) for s in (shift, 0)
    )
    interval, p = paired_difference(first, second), paired_p_value(first, second)
    assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
    assert p == pytest.approx(paired_p_value(second, first), rel=0.05)


def test_one_seed_is_mcnemars_test() -> None:
    first = np.array([[True] * 9 + [False] * 1 + [True] * 90])
    second = np.array([[False] * 9 + [True] * 1 + [True] * 90])
    assert paired_p_value(first, second) == pytest.approx(stats.binomtest(9, 10).pvalue)


def test_seeds_that_happen_to_agree_are_no_proof() -> None:
    """Two seeds with the same difference by chance: their spread over seeds is not zero."""
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 300)) < 0.75, rng.random((2, 300)) < 0.7
    first[1], second[1] = np.roll(first[0], 1), np.roll(second[0], 7)
    gaps = first.mean(1) - second.mean(1)
    assert gaps[0] == gaps[1]
    assert paired_p_value(first, second) > 0.001


def test_seeds_needed_has_the_limits_it_should() -> None:
    rng = np.random.default_rng(0)
    noisy = rng.random((3, 20000)) < 0.7 + rng.normal(0, 0.03, (3, 1))
    calm = np.tile(noisy[0], (3, 1))
    assert seeds_needed(calm, calm) == 2
    assert seeds_needed(noisy, calm) > 5
    few = rng.random((3, 30)) < 0.7
    assert seeds_needed(few, np.tile(rng.random(30) < 0.7, (3, 1))) is None
    with pytest.raises(ValueError, match="two seeds"):
        seeds_needed(noisy[:1], calm[:1])


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
@pytest.mark.parametrize("seeds", [1, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_intervals_of_a_skewed_figure_cover_it(seeds: int, spread: float) -> None:
    """Losses of images, which are skewed, on seeds that differ; of one seed, what is covered is that seed's mean."""
    rng = np.random.default_rng(0)
    runs = 1000
    hits = 0
    for _ in range(runs):
        level = 1 + rng.normal(0, spread, (seeds, 1))
        values = 0.5 * rng.gamma(2, 0.5, 300) + level * 0.5 * rng.gamma(2, 0.5, (seeds, 300))
        interval = image_mean(values, np.inf)
        hits += interval.low <= (1.0 if seeds > 1 else 0.5 + 0.5 * level[0, 0]) <= interval.high
    assert hits / runs >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)


def differences(
    rng: np.random.Generator, seeds: int, spread: float, gap: float = 0.0, images: int = 300
) -> tuple[np.ndarray, np.ndarray]:
    """Two techniques (S, N) each, on the same images, `gap` apart in skill: seeds of a technique differ by `spread`."""
    difficulty = rng.normal(0.5, 1.0, images)
    skills = (gap + rng.normal(0, spread, (seeds, 1)), rng.normal(0, spread, (seeds, 1)))
    first, second = (rng.random((seeds, images)) < 1 / (1 + np.exp(-(difficulty + skill))) for skill in skills)
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "spread"), [(2, 0.2), (3, 0.0), (3, 0.2), (5, 0.2), (10, 0.1)])
def test_false_positives_come_at_their_rate(seeds: int, spread: float) -> None:
    """At the usual level and at the small ones that a correction for many pairs works with; neither more nor,
    at 5 %, so few that the test would be blind."""
    rng = np.random.default_rng(0)
    runs = 1000
    p_values = np.array([paired_p_value(*differences(rng, seeds, spread)) for _ in range(runs)])
    for level in (0.2, 0.05, 0.005):
        assert (p_values < level).mean() <= level + 3 * np.sqrt(level * (1 - level) / runs)
    assert (p_values < 0.05).mean() >= 0.02


@pytest.mark.slow
def test_mcnemar_is_never_too_eager() -> None:
    rng = np.random.default_rng(0)
    p_values = np.array([paired_p_value(*differences(rng, 1, 0.0)) for _ in range(1000)])
    assert (p_values < 0.05).mean() <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 1000)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 0.2), (5, 0.3)])
def test_intervals_of_a_true_difference_cover_it(seeds: int, spread: float) -> None:
    rng = np.random.default_rng(0)
    many = np.random.default_rng(1)
    gap = 0.3
    first, second = differences(many, 400, spread, gap, images=4000)
    truth = first.mean() - second.mean()
    runs = 600
    hits = 0
    for _ in range(runs):
        interval = paired_difference(*differences(rng, seeds, spread, gap))
        hits += interval.low <= truth <= interval.high
    assert abs(hits / runs - 0.95) <= 3 * np.sqrt(0.95 * 0.05 / runs) + 0.01


@pytest.mark.slow
def test_holm_keeps_the_chance_of_any_false_claim() -> None:
    """Four equal techniques, six pairs."""
    rng = np.random.default_rng(0)
    runs = 250
    claims = 0
    for _ in range(runs):
        difficulty = rng.normal(0.5, 1.0, 300)
        skill = rng.normal(0, 0.2, (4, 3, 1))
        outcomes = rng.random((4, 3, 300)) < 1 / (1 + np.exp(-(difficulty + skill)))
        pairs = itertools.combinations(outcomes, 2)
        claims += min(holm([paired_p_value(a, b) for a, b in pairs])) < 0.05
    assert claims / runs <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


@pytest.mark.slow
def test_seeds_needed_gives_the_power_it_promises() -> None:
    """The number asked for, from pilots of ten seeds, then finds a difference of that size about four times in five."""
    rng = np.random.default_rng(0)
    spread, images = 0.1, 3000
    gap = 0.15
    effect = float(np.diff([d.mean() for d in differences(np.random.default_rng(1), 300, spread, gap, 4000)])[0] * -1)
    asked = int(np.median([seeds_needed(*differences(rng, 10, spread, 0.0, images), effect=effect) for _ in range(40)]))
    found = np.mean([paired_p_value(*differences(rng, asked, spread, gap, images)) < 0.05 for _ in range(300)])
    assert 3 <= asked <= 30
    assert 0.65 <= found <= 0.95
