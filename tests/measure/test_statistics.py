"""Intervals against simulation and closed forms."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from flowers_bench.measure.statistics import (
    Difference,
    Pool,
    SeedsNeeded,
    _exact_difference,
    _resampled_sums,
    accuracy_interval,
    far_off,
    holm,
    image_mean,
    mcnemar,
    paired_difference,
    paired_p_value,
    seeds_needed,
    share_interval,
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
def test_difference_with_oneself_is_nothing_as_far_as_so_many_images_can_tell(correct: np.ndarray) -> None:
    interval = paired_difference(correct, correct)
    unseen = 1 - 0.025 ** (1 / correct.shape[1])  # the largest share of images that differ of which none may be drawn
    assert interval.value == 0
    assert (interval.low, interval.high) == (pytest.approx(-unseen), pytest.approx(unseen))
    assert paired_p_value(correct, correct) == 1


@settings(deadline=None, max_examples=30)
@given(MATRICES, st.data())
def test_difference_turns_its_sign(first: np.ndarray, data: st.DataObject) -> None:
    second = data.draw(arrays(bool, first.shape))
    there, back = paired_difference(first, second), paired_difference(second, first)
    assert (there.low, there.value, there.high) == pytest.approx((-back.high, -back.value, -back.low))
    assert paired_p_value(first, second) == pytest.approx(paired_p_value(second, first))


@settings(deadline=None, max_examples=200)
@given(won=st.integers(0, 60), lost=st.integers(0, 60), both=st.integers(0, 5000))
def test_interval_of_one_seed_excludes_zero_exactly_where_the_exact_test_rejects(
    won: int, lost: int, both: int
) -> None:
    first = np.array([[True] * won + [False] * lost + [True] * (both + 1)])
    second = np.array([[False] * won + [True] * lost + [True] * (both + 1)])
    interval = paired_difference(first, second)
    assert interval.low <= interval.value <= interval.high
    assert interval.low < interval.high
    assert (interval.low > 0 or interval.high < 0) == (mcnemar(first[0], second[0]) < 0.05)
    assert interval.over == "test images, paired, one seed (exact)"


def test_five_images_won_and_none_lost_is_no_difference_to_the_interval_either() -> None:
    """What the bootstrap called [+0.25, +2.5] beside p = 0.06."""
    first = np.ones((1, 400), bool)
    second = first.copy()
    second[0, :5] = False
    interval = paired_difference(first, second)
    assert paired_p_value(first, second) == pytest.approx(0.0625)
    assert interval.low < 0 < interval.high


def test_exact_interval_where_none_is_lost_is_clopper_and_pearsons_above() -> None:
    assert _exact_difference(20, 0, 340)[1] == pytest.approx(stats.binomtest(20, 340).proportion_ci(0.95).high)


def test_exact_interval_of_many_images_is_the_normal_one() -> None:
    low, high = _exact_difference(3000, 2400, 20000)
    value, error = 600 / 20000, np.sqrt(5400 - 600**2 / 20000) / 20000
    assert (low, high) == (pytest.approx(value - 1.96 * error, rel=0.02), pytest.approx(value + 1.96 * error, rel=0.02))


def test_seeds_that_all_agree_are_as_good_as_one() -> None:
    rng = np.random.default_rng(0)
    first, second = (np.tile(rng.random(340) < share, (3, 1)) for share in (0.956, 0.93))
    one, three = (paired_difference(first[:seeds], second[:seeds]) for seeds in (1, 3))
    assert (one.low, one.high) == (three.low, three.high)
    assert (three.n_seeds, three.over) == (3, "test images, paired, on which all seeds agree (exact)")
    assert paired_p_value(first, second) == mcnemar(first[0], second[0])
    assert accuracy_interval(first).low == accuracy_interval(first[:1]).low
    assert "all seeds agree" in accuracy_interval(first).over


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_all_right_is_no_proof_of_perfection(seeds: int) -> None:
    interval = accuracy_interval(np.ones((seeds, 340), bool))
    assert interval.high == 1
    assert interval.low == pytest.approx(340 / (340 + 1.959964**2))
    assert interval.low < 0.99
    mean = image_mean(np.ones((seeds, 340)), 1.0)
    assert (mean.low, mean.high) == (pytest.approx(interval.low), 1)


@pytest.mark.parametrize("seed", range(8))
def test_two_seeds_have_a_symmetric_interval(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = (
        rng.normal(0, 1, 340) + rng.normal(0, 0.6, (2, 340)) < limit + rng.normal(0, 0.1, (2, 1))
        for limit in (0.7, 0.7)
    )
    found = paired_difference(first, second)
    if found.low > -1 and found.high < 1:
        assert abs((found.high - found.value) - (found.value - found.low)) < 1e-3 * (found.high - found.low)


def test_resamples_are_the_bootstraps_own_distribution() -> None:
    """Of three values, all 27 resamples; of many, the mean and variance that theory gives."""
    values = np.array([0, 1, 3])
    sums = np.array([sum(drawn) for drawn in itertools.product(values, repeat=3)]) - values.sum()
    places, weights = _resampled_sums(values)
    assert dict(zip(places.tolist(), weights.tolist(), strict=True)) == pytest.approx(
        {int(place): float((sums == place).mean()) for place in np.unique(sums)}
    )
    many = np.random.default_rng(0).integers(-3, 4, 6149)
    places, weights = _resampled_sums(many)
    assert weights @ places == pytest.approx(0, abs=1e-6)
    assert weights @ places**2 == pytest.approx(many.var() * len(many))


def test_outcomes_that_are_no_whole_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        paired_difference(np.full((2, 5), 0.5), np.zeros((2, 5)))


def test_shares_without_their_outcomes_are_wilsons_and_seeds_add_to_it() -> None:
    wilson = stats.binomtest(306, 340).proportion_ci(method="wilson")
    assert share_interval([0.9], 340) == (pytest.approx(wilson.low), pytest.approx(wilson.high))
    assert share_interval([0.9, 0.9], 340) == share_interval([0.9], 340)
    low, high = share_interval([0.88, 0.9, 0.92], 340)
    seeds = stats.ttest_1samp([0.88, 0.9, 0.92], 0).confidence_interval().high - 0.9
    assert 0.9 - low == pytest.approx(np.hypot(seeds, 0.9 - wilson.low))
    assert high - 0.9 == pytest.approx(np.hypot(seeds, wilson.high - 0.9))
    assert share_interval([1.0, 1.0, 1.0], 340)[0] < 0.99


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


@settings(deadline=None)
@given(st.integers(0, 3000), st.integers(0, 3000))
def test_mcnemar_is_scipys_exact_test(won: int, lost: int) -> None:
    first = np.arange(won + lost + 1) < won
    second = np.arange(won + lost + 1) >= won
    second[-1] = first[-1] = True
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(won, won + lost).pvalue if won + lost else 1.0, 1e-9)


@settings(deadline=None)
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
    assert (interval.low, interval.high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_where_only_images_vary_it_is_scipys_bootstrap() -> None:
    rng = np.random.default_rng(0)
    first, second = (2 * (rng.random((1, 500)) < share) for share in (0.75, 0.7))  # sums: not bool, so not McNemar's
    interval = paired_difference(first, second)
    values = first[0] - second[0]
    expected = stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=rng).confidence_interval
    assert (interval.low, interval.high) == (
        pytest.approx(expected.low, abs=0.008),
        pytest.approx(expected.high, abs=0.008),
    )
    z = values.mean() / np.sqrt(values.var() / 500)
    assert paired_p_value(first, second) == pytest.approx(2 * stats.norm.sf(abs(z)), rel=0.1)


@pytest.mark.parametrize("shift", [-0.08, -0.02, 0.0, 0.03, 0.08])
@pytest.mark.parametrize("seeds", [1, 2, 4])
def test_p_value_and_interval_agree(shift: float, seeds: int) -> None:
    rng = np.random.default_rng(3)
    difficulty = rng.random(400)
    first, second = (
        difficulty < 0.6 + s + rng.normal(0, 0.02, (seeds, 1)) + rng.normal(0, 0.1, (seeds, 400)) for s in (shift, 0)
    )
    interval, p = paired_difference(first, second), paired_p_value(first, second)
    assert (p < 0.05) == (interval.low > 0 or interval.high < 0)
    assert p == pytest.approx(paired_p_value(second, first), rel=1e-6)


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
    assert seeds_needed(calm, calm) == SeedsNeeded(2, 2, images_suffice=True)
    found = seeds_needed(noisy, calm)
    assert 5 < found.low < found.high
    few = rng.random((3, 30)) < 0.7
    assert seeds_needed(few, np.tile(rng.random(30) < 0.7, (3, 1))) == SeedsNeeded(None, None, images_suffice=False)
    with pytest.raises(ValueError, match="two seeds"):
        seeds_needed(noisy[:1], calm[:1])


def unpaired(first: list[int], second: list[int], pool: Pool) -> Difference:
    """Two techniques whose seeds have these sums on every image, so that images say nothing."""
    return Difference.of(*(np.tile(np.array(side)[:, None], 50) for side in (first, second)), pool)


def test_seeds_that_are_not_paired_are_welchs_test() -> None:
    """The figures of an independent computation; and scipy's."""
    found = unpaired([80, 81, 82], [77, 78, 79], Pool(0.0, 0))
    assert found.p_value() == pytest.approx(0.02131, abs=5e-6)
    first, second = [80, 81, 85], [77, 78, 78]
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert unpaired(first, second, Pool(0.0, 0)).p_value() == pytest.approx(expected.pvalue)
    interval, bounds = unpaired(first, second, Pool(0.0, 0)).interval(), expected.confidence_interval()
    assert (interval.low, interval.high) == (pytest.approx(bounds.low), pytest.approx(bounds.high))


