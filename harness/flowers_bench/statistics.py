"""Intervals and paired differences over seeds and test images together, and exact ones where there is one seed.

The unit is a 0/1 matrix `correct` (S seeds, N images). Seeds and images are both samples: another seed would have
trained another model, another test set would have shown other images. Both are resampled (Efron & Tibshirani 1993; for
machine-learning comparisons Bouthillier et al. 2021, arXiv:2103.03098): the images by the bootstrap, the seeds from
Student's t, because three seeds have ten distinct resamples, whose spread is too small and whose tails are cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest, norm, t

#: Resamples of every bootstrap. The Monte Carlo error of a 95 % bound is then below 0.01 of the interval's width.
RESAMPLES = 20_000
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
    """Accuracy of a technique from `correct` (S, N): hierarchical bootstrap, or Wilson's interval for one seed.

    With one seed the interval covers the images only, and says so: how much another seed would change is unknown.
    """
    seeds, images = correct.shape
    if seeds == 1:
        hits = int(correct.sum())
        wilson = binomtest(hits, images).proportion_ci(method="wilson")
        return Interval(hits / images, wilson.low, wilson.high, "test images, one seed (Wilson)", seeds, images)
    found = _bootstrap(correct.astype(float), "seeds and test images (bootstrap)")
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))


def image_mean(values: np.ndarray, most: float) -> Interval:
    """Mean of a figure of each test image that is not 0 or 1 alone, between 0 and `most`, from `values` (S, N).

    Over seeds and test images together, or over the images of one seed, as for an accuracy, but in closed form: half the
    interval over seeds and half that over images, each by Student's t, add in squares. A bootstrap gains by outcomes being
    0 or 1; of real numbers it would take a hundred times as long.
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
    return Interval(centre, max(0.0, centre - half), min(most, centre + half), over, seeds, images)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of two or more numbers, one per seed (Student's t): over seeds alone."""
    half = float(t.ppf(0.975, len(values) - 1)) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def paired_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Accuracy of `first` minus `second`, both (S, N) on the same seeds and images. Raises `ValueError` otherwise."""
    over = (
        "seeds and test images, paired (bootstrap)" if len(first) > 1 else "test images, paired, one seed (bootstrap)"
    )
    found = _bootstrap(_differences(first, second), over)
    return replace(found, low=max(-1.0, found.low), high=min(1.0, found.high))


def paired_p_value(first: np.ndarray, second: np.ndarray) -> float:
    """Two-sided p-value that two techniques are equally accurate, both (S, N) on the same seeds and images: bool, or
    float where an image's outcome is a mean, or a difference, of several.

    With several seeds it is that of the bootstrap behind `paired_difference`: below 0.05 exactly where the 95 %
    interval excludes zero (but for Monte Carlo error), and smooth far into the tail, as a correction for many pairs
    needs. With one seed it is about these two trained networks only, and of bool outcomes McNemar's, exact.
    """
    values = _differences(first, second)
    if len(values) == 1 and first.dtype == second.dtype == bool:
        return mcnemar(first[0], second[0])
    spread = _Spread.of(values, np.random.default_rng(0))
    return min(1.0, 2 * min(spread.below(-values.mean()), spread.above(-values.mean())))


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact McNemar test of one seed: p-value that two classifiers are right equally often. bool (N,) each."""
    won, lost = won_and_lost(first, second)
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0


def won_and_lost(first: np.ndarray, second: np.ndarray) -> tuple[int, int]:
    """Images that only `first` has right, and that only `second` has right; bool arrays of one shape."""
    return int((first & ~second).sum()), int((second & ~first).sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values, in the order given: rejecting those below 0.05 makes any false claim among them with a
    probability of at most 5 %, however they depend on each other. Holm 1979, Scandinavian Journal of Statistics 6:65."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(factors * np.asarray(p_values, float)[order]))
    return [float(p) for p in adjusted]


def seeds_needed(
    first: np.ndarray, second: np.ndarray, effect: float = 0.01, alpha: float = 0.05, power: float = 0.8
) -> int | None:
    """How many seeds would show a true difference of `effect` at level `alpha` with probability `power`.

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
    """Variance between seeds, between images, and what is left, of `values` (S, N)."""
    seeds, images = values.shape
    rows, columns = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    residual = float(((values - rows - columns + values.mean()) ** 2).sum() / max(1, (seeds - 1) * (images - 1)))
    between_seeds = float(rows.var(ddof=1)) - residual / images
    between_images = float(columns.var(ddof=1)) - residual / seeds if images > 1 else 0.0
    return max(0.0, between_seeds), max(0.0, between_images), residual


def _differences(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if first.shape != second.shape:
        raise ValueError(f"not paired: {first.shape} against {second.shape}")
    return first.astype(float) - second.astype(float)


def _bootstrap(values: np.ndarray, over: str) -> Interval:
    rng = np.random.default_rng(0)
    centre = float(values.mean())
    low, high = centre + np.quantile(_Spread.of(values, rng).sample(rng), [0.025, 0.975])
    return Interval(centre, float(low), float(high), over, *values.shape)


@dataclass(frozen=True)
class _Spread:
    """How far the mean of `values` (S, N) may lie from the truth, over images and over seeds; the two deviations add.

    Each image's mean over seeds and each seed's mean over images hold a share of the chance by which single outcomes
    differ. It belongs in the sum once: the images' deviations are shrunk by it (counting it twice is the known
    excess of the crossed bootstrap: Owen & Eckles 2012, arXiv:1106.2125). The seeds' error is at least that
    of rounding to whole images, so that two seeds that happen to agree are no proof.

    Attributes:
        images: deviations over images, `RESAMPLES` of them.
        seeds: standard error over seeds, 0 where there is one.
        freedom: degrees of freedom of `seeds`.
    """

    images: np.ndarray
    seeds: float
    freedom: int

    @classmethod
    def of(cls, values: np.ndarray, rng: np.random.Generator) -> _Spread:
        seeds = len(values)
        deviations = _resampled_deviations(values.mean(0), rng)
        if seeds == 1:
            return cls(deviations, 0.0, 1)
        total, residual = values.mean(0).var(), _variance_components(values)[2]
        share = np.sqrt(max(0.0, 1 - residual / seeds / total)) if total else 0.0
        rounding = 1 / (12 * values.shape[1] ** 2) if residual else 0.0
        between = max(float(values.mean(1).var(ddof=1)), rounding)
        return cls(share * deviations, float(np.sqrt(between / seeds)), seeds - 1)

    def sample(self, rng: np.random.Generator) -> np.ndarray:
        """Deviations over both."""
        return self.images + self.seeds * rng.standard_t(self.freedom, len(self.images))

    def below(self, bound: float) -> float:
        """Probability of a deviation of at most `bound`, integrated over the seeds' share, never quite zero."""
        left = bound - self.images
        share = t.cdf(left / self.seeds, self.freedom) if self.seeds else left >= 0
        return float((share.sum() + (0 if self.seeds else 1)) / (len(left) + (0 if self.seeds else 1)))

    def above(self, bound: float) -> float:
        """Probability of a deviation of at least `bound`."""
        return _Spread(-self.images, self.seeds, self.freedom).below(-bound)


def _resampled_deviations(values: np.ndarray, rng: np.random.Generator, chunk: int = 1 << 22) -> np.ndarray:
    """Mean of a resample minus the mean, `RESAMPLES` times.

    What is drawn is how often each distinct value comes up, not which image it was: the same distribution, and with
    0/1 outcomes of few seeds there are few distinct values. A chunk at a time, so that memory stays flat.
    """
    distinct, counts = np.unique(values, return_counts=True)
    shares, n = counts / counts.sum(), len(values)
    rows = max(1, chunk // len(distinct))
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    drawn = [rng.multinomial(n, shares, size=size) @ distinct for size in sizes]
    return np.concatenate(drawn) / n - values.mean()
