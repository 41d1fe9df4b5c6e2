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
from scipy.special import betaincinv, stdtr
from scipy.stats import binomtest, norm, t

#: Half of what a 95 % interval leaves out, and the normal deviate that leaves it out.
TAIL = 0.025
_Z = float(norm.isf(TAIL))
#: The most seeds that `seeds_needed` will ask for.
MOST_SEEDS = 1000


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


def image_mean(values: np.ndarray, most: float) -> Interval:
    """Estimate the mean of a number of each test image that is not 0 or 1 alone, between 0 and `most`, from `values`
    (S, N).

    Over seeds and test images together, or over the images of one seed, as for an accuracy, but in closed form: half the
    interval over seeds and half that over images, each by Student's t, add in squares. A bootstrap gains by outcomes being
    0 or 1; of real numbers it would take a hundred times as long. Where all values are the same, the images that were
    not drawn may still have others: as many as Wilson's interval allows when none of N was seen.

    A metric that is no mean over images (macro-F1, calibration error, recall@1) has one here if `values` are its
    images' shares of it, by which it changes when the images are weighted: the infinitesimal jackknife, to first
    order the bootstrap (Efron 1982, "The Jackknife, the Bootstrap and Other Resampling Plans", chapter 6).
    """
    seeds, images = values.shape
    if seeds == 1:
        of_seed, of_image, residual = 0.0, float(values.var(ddof=1)) if images > 1 else 0.0, 0.0
    else:
        of_seed, of_image, residual = _variance_components(values)
    errors = np.sqrt([of_image / images, (of_seed + residual / images) / seeds])
    half = float(np.hypot(*(t.ppf(0.975, [max(1, images - 1), max(1, seeds - 1)]) * errors)))
    centre = float(values.mean())
    over = "seeds and test images (Student's t)" if seeds > 1 else "test images, one seed (Student's t)"
    if np.ptp(values) == 0:
        unseen = _wilson(0.0, images)[1]
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
        seeds = float(t.isf(TAIL, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return max(0.0, centre - float(np.hypot(centre - low, seeds))), min(
        1.0, centre + float(np.hypot(high - centre, seeds))
    )


def paired_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Estimate the accuracy of `first` minus `second`, with its 95 % interval.

    Both are (S, N) on the same seeds and images, bool, or whole numbers where an image's outcome is a sum, or a
    difference, of several. Raises `ValueError` otherwise.

    It excludes zero exactly where `paired_p_value` is below 0.05.
    """
    values = _differences(first, second)
    outcomes = first.dtype == second.dtype == bool
    if outcomes and _agree(values):
        won, lost = won_and_lost(first[0], second[0])
        seeds, images = values.shape
        which = "one seed" if seeds == 1 else "on which all seeds agree"
        value = (won - lost) / images
        return Interval(value, *_exact_difference(won, lost, images), f"test images, paired, {which} (exact)", seeds, images)  # fmt: skip
    over = "seeds and test images" if len(values) > 1 else "test images"
    found = _bootstrap(values, f"{over}, paired{'' if len(values) > 1 else ', one seed'} (bootstrap)")
    most = 1.0 if outcomes else np.inf
    return replace(found, low=max(-most, found.low), high=min(most, found.high))


def paired_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Compute the two-sided p-value that two techniques are equally accurate; arguments as for `paired_difference`.

    With several seeds it is that of the bootstrap behind `paired_difference`, and smooth far into the tail, as a
    correction for many pairs needs. With one seed it is about these two trained networks only, and of bool outcomes
    McNemar's, exact; so it is where seeds change no image.
    """
    values = _differences(first, second)
    if first.dtype == second.dtype == bool and _agree(values):
        return mcnemar(first[0], second[0])
    spread = _Spread.of(values)
    return min(1.0, 2 * min(spread.below(-values.mean()), spread.mirrored().below(values.mean())))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Compute McNemar's exact test of one seed: the p-value that two classifiers are right equally often. bool (N,)
    each."""
    won, lost = won_and_lost(first, second)
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


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


def seeds_needed(
    first: np.ndarray, second: np.ndarray, effect: float = 0.01, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """Compute how many seeds would show a true difference of `effect` at level `alpha` with probability `power`.

    The spread over seeds, over images and of their interaction is estimated from the paired differences of `first` and
    `second`, both (S, N), by the two-way analysis of variance, and scaled to more seeds on the same number of images.
    None: no number up to `MOST_SEEDS` is enough, because the test images alone are too few.

    Raises:
        ValueError: fewer than two seeds say nothing about the spread over seeds.
    """
    values = _differences(first, second)
    if len(values) < 2:
        raise ValueError("the spread over seeds needs at least two seeds")
    of_seed, of_image, residual = _variance_components(values)
    images = values.shape[1]
    seeds = np.arange(2, MOST_SEEDS + 1)
    over_images = of_image / images
    over_seeds = (of_seed + residual / images) / seeds
    total = over_images + over_seeds
    freedom = np.full(len(seeds), np.inf)  # Satterthwaite's
    np.divide(total**2 * (seeds - 1), over_seeds**2, out=freedom, where=over_seeds > 0)
    bounds = (t.ppf(1 - alpha / 2, freedom) + norm.ppf(power)) * np.sqrt(total)
    enough = seeds[bounds <= effect]
    return int(enough[0]) if len(enough) else None


def _variance_components(values: np.ndarray) -> tuple[float, float, float]:
    """Estimate the variance between seeds, between images, and what is left, of `values` (S, N)."""
    seeds, images = values.shape
    rows, columns = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    residual = float(((values - rows - columns + values.mean()) ** 2).sum() / max(1, (seeds - 1) * (images - 1)))
    between_seeds = float(rows.var(ddof=1)) - residual / images
    between_images = float(columns.var(ddof=1)) - residual / seeds if images > 1 else 0.0
    return max(0.0, between_seeds), max(0.0, between_images), residual


def _agree(values: np.ndarray) -> bool:
    """Say whether all seeds of (S, N) are alike; one seed is."""
    return bool((values == values[0]).all())


def _wilson(share: float, images: float) -> tuple[float, float]:
    """Compute the 95 % interval of a share of so many images. Wilson 1927, Journal of the American Statistical
    Association 22:209."""
    centre = (share + _Z**2 / (2 * images)) / (1 + _Z**2 / images)
    half = _Z / (1 + _Z**2 / images) * np.sqrt(share * (1 - share) / images + _Z**2 / (4 * images**2))
    return (0.0 if share == 0 else float(centre - half)), (1.0 if share == 1 else float(centre + half))


def _exact_difference(won: int, lost: int, images: int) -> tuple[float, float]:
    """Compute the 95 % interval of (won - lost) / images that excludes zero exactly where McNemar's exact test has p <
    0.05.

    The difference is a product: the share of images on which the two differ, times the surplus of those won among
    them, 2 q - 1. Each factor has its exact bounds at every level (Clopper & Pearson 1934, Biometrika 26:404), and
    which images differ says nothing about who wins them. What the two leave out is shared between them as normal
    deviates add, in squares, over all ways to do so (as in Zou & Donner 2008, Statistics in Medicine 27:1693):
    where the surplus is nothing, all is the surplus's, and that is McNemar's test.
    """
    turn = np.linspace(0, np.pi / 2, 181)
    surpluses = _clopper_pearson(won, won + lost, np.cos(turn))
    sizes = _clopper_pearson(won + lost, images, np.sin(turn))
    found = [(2 * surplus - 1) * size for surplus in surpluses for size in sizes]
    return float(np.min(found)), float(np.max(found))


def _clopper_pearson(hits: int, of: int, away: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the exact lower and upper bounds of a share, `away` times as far as those of 95 %, in normal deviates; 0
    and 1 where there is nothing to go by."""
    tails = norm.sf(_Z * away)
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
    freedom: int

    @classmethod
    def of(cls, values: np.ndarray) -> _Spread:
        """Compute it from whole numbers (S, N)."""
        seeds = len(values)
        deviations, weights = _resampled_sums(values.sum(0))
        deviations = deviations / values.size
        if _agree(values):
            return cls(deviations, weights, 0.0, 1)
        total, residual = values.mean(0).var(), _variance_components(values)[2]
        share = np.sqrt(max(0.0, 1 - residual / seeds / total)) if total else 0.0
        rounding = 1 / (12 * values.shape[1] ** 2) if residual else 0.0
        between = max(float(values.mean(1).var(ddof=1)), rounding)
        return cls(share * deviations, weights, float(np.sqrt(between / seeds)), seeds - 1)

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
        low, high = self.images[[0, -1]] + self.seeds * t.ppf(level, self.freedom)
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