def test_a_small_variance_gives_way_to_the_pools_and_a_large_one_does_not() -> None:
    """By hand: variances 1 and 9 among four techniques of variance 4, S = 3, so that the pool has 8 degrees of freedom."""
    pool = Pool(4.0, 8)
    found = unpaired([80, 81, 82], [75, 78, 81], pool)
    error, freedom = np.sqrt((4 + 9) / 3), (4 + 9) ** 2 / (4**2 / 8 + 9**2 / 2)
    assert found.p_value() == pytest.approx(2 * stats.t.sf(3 / error, freedom))
    assert found.interval().over == "seeds and test images, images paired (bootstrap)"


def test_a_pool_takes_three_techniques_of_several_seeds() -> None:
    sums = [np.array(side)[:, None] * np.ones((1, 4)) for side in ([1, 2, 3], [2, 2, 2], [0, 3, 6], [7])]
    assert Pool.of(sums) == Pool((1 + 0 + 9) / 3, 6)
    assert Pool.of(sums[:2]) == Pool.of(sums[1:4]) == Pool(0.0, 0)
    assert Pool.of([sums[0], sums[1], np.array([[0.0], [2.0]])]) == Pool((2 * 1 + 2 * 0 + 1 * 2) / 5, 5)


def test_quantiles_of_a_correction_for_28_pairs_are_students() -> None:
    """What an independent table has."""
    found = [float(stats.t.isf(0.05 / 28 / 2, freedom)) for freedom in (2, 4, 16)]
    assert found == pytest.approx([23.6326, 7.3924, 3.7398], abs=5e-5)
    far = unpaired([0, 10, 20], [10, 10, 10], Pool(0.0, 0))
    assert far.spread is not None
    assert far.spread.below(-23.6326 * far.spread.seeds) == pytest.approx(0.05 / 28 / 2, rel=1e-4)


