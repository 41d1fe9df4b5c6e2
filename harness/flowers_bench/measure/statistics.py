"""Intervals and paired differences over seeds and test images together, and exact ones where there is one seed.

The unit is a 0/1 matrix `correct` (S seeds, N images). Seeds and images are both samples: another seed would have
trained another model, another test set would have shown other images. Both are resampled (Efron & Tibshirani 1993; for
machine-learning comparisons Bouthillier et al. 2021, arXiv:2103.03098): the images by the bootstrap, the seeds from
Student's t, because three seeds have ten distinct resamples, whose spread is too small and whose tails are cut off.
Nothing is drawn: both distributions are known, and so is that of their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.optimize import brentq

# Not from `scipy.stats`, whose import takes half a second of the processor.
from scipy.special import bdtr, betaincinv, gammaincinv, ndtr, ndtri, stdtr, stdtrit

#: A difference is claimed where its p-value, adjusted for all pairs, is below this.
ALPHA = 0.05
#: Half of what a 95 % interval leaves out, and the normal deviate that leaves it out.
TAIL = 0.025
_Z = -float(ndtri(TAIL))
#: The most seeds that `seeds_needed` will ask for.
MOST_SEEDS = 1000
#: From how many techniques on their variances over seeds are pooled: of two, each has its own.
LEAST_POOLED = 3
#: How far, as a share, one seed must lie from all others at least to be named.
FAR_OFF = 0.05
#: A normal deviate beyond which no level is looked for.
_FAR = 8.0


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value, low, high: in the unit of what was estimated.
        over: what the interval covers, in words.
        n_seeds, n_images: the sample.
    """

    value: float
    low: float
    high: float
    over: str
    n_seeds: int
    n_images: int


def accuracy_interval(correct: np.ndarray) -> Interval:
    """Estimate the accuracy of a technique from `correct` (S, N), with its interval: hierarchical bootstrap, or
    Wilson's interval over images where there is one seed, or all seeds agree on every image.

    With one seed the interval covers the images only, and says so: how much another seed would change is unknown.
    """
    seeds, images = correct.shape
    if _agree(correct):
        value = float(correct[0].mean())
        over = "test images, one seed (Wilson)" if seeds == 1 else "test images, on which all seeds agree (Wilson)"
        return Interval(value, *_wilson(value, images), over, seeds, images)
    found = _bootstrap(correct.astype(int), "seeds and test images (bootstrap)")
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def image_mean(values: np.ndarray, most: float, judged: int | None = None) -> Interval:
    """Estimate the mean of a number of each test image that is not 0 or 1 alone, between 0 and `most`, from `values`
    (S, N).

    Over seeds and test images together, or over the images of one seed, as for an accuracy, but in closed form: half the
    interval over seeds and half that over images, each by Student's t, add in squares. A bootstrap gains by outcomes being
    0 or 1; of real numbers it would take a hundred times as long. Where all values are the same, the images that were
    not drawn may still have others: as many as Wilson's interval allows when none of N was seen.

    A metric that is no mean over images (macro-F1, calibration error, recall@1) has one here if `values` are its
    images' shares of it, by which it changes when the images are weighted: the infinitesimal jackknife, to first
    order the bootstrap (Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6).

    Args:
        judged: of how many images the metric is made, where some have no value of their own (recall@1: images that are
            alone in their class ask for nothing); None: of all.
    """
    seeds, images = values.shape
    if seeds == 1:
        of_seed, of_image, residual = 0.0, float(values.var(ddof=1)) if images > 1 else 0.0, 0.0
    else:
        of_seed, of_image, residual = _variance_components(values)
    errors = np.sqrt([of_image / images, (of_seed + residual / images) / seeds])
    half = float(np.hypot(*(stdtrit([max(1, images - 1), max(1, seeds - 1)], 0.975) * errors)))
    centre = float(values.mean())
    over = "seeds and test images (Student's t)" if seeds > 1 else "test images, one seed (Student's t)"
    if np.ptp(values) == 0:
        unseen = _wilson(0.0, images if judged is None else judged)[1]
        high = centre + unseen * (most - centre) if np.isfinite(most) else centre
        return Interval(centre, centre - unseen * centre, high, over, seeds, images)
    return Interval(centre, max(0.0, centre - half), min(most, centre + half), over, seeds, images)


