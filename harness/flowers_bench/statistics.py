"""Intervals and paired differences over seeds and test images together, and exact ones where there is one seed.

The unit is a 0/1 matrix `correct` (S seeds, N images). Seeds and images are both samples: another seed would have
trained another model, another test set would have shown other images. The hierarchical bootstrap (Efron &
Tibshirani 1993; as used for machine-learning comparisons by Bouthillier et al. 2021, arXiv:2103.03098) resamples both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binomtest, norm, t

#: Resamples of every bootstrap. The Monte Carlo error of a 95 % bound is then about 0.01 standard deviations.
RESAMPLES = 4000


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


def paired_difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Accuracy of `first` minus `second`, both (S, N) on the same seeds and images. Raises `ValueError` otherwise."""
    if first.shape != second.shape:
        raise ValueError(f"not paired: {first.shape} against {second.shape}")
    over = (
        "seeds and test images, paired (bootstrap)" if len(first) > 1 else "test images, paired, one seed (bootstrap)"
    )
    return _bootstrap(first.astype(float) - second.astype(float), over)


def _bootstrap(values: np.ndarray, over: str) -> Interval:
    """Images and seeds are resampled apart and their deviations added: the two axes cross, so the mean over seeds
    of each image and the mean over images of each seed carry the two sources of spread."""
    seeds, images = values.shape
    rng = np.random.default_rng(0)
    deviation = _resampled_deviations(values.mean(0), rng)
    if seeds > 1:
        deviation = deviation + _small_sample_factor(seeds) * _resampled_deviations(values.mean(1), rng)
    centre = float(values.mean())
    low, high = centre + np.quantile(deviation, [0.025, 0.975])
    return Interval(centre, float(low), float(high), over, seeds, images)


def _small_sample_factor(seeds: int) -> float:
    # A bootstrap of S values is too narrow by sqrt((S-1)/S), and with few of them Student's t replaces the normal.
    return float(np.sqrt(seeds / (seeds - 1)) * t.ppf(0.975, seeds - 1) / norm.ppf(0.975))


def _resampled_deviations(values: np.ndarray, rng: np.random.Generator, chunk: int = 250) -> np.ndarray:
    """Mean of a resample minus the mean, `RESAMPLES` times; a chunk at a time so that memory stays flat."""
    n = len(values)
    counts = (rng.multinomial(n, np.full(n, 1 / n), size=chunk) for _ in range(0, RESAMPLES, chunk))
    return np.concatenate([c @ values for c in counts]) / n - values.mean()


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact McNemar test of one seed: p-value that two classifiers are right equally often. bool (N,) each."""
    won = int((first & ~second).sum())
    lost = int((second & ~first).sum())
    return float(binomtest(won, won + lost).pvalue) if won + lost else 1.0