@pytest.mark.parametrize("seeds", [1, 2, 3])
@pytest.mark.parametrize("gap", [0.0, 0.02])
def test_within_the_margin_is_claimed_exactly_where_the_interval_lies_inside(seeds: int, gap: float) -> None:
    rng = np.random.default_rng(4)
    difficulty = rng.random(4000)
    first, second = (difficulty + rng.normal(0, 0.02, (seeds, 4000)) < 0.7 + shift for shift in (gap, 0.0))
    found = Difference.of(first, second, Pool(0.0, 0))
    interval = found.interval()
    reach = max(-interval.low, interval.high)
    assert found.p_within(reach + 2e-4) < 0.05 < found.p_within(reach - 2e-4)
    assert found.p_within(abs(found.value)) == pytest.approx(1, abs=0.1)


def test_what_lies_beyond_the_margin_is_not_within() -> None:
    assert unpaired([80, 81, 82], [77, 78, 79], Pool(0.0, 0)).p_within(2.0) == 1
    first, second = np.ones((1, 400), bool), np.ones((1, 400), bool)
    second[0, :40] = False
    assert Difference.of(first, second).p_within(0.1) == 1
    assert Difference.of(first, first).p_within(0.5) < 1e-9


def test_seeds_needed_of_a_pool_are_fewer_and_surer() -> None:
    rng = np.random.default_rng(0)
    sides = rng.random((8, 3, 20000)) < 0.7 + rng.normal(0, 0.01, (8, 3, 1))
    alone = seeds_needed(sides[0], sides[1], pool=Pool(0.0, 0))
    pooled = seeds_needed(sides[0], sides[1], pool=Pool.of(list(sides)))
    assert pooled.high / pooled.low < alone.high / alone.low