def share_interval(shares: Sequence[float], images: float) -> tuple[float, float]:
    """Compute the 95 % interval of the mean of shares of `images` images, one per seed, of which single outcomes were
    not stored.

    The images' part is Wilson's, as of outcomes that are 0 or 1 and on which all seeds agree: no outcomes between 0
    and 1 with that mean vary more, so that the interval is rather too wide. The seeds' part is Student's t; the two
    add in squares, below and above.
    """
    values = np.asarray(shares, float)
    centre = float(values.mean())
    low, high = _wilson(centre, images)
    seeds = 0.0
    if len(values) > 1:
        seeds = float(-stdtrit(len(values) - 1, TAIL) * values.std(ddof=1) / np.sqrt(len(values)))
    return max(0.0, centre - float(np.hypot(centre - low, seeds))), min(
        1.0, centre + float(np.hypot(high - centre, seeds))
    )


@dataclass(frozen=True)
class Pool:
    """What several techniques that are compared at once say together about how much seeds differ.

    Attributes:
        variance: mean variance of the seeds' accuracies; 0 where fewer than `LEAST_POOLED` techniques are compared.
        freedom: its degrees of freedom.
    """

    variance: float
    freedom: int

    @classmethod
    def of(cls, techniques: Sequence[np.ndarray]) -> Pool:
        """Collect the seeds of techniques, (S, N) each; those of one seed say nothing. S may differ."""
        several = [correct for correct in techniques if len(correct) > 1]
        if len(several) < LEAST_POOLED:
            return cls(0.0, 0)
        freedom = sum(len(correct) - 1 for correct in several)
        squares = sum(_seed_variance(correct) * (len(correct) - 1) for correct in several)
        return cls(squares / freedom, freedom)


