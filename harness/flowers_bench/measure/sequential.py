"""Testing again and again while seeds are added, at levels that keep the chance of any false claim.

Whoever looks after each seed and stops at p < 0.05 claims a difference between equals in 23 of 100 cases. Here the looks
are fixed before the first test, and each spends a share of alpha that was fixed too (Lan & DeMets 1983, Biometrika 70:659).
The difference over S seeds is the truth, a deviation over images that all looks share, and a mean of S deviations over
seeds, so that of two looks Cov(d_S, d_S') = Var(d_S') for S < S': the canonical form of group-sequential tests, with
information proportional to S where images say all (Jennison & Turnbull 2000, "Group Sequential Methods", chapter 3). Where
images say less, looks depend more on each other, and the levels are rather too strict.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

#: The numbers of seeds at which there is a look; beyond them, each is a quarter more than the one before.
SEEDS = (3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 30)
#: Levels are those of normal deviates; the tests' variances are estimated from few seeds. Levels of this share of alpha keep
#: alpha (measured: benchmarks/statistics_simulation.py).
SHARE = 0.87
#: Points of the numerical integration (Gauss-Legendre), and the alphas at which levels are tabulated.
_NODES = 64
_ALPHAS = np.geomspace(1e-9, 0.999, 40)


@dataclass(frozen=True)
class Look:
    """One test among several: after how many seeds, and which share of alpha is spent by then."""

    seeds: int
    spent: float


def plan_looks(seeds_max: int, done: Sequence[Look] = ()) -> tuple[Look, ...]:
    """Plan the looks up to `seeds_max` seeds: alpha is spent in proportion to the seeds.

    Looks that are `done` stay as they are; what they have not spent of alpha is spent on the way from there.

    Raises:
        ValueError: no look is left: `seeds_max` is below the first one, or not above those that are done, or alpha is spent.
    """
    start = done[-1] if done else Look(0, 0.0)
    numbers = [*SEEDS]
    while numbers[-1] < seeds_max:
        numbers.append(math.ceil(numbers[-1] * 1.25))
    wanted = [seeds for seeds in numbers if start.seeds < seeds < seeds_max] + [seeds_max]
    if seeds_max < max(SEEDS[0], start.seeds + 1) or start.spent >= 1:
        raise ValueError(f"no look is left up to {seeds_max} seeds")
    rest = (1 - start.spent) / (seeds_max - start.seeds)
    planned = [Look(seeds, start.spent + rest * (seeds - start.seeds)) for seeds in wanted[:-1]]
    return (*done, *planned, Look(seeds_max, 1.0))


def nominal_levels(looks: Sequence[Look], alpha: float) -> tuple[float, ...]:
    """Compute the two-sided level of each look at which, of equal techniques, a share `alpha` times `spent` is called
    different by then.

    The sum of S normal deviates is followed from look to look, as far as no look has rejected, by numerical
    integration (Armitage, McPherson & Rowe 1969, Journal of the Royal Statistical Society A 132:235).
    """
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    places, masses = np.zeros(1), np.ones(1)
    levels, before = [], Look(0, 0.0)
    for look in looks:
        deviation = math.sqrt(look.seeds - before.seeds)
        step = alpha * (look.spent - before.spent)
        bound = _bound(places, masses, deviation, step)
        levels.append(float(2 * ndtr(-bound / math.sqrt(look.seeds))))
        inside = bound * nodes
        density = np.exp(-(((inside - places[:, None]) / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
        masses = (masses @ density) / deviation * bound * weights
        places, before = inside, look
    return tuple(levels)


def _bound(places: np.ndarray, masses: np.ndarray, deviation: float, step: float) -> float:
    """Find the bound that a step of this `deviation` from masses at places crosses, on either side, with probability
    `step`."""

    def excess(bound: float) -> float:
        crossed = ndtr((places - bound) / deviation) + ndtr((-places - bound) / deviation)
        return float(masses @ crossed) - step

    highest = float(np.abs(places).max()) + 10 * deviation
    return float(brentq(excess, 0.0, highest, xtol=1e-9)) if excess(0.0) > 0 else 0.0


def sequential_p_value(looks: Sequence[Look], p_values: Sequence[float]) -> float:
    """Compute the p-value of all looks so far from each one's own: the smallest alpha at which one of them rejects.

    It is never above the smallest of each look's p divided by its share of alpha, and a correction for many pairs may
    take it as any other p-value. Variances are taken to be estimated (`SHARE`).
    """
    found = [
        np.exp(np.interp(np.log(max(p, 1e-300)), np.log(levels), np.log(_ALPHAS)))
        for p, levels in zip(p_values, _table(tuple(looks[: len(p_values)])), strict=True)
    ]
    return min(1.0, float(min(found, default=1.0)) / SHARE)


@lru_cache(maxsize=64)
def _table(looks: tuple[Look, ...]) -> np.ndarray:
    """Compute each look's level (looks, alphas) at each of `_ALPHAS`."""
    found: np.ndarray = np.array([nominal_levels(looks, alpha) for alpha in _ALPHAS]).T
    return found


def adjust_both(differ: Sequence[float], within: Sequence[float]) -> tuple[list[float], list[float]]:
    """Adjust p-values of pairs together, of being equal and of differing by the margin or more: both claims share alpha.

    Of a pair, at most one of the two can be true. Shaffer's method (1986, Journal of the American Statistical Association
    81:826), which is Holm's with the number of hypotheses that can still be true: pairs of which not both are rejected.
    """
    pairs = len(differ)
    p_values = np.array([*differ, *within], float)
    adjusted = np.ones(2 * pairs)
    left = np.full(pairs, 2)
    highest = 0.0
    for place in np.argsort(p_values, kind="stable"):
        highest = max(highest, float(np.count_nonzero(left)) * float(p_values[place]))
        adjusted[place] = min(1.0, highest)
        left[place % pairs] -= 1
    return [float(p) for p in adjusted[:pairs]], [float(p) for p in adjusted[pairs:]]