@pytest.mark.parametrize(
    ("shares", "place"),
    [
        ([0.8, 0.81, 0.3], 2),
        ([0.1, 0.8, 0.81, 0.79], 0),
        ([0.80, 0.81, 0.84], None),  # near
        ([0.7, 0.8, 0.9], None),  # all differ
        ([0.8, 0.3], None),  # which of the two?
        ([0.8], None),
        ([0.8, 0.8, 0.8], None),
    ],
)
def test_a_seed_is_far_off_where_all_others_are_together(shares: list[float], place: int | None) -> None:
    assert far_off(shares) == place


@pytest.mark.slow
@pytest.mark.parametrize(("won", "lost"), [(0.02, 0.02), (0.05, 0.02), (0.002, 0.0), (0.1, 0.07)])
def test_exact_intervals_of_one_seed_cover_the_difference_on_other_images(won: float, lost: float) -> None:
    rng = np.random.default_rng(0)
    runs, images = 1500, 400
    found = rng.multinomial(images, [won, lost, 1 - won - lost], runs)
    limits = [_exact_difference(int(w), int(k), images) for w, k, _ in found]
    hits = np.mean([low <= won - lost <= high for low, high in limits])
    assert hits >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / runs)


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
    pilots = [seeds_needed(*differences(rng, 10, spread, 0.0, images), effect=effect) for _ in range(40)]
    asked = int(np.median([np.sqrt(pilot.low * pilot.high) for pilot in pilots]))
    found = np.mean([paired_p_value(*differences(rng, asked, spread, gap, images)) < 0.05 for _ in range(300)])
    assert 3 <= asked <= 30
    assert 0.65 <= found <= 0.95


def test_images_that_ask_for_nothing_do_not_narrow_an_interval_of_equal_values() -> None:
    """Two of four images have another one of their class: recall@1 of 100 % is 2 of 2."""
    low, high = image_mean(np.ones((1, 4)), 1.0, 2).low, image_mean(np.ones((1, 4)), 1.0, 2).high
    assert (low, high) == pytest.approx((0.3424, 1.0), abs=1e-4)
    assert image_mean(np.ones((3, 4)), 1.0).low == pytest.approx(0.5101, abs=1e-4)