@dataclass(frozen=True)
class Difference:
    """The accuracy of `first` minus that of `second`, and what can be tested about it.

    Attributes:
        value: the difference.
        shape: seeds S and test images N.
        bounded: whether outcomes are right or wrong, so that no difference is beyond 1.
        spread: how far `value` may lie from the truth; None where all seeds agree on every image.
        won, lost: where all seeds agree, and where there is one, the images that only one of the two has right.
        by_seed: whether seeds are paired too.
    """

    value: float
    shape: tuple[int, int]
    bounded: bool
    spread: _Spread | None
    won: int
    lost: int
    by_seed: bool

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, pool: Pool | None = None) -> Difference:
        """Take outcomes (S, N) on the same seeds and images: bool, or whole numbers where an image's outcome is a sum, or
        a difference, of several.

        Images are always paired. Seeds are without a `pool`, as of twins, whose equal seeds start and end alike. With one
        they are not: as Welch (1947, Biometrika 34:28) has it, each technique with its own variance over seeds, or with
        that of the pool where this is larger.

        Raises:
            ValueError: they are not paired, or not of whole numbers.
        """
        values = _differences(first, second)
        outcomes = first.dtype == second.dtype == bool
        value = float(values.mean())
        if outcomes and _agree(values):
            return cls(value, values.shape, outcomes, None, *won_and_lost(first[0], second[0]), by_seed=True)
        by_seed = pool is None or len(values) == 1
        spread = _Spread.of(values) if pool is None or by_seed else _Spread.unpaired(first, second, pool)
        return cls(value, values.shape, outcomes, spread, 0, 0, by_seed)

    @property
    def over_images(self) -> float:
        """How far the images alone let it deviate from the truth, as a standard deviation: what no seeds can mend."""
        if self.spread is None:
            differ = (self.won + self.lost) / self.shape[1]
            return float(np.sqrt((differ - self.value**2) / self.shape[1]))
        return float(np.sqrt(self.spread.weights @ self.spread.images**2))

    def interval(self) -> Interval:
        """Give its 95 % interval, which excludes zero exactly where `p_value` is below 0.05."""
        seeds, images = self.shape
        if self.spread is None:
            which = "one seed" if seeds == 1 else "on which all seeds agree"
            bounds = _exact_difference(self.won, self.lost, images)
            return Interval(self.value, *bounds, f"test images, paired, {which} (exact)", seeds, images)
        low = round(self.value + self.spread.quantile(TAIL), 12)
        high = round(self.value - self.spread.mirrored().quantile(TAIL), 12)
        most = 1.0 if self.bounded else np.inf
        return Interval(self.value, max(-most, low), min(most, high), f"{self._over()} (bootstrap)", seeds, images)

    def _over(self) -> str:
        if self.shape[0] == 1:
            return "test images, paired, one seed"
        return f"seeds and test images, {'both' if self.by_seed else 'images'} paired"

    def p_value(self) -> float:
        """Compute the two-sided p-value that two techniques are equally accurate.

        With several seeds it is that of the distribution behind the interval, and smooth far into the tail, as a
        correction for many pairs needs. With one seed it is about these two trained networks only, and of bool outcomes
        McNemar's, exact; so it is where seeds change no image.
        """
        if self.spread is None:
            return _sign_test(self.won, self.lost)
        return min(1.0, 2 * min(self.spread.below(-self.value), self.spread.mirrored().below(self.value)))

    def p_within(self, margin: float) -> float:
        """Compute the p-value that the techniques differ by `margin` or more: twice the larger one of two one-sided tests
        (Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15:657).

        Below 0.05 exactly where the 95 % interval lies inside of the margin on both sides; a test at 5 % on each side, as
        is usual, would be met by an interval of 90 %.
        """
        if self.spread is None:
            return self._exact_within(margin)
        beyond = max(self.spread.below(-margin - self.value), self.spread.mirrored().below(self.value - margin))
        return min(1.0, 2 * beyond)

    def _exact_within(self, margin: float) -> float:
        """Find the level at which the exact interval touches the margin."""

        def room(deviate: float) -> float:
            return margin - max(map(abs, _exact_difference(self.won, self.lost, self.shape[1], deviate)))

        if room(0.0) <= 0:
            return 1.0
        deviate = _FAR if room(_FAR) > 0 else brentq(room, 0.0, _FAR, xtol=1e-6)
        return float(2 * ndtr(-deviate))


def paired_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Estimate the accuracy of `first` minus `second`, with its 95 % interval; seeds and images are paired.

    Arguments are those of `Difference.of`. It excludes zero exactly where `paired_p_value` is below 0.05.
    """
    return Difference.of(first, second).interval()


def paired_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the two-sided p-value that two techniques are equally accurate, as `Difference.p_value`, seeds and images
    paired."""
    return Difference.of(first, second).p_value()


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Compute McNemar's exact test of one seed: the p-value that two classifiers are right equally often. bool (N,)
    each."""
    won, lost = won_and_lost(first, second)
    return _sign_test(won, lost)


def _sign_test(won: int, lost: int) -> float:
    """Compute the two-sided p-value that a coin is fair: `scipy.stats.binomtest`, whose two tails are alike then."""
    return min(1.0, 2 * float(bdtr(min(won, lost), won + lost, 0.5)))


def won_and_lost(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Count the images that only `first` has right, and that only `second` has right; bool arrays of one shape."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values by Holm's method (1979, Scandinavian Journal of Statistics 6:65), in the order given.

    If those below 0.05 are rejected, any false claim among them has a probability of at most 5 %, however they depend
    on each other.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values, float)[order]))
    return [float(p) for p in adjusted]


@dataclass(frozen=True)
class SeedsNeeded:
    """How many seeds would show a true difference, as a range, because few seeds say little about how much seeds differ.

    Attributes:
        low, high: the range that holds the number in 80 % of pilots; None: more than `MOST_SEEDS`.
        images_suffice: whether any number would do; if not, it takes more test images.
    """

    low: int | None
    high: int | None
    images_suffice: bool


def seeds_needed(
    first: np.ndarray,
    second: np.ndarray,
    effect: float = 0.01,
    alpha: float = 0.05,
    power: float = 0.8,
    pool: Pool | None = None,
) -> SeedsNeeded:
    """Compute how many seeds would show a true difference of `effect` at level `alpha` with probability `power`.

    The variances over seeds and over images are those of `Difference.of` with these arguments, scaled to more seeds
    on the same number of images. The range is that of a variance of so many degrees of freedom (chi-square bounds).

    Raises:
        ValueError: fewer than two seeds say nothing about the spread over seeds.
    """
    values = _differences(first, second)
    if len(values) < 2:
        raise ValueError("the spread over seeds needs at least two seeds")
    images = values.shape[1]
    if pool is None:
        of_seed, of_image, residual = _variance_components(values)
        variance, freedom = of_seed + residual / images, float(len(values) - 1)
    else:
        residual = sum(_variance_components(side.astype(float))[2] for side in (first, second))
        of_image = max(0.0, float(values.mean(0).var(ddof=1)) - residual / len(values)) if images > 1 else 0.0
        variance, freedom = _welch(first, second, pool)
    deviates = ndtri(1 - alpha / 2) + ndtri(power)
    if deviates * np.sqrt(of_image / images) >= effect:
        return SeedsNeeded(None, None, images_suffice=False)
    bounds = variance * freedom / (2 * gammaincinv(freedom / 2, [0.9, 0.1]))  # chi-squared's quantiles
    per_seed = freedom / (len(values) - 1)
    low, high = (_enough(float(bound), of_image / images, per_seed, effect, alpha, power) for bound in bounds)
    return SeedsNeeded(low, high, images_suffice=True)


def _enough(
    of_seed: float, over_images: float, per_seed: float, effect: float, alpha: float, power: float
) -> int | None:
    """Find the first number of seeds of variance `of_seed` that is enough, `per_seed` degrees of freedom for each one
    after the first; None if `MOST_SEEDS` are not."""
    seeds = np.arange(2, MOST_SEEDS + 1)
    over_seeds = of_seed / seeds
    total = over_images + over_seeds
    freedom = np.full(len(seeds), np.inf)  # Satterthwaite's
    np.divide(total**2 * per_seed * (seeds - 1), over_seeds**2, out=freedom, where=over_seeds > 0)
    bounds = (stdtrit(freedom, 1 - alpha / 2) + ndtri(power)) * np.sqrt(total)
    enough = seeds[bounds <= effect]
    return int(enough[0]) if len(enough) else None


def far_off(shares: Sequence[float]) -> int | None:
    """Find the place of the one seed whose accuracy lies far off from those of all others, as of a training that
    collapsed; None if there is none, or fewer than three seeds.

    Far is more than 5 points from the nearest, and more than three times as far as the others lie apart.
    """
    values = np.asarray(shares, float)
    if len(values) < 3:
        return None
    place = int(np.abs(values - np.median(values)).argmax())
    others = np.delete(values, place)
    gap = float(np.abs(others - values[place]).min())
    return place if gap > max(FAR_OFF, 3 * float(np.ptp(others))) else None


def _variance_components(values: np.ndarray) -> tuple[float, float, float]:
    """Estimate the variance between seeds, between images, and what is left, of `values` (S, N)."""
    seeds, images = values.shape
    rows, columns = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    residual = float(((values - rows - columns + values.mean()) ** 2).sum() / max(1, (seeds - 1) * (images - 1)))
    between_seeds = float(rows.var(ddof=1)) - residual / images
    between_images = float(columns.var(ddof=1)) - residual / seeds if images > 1 else 0.0
    return max(0.0, between_seeds), max(0.0, between_images), residual


def _seed_variance(correct: np.ndarray) -> float:
    """Compute the variance of the seeds' means of (S, N)."""
    return float(correct.mean(1).var(ddof=1))


def _welch(first: np.ndarray, second: np.ndarray, pool: Pool) -> tuple[float, float]:
    """Compute the variance of one seed of `first` minus one of `second`, (S, N) each, and its degrees of freedom.

    Each technique has its own variance, or the pool's where that is larger: a small variance of few seeds is mostly
    chance, a large one may be the technique's. Either has the degrees of freedom of what it was estimated from. It is at
    least that of rounding to whole images, so that seeds that happen to agree are no proof.
    """
    variances, shares = [], []
    for correct in (first, second):
        own = _seed_variance(correct)
        variance = max(own, pool.variance)
        variances.append(variance)
        shares.append(variance**2 / (len(correct) - 1 if own > pool.variance or not pool.freedom else pool.freedom))
    total = sum(variances)
    floor = 0.0 if _agree(first) and _agree(second) else 1 / (12 * first.shape[1] ** 2)
    freedom = total**2 / sum(shares) if sum(shares) else float(len(first) - 1)
    return max(total, floor), freedom


def _agree(values: np.ndarray) -> bool:
    """Say whether all seeds of (S, N) are alike; one seed is."""
    return bool((values == values[0]).all())


def _wilson(share: float, images: float) -> tuple[float, float]:
    """Compute the 95 % interval of a share of so many images. Wilson 1927, Journal of the American Statistical
    Association 22:209."""
    centre = (share + _Z**2 / (2 * images)) / (1 + _Z**2 / images)
    half = _Z / (1 + _Z**2 / images) * np.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    return (0.0 if share == 0 else float(centre - half)), (1.0 if share == 1 else float(centre + half))


def _exact_difference(won: int, lost: int, images: int, deviate: float = _Z) -> tuple[float, float]:
    """Compute the interval of (won - lost) / images, of 95 % or of another `deviate`, that excludes zero exactly where
    McNemar's exact test has p < 0.05, or that deviate's level.

    The difference is a product: the share of images on which the two differ, times the surplus of those won among
    them, 2 q - 1. Each factor has its exact bounds at every level (Clopper & Pearson 1934, Biometrika 26:404), and
    which images differ says nothing about who wins them. What the two leave out is shared between them as normal
    deviates add, in squares, over all ways to do so (as in Zou & Donner 2008, Statistics in Medicine 27:1693):
    where the surplus is nothing, all is the surplus's, and that is McNemar's test.
    """
    turn = np.linspace(0, np.pi / 2, 181)
    surpluses = _clopper_pearson(won, won + lost, deviate * np.cos(turn))
    sizes = _clopper_pearson(won + lost, images, deviate * np.sin(turn))
    found = [(2 * surplus - 1) * size for surplus in surpluses for size in sizes]
    return float(np.min(found)), float(np.max(found))


def _clopper_pearson(hits: int, of: int, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the exact lower and upper bounds of a share, `away` normal deviates off; 0 and 1 where there is nothing to
    go by."""
    tails = ndtr(-away)
    low = betaincinv(hits, of - hits + 1, tails) if hits else np.zeros(len(tails))
    high = betaincinv(hits + 1, of - hits, 1 - tails) if hits < of else np.ones(len(tails))
    return low, high


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Subtract the two, as whole numbers (S, N). Raises `ValueError` where they are not paired, or not of whole
    numbers."""
    if first.shape != second.shape:
        raise ValueError(f"not paired: {first.shape} against {second.shape}")
    found = first.astype(float) - second.astype(float)
    whole: np.ndarray = np.rint(found).astype(int)
    if not np.array_equal(found, whole):
        raise ValueError("outcomes must be whole numbers: give sums over what an image's outcome is a mean of")
    return whole


def _bootstrap(values: np.ndarray, over: str) -> Interval:
    """Estimate mean and interval of whole numbers (S, N) by the bootstrap."""
    centre, spread = float(values.mean()), _Spread.of(values)
    low, high = centre + spread.quantile(TAIL), centre - spread.mirrored().quantile(TAIL)
    return Interval(centre, round(low, 12), round(high, 12), over, *values.shape)


@dataclass(frozen=True)
class _Spread:
    """How far the mean of `values` (S, N) may lie from the truth, over images and over seeds; the two deviations add.

    Each image's mean over seeds and each seed's mean over images hold a share of the chance by which single outcomes
    differ. It belongs in the sum once: the images' deviations are shrunk by it (counting it twice is the known
    excess of the crossed bootstrap: Owen & Eckles 2012, arXiv:1106.2125). The seeds' error is at least that
    of rounding to whole images, so that two seeds that happen to agree are no proof.

    Attributes:
        images: deviations over images, smallest first.
        weights: their probabilities.
        seeds: standard error over seeds, 0 where there is one.
        freedom: degrees of freedom of `seeds`.
    """

    images: np.ndarray
    weights: np.ndarray
    seeds: float
    freedom: float

    @classmethod
    def of(cls, values: np.ndarray) -> _Spread:
        """Compute it from whole numbers (S, N)."""
        if _agree(values):
            deviations, weights = _resampled_sums(values.sum(0))
            return cls(deviations / values.size, weights, 0.0, 1)
        residual = _variance_components(values)[2]
        rounding = 1 / (12 * values.shape[1] ** 2) if residual else 0.0
        return cls._made(values, residual, max(_seed_variance(values), rounding), len(values) - 1)

    @classmethod
    def unpaired(cls, first: np.ndarray, second: np.ndarray, pool: Pool) -> _Spread:
        """Compute it for `first` minus `second`, (S, N) each, whose seeds have nothing to do with each other."""
        residual = sum(_variance_components(side.astype(float))[2] for side in (first, second))
        return cls._made(_differences(first, second), residual, *_welch(first, second, pool))

    @classmethod
    def _made(cls, values: np.ndarray, residual: float, of_seed: float, freedom: float) -> _Spread:
        seeds = len(values)
        deviations, weights = _resampled_sums(values.sum(0))
        total = values.mean(0).var()
        share = np.sqrt(max(0.0, 1 - residual / seeds / total)) if total else 0.0
        return cls(share * deviations / values.size, weights, float(np.sqrt(of_seed / seeds)), freedom)

    def mirrored(self) -> _Spread:
        """Give the spread of the values with the other sign."""
        return replace(self, images=-self.images[::-1], weights=self.weights[::-1])

    def below(self, bound: float) -> float:
        """Compute the probability of a deviation of at most `bound`, integrated over the seeds' share."""
        left = bound - self.images
        # A deviation of exactly `bound` counts, whatever rounding made of it.
        share = stdtr(self.freedom, left / self.seeds) if self.seeds else left > -1e-12
        return float(self.weights @ share)

    def quantile(self, level: float) -> float:
        """Find the deviation that a share `level` of them does not exceed: the first one, where they are distinct."""
        if not self.seeds:
            return float(self.images[np.searchsorted(np.cumsum(self.weights), level)])
        # With the least deviation over images alone it would lie here, with the largest there.
        low, high = self.images[[0, -1]] + self.seeds * stdtrit(self.freedom, level)
        if low == high:
            return float(low)
        return float(brentq(lambda bound: self.below(bound) - level, low, high, xtol=1e-12))


def _resampled_sums(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List all that the sum of a resample of whole numbers (N,) minus their sum may be, and how probable each is.

    The bootstrap itself, not a sample of it: a sum of N draws has the N-th power of one draw's characteristic function.
    """
    n, least = len(values), values.min()
    largest = int(values.max() - least) * n
    size = next_fast_len(largest + 1, real=True)
    weights = irfft(rfft(np.bincount(values - least) / n, size) ** n, size)[: largest + 1]
    places = np.flatnonzero(weights > 1e-13)  # below, it is rounding
    return places + n * least - values.sum(), weights[places] / weights[places].sum()
