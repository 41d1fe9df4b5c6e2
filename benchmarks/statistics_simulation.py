"""python benchmarks/statistics_simulation.py FILE: measure how far claims about differences can be trusted, by simulation.

FILE is one of those in `TABLES`, below benchmarks/results/statistics/. Outcomes are 0 or 1 and come from a probit model: an
image is right where its difficulty, the technique's skill, the technique's own luck with this image (technique x image), the
seed's skill and the seed's own luck with this image (seed x image) add up to more than zero. The tests are those of the package.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtr
from scipy.stats import norm

from flowers_bench.measure.sequential import SHARE, nominal_levels, plan_looks
from flowers_bench.measure.statistics import Difference, Pool, holm

RESULTS = Path(__file__).parent / "results"
#: Variances of image difficulty, technique x image and seed x image, and the accuracy of a technique without advantage.
DIFFICULTY, OF_TECHNIQUE, OF_SEED, ACCURACY = 8.0, 1.0, 1.0, 0.8
#: The accuracy of a training that collapsed.
COLLAPSED = 0.1
#: How much the techniques' seeds differ, as multiples of the usual deviation, by the name of the pattern.
PATTERNS: Mapping[str, Sequence[float]] = {
    "all alike": (1.0,) * 8,
    "one varies 4 x as much": (4.0, *(1.0,) * 7),
    "half vary 1/4 as much": (1.0, 0.25) * 4,
    "from 1/4 to 4 x": tuple(np.geomspace(0.25, 4, 8)),
    "one does not vary": (0.0, *(1.0,) * 7),
}
#: The looks of a run that goes on until it is decided.
LOOKS = plan_looks(30)
METHODS = ("paired by seed", "Welch", "larger of own and pooled")
#: Seeds and method that are measured among eight techniques: with five seeds, what the package does alone.
CELLS = (*((3, method) for method in METHODS), (5, METHODS[2]))


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes:
        seeds, images: the sample.
        deviations: of each technique, how much its accuracy differs over seeds, in points.
        gains: of each technique, by how many points it is better than `ACCURACY`.
        collapse: the chance that a training collapses.
    """

    seeds: int
    images: int
    deviations: Sequence[float]
    gains: Sequence[float]
    collapse: float = 0.0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Draw outcomes, bool (techniques, S, N)."""
        techniques, shape = len(self.deviations), (len(self.deviations), self.seeds, self.images)
        spread = DIFFICULTY + OF_TECHNIQUE + OF_SEED
        slope = norm.pdf(norm.ppf(ACCURACY)) / np.sqrt(spread)  # of the accuracy, by skill
        deviation = np.array(self.deviations) / 100 / slope
        # Seeds that differ more must be more skilled on average for the same accuracy over all seeds.
        skill = np.sqrt(spread + deviation**2) * norm.ppf(ACCURACY + np.array(self.gains) / 100)
        skills = skill[:, None] + deviation[:, None] * rng.standard_normal(shape[:2])
        skills[rng.random(shape[:2]) < self.collapse] = np.sqrt(spread) * norm.ppf(COLLAPSED)
        of_image = np.sqrt(DIFFICULTY) * rng.standard_normal(self.images)
        luck = np.sqrt(OF_TECHNIQUE) * rng.standard_normal((techniques, 1, self.images))
        luck = luck + np.sqrt(OF_SEED) * rng.standard_normal(shape)
        found: np.ndarray = skills[:, :, None] + of_image + luck > 0
        return found


def differences(
    outcomes: np.ndarray, method: str, pairs: Sequence[tuple[int, int]] | None = None
) -> list[tuple[int, int, Difference]]:
    """Compare all pairs of techniques, or these, by one of `METHODS`; the pool is that of all techniques."""
    pool = {"paired by seed": None, "Welch": Pool(0.0, 0), "larger of own and pooled": Pool.of(list(outcomes))}[method]
    chosen = pairs or list(itertools.combinations(range(len(outcomes)), 2))
    return [(i, j, Difference.of(outcomes[i], outcomes[j], pool)) for i, j in chosen]


def families(runs: int, cells: Sequence[tuple[int, str]] = CELLS) -> Iterator[dict[str, object]]:
    """Measure false claims among eight equal techniques, 28 pairs, whose seeds differ by 1.2 points, or by unequal ones."""
    patterns = [(name, shares, 0.0) for name, shares in PATTERNS.items()]
    patterns.append(("5 % of trainings collapse", PATTERNS["all alike"], 0.05))
    for (s, method), (name, shares, collapse) in itertools.product(cells, patterns):
        world = World(s, 1000, [1.2 * share for share in shares], [0.0] * 8, collapse)
        rng = np.random.default_rng(0)
        alone, anywhere = [], []
        for _ in range(runs):
            p_values = [found.p_value() for *_, found in differences(world.draw(rng), method)]
            alone.append(np.mean(np.array(p_values) < 0.05))
            anywhere.append(min(holm(p_values)) < 0.05)
        yield {
            "seeds": s,
            "seeds' deviations": name,
            "seeds are": method,
            "pairs called different at 0.05 %": f"{100 * np.mean(alone):.1f}",
            "any of 28 claimed %": f"{100 * np.mean(anywhere):.1f}",
            "runs": runs,
        }


def powers(runs: int, cells: Sequence[tuple[int, str]] = CELLS) -> Iterator[dict[str, object]]:
    """Measure how often the first of eight techniques, better by 2 or 5 points, is claimed to be better than the second."""
    for (s, method), gain in itertools.product(cells, (2.0, 5.0)):
        world = World(s, 6000, [1.2] * 8, [gain, *[0.0] * 7])
        rng = np.random.default_rng(0)
        alone, of_seven, of_all = [], [], []
        for _ in range(runs):
            found = differences(world.draw(rng), method)
            p_values = [one.p_value() for *_, one in found]
            alone.append(p_values[0] < 0.05)
            of_seven.append(holm(p_values[:7])[0] < 0.05)
            of_all.append(holm(p_values)[0] < 0.05)
        yield {
            "seeds": s,
            "points": f"{gain:g}",
            "seeds are": method,
            "seen, the pair alone %": f"{100 * np.mean(alone):.0f}",
            "seen among the 7 pairs with it %": f"{100 * np.mean(of_seven):.0f}",
            "seen among all 28 pairs %": f"{100 * np.mean(of_all):.0f}",
            "runs": runs,
        }


def curves(
    runs: int, seeds: Sequence[int] = (2, 3, 5, 10, 20), images: Sequence[int] = (200, 1000, 4000)
) -> Iterator[dict[str, object]]:
    """Measure a pair among eight techniques, as the package does: false positives, coverage of a difference, and power.

    Four of the techniques are two points better than the others; each run has four pairs of equals and four of unequals.
    """
    equal = [(0, 1), (2, 3), (4, 5), (6, 7)]
    unequal = [(0, 4), (1, 5), (2, 6), (3, 7)]
    for n, s in itertools.product(images, seeds):
        world = World(s, n, [1.2] * 8, [2.0] * 4 + [0.0] * 4)
        rng = np.random.default_rng(0)
        false, covered, seen = [], [], []
        for _ in range(runs):
            outcomes = world.draw(rng)
            false += [one.p_value() < 0.05 for *_, one in differences(outcomes, METHODS[2], equal)]
            for *_, one in differences(outcomes, METHODS[2], unequal):
                seen.append(one.p_value() < 0.05)
                covered.append(covers(one, 0.02))
        yield {
            "seeds": s,
            "test images": n,
            "false positives %": f"{100 * np.mean(false):.1f}",
            "coverage %": f"{100 * np.mean(covered):.1f}",
            "power at 2 points %": f"{100 * np.mean(seen):.1f}",
            "pairs": 4 * runs,
        }


def covers(found: Difference, truth: float) -> bool:
    """Say whether the 95 % interval holds `truth`, without solving for its bounds."""
    assert found.spread is not None
    below, above = found.spread.below(truth - found.value), found.spread.mirrored().below(found.value - truth)
    return min(below, above) >= 0.025


@dataclass(frozen=True)
class Sequences:
    """Differences between two techniques, seed after seed, in points, by normal theory.

    Attributes:
        truth: the true difference.
        deviation: of one seed's difference.
        over_images: the variance of what the test images, which all seeds share, add to all of them.
        margin: within which the techniques are the same; None if nobody asks.
    """

    truth: float
    deviation: float
    over_images: float
    margin: float | None = None

    def decide(self, runs: int, levels: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Look at these levels at `LOOKS`, until something is claimed.

        Returns:
            Of each run: whether they were called different; whether within the margin; after how many seeds.
        """
        rng = np.random.default_rng(0)
        drawn = self.truth + self.deviation * rng.standard_normal((runs, LOOKS[-1].seeds))
        shared = np.sqrt(self.over_images) * rng.standard_normal(runs)
        differ, within, seeds = np.zeros(runs, bool), np.zeros(runs, bool), np.full(runs, LOOKS[-1].seeds)
        for look, level in zip(LOOKS, levels, strict=True):
            taken = drawn[:, : look.seeds]
            error = taken.std(1, ddof=1) / np.sqrt(look.seeds)
            distance = np.abs(taken.mean(1) + shared)
            going = ~differ & ~within
            different = going & (self._tail(-distance, error, look.seeds - 1) < level / 2)
            if self.margin is not None:
                near = self._tail(distance - self.margin, error, look.seeds - 1) < level / 2
                within |= going & ~different & near
            differ |= different
            seeds[going & (differ | within)] = look.seeds
        return differ, within, seeds

    def _tail(self, bound: np.ndarray, error: np.ndarray, freedom: int) -> np.ndarray:
        """Compute the probability of a deviation below `bound`: Student's over seeds, normal over images."""
        places, weights = np.polynomial.hermite_e.hermegauss(16 if self.over_images else 1)
        terms = (
            w * stdtr(freedom, (bound - np.sqrt(self.over_images) * u) / error)
            for u, w in zip(places, weights, strict=True)
        )
        found: np.ndarray = sum(terms) / weights.sum()
        return found


def sequential(runs: int, worlds: Mapping[str, Sequences] | None = None) -> Iterator[dict[str, object]]:
    """Measure what looking again and again claims: at 0.05 each time, by the plan, and at 30 seeds once."""
    plan = nominal_levels(LOOKS, 0.05 * SHARE)
    methods = {
        "looking at 0.05": [0.05] * len(LOOKS),
        "the plan": plan,
        "30 seeds, one look": [*[0.0] * (len(LOOKS) - 1), 0.05],
    }
    for name, world in (worlds or SEQUENCES).items():
        for method, levels in methods.items():
            differ, within, seeds = world.decide(runs, levels)
            yield {
                "true difference and variance over images": name,
                "tested": method,
                "called different %": f"{100 * differ.mean():.1f}",
                "called within 1 point %": "" if world.margin is None else f"{100 * within.mean():.1f}",
                "mean seeds": f"{seeds.mean():.1f}",
                "runs": runs,
            }


#: What `sequential` simulates; seeds' differences deviate by 1.7 points, or by 0.85 where both claims are tested.
SEQUENCES: Mapping[str, Sequences] = {
    "none, 0": Sequences(0, 1.7, 0),
    "none, 0.25": Sequences(0, 1.7, 0.25),
    "none, 1": Sequences(0, 1.7, 1),
    "1 point, 0.05": Sequences(1, 1.7, 0.05),
    "2 points, 0.25": Sequences(2, 1.7, 0.25),
    "5 points, 0.25": Sequences(5, 1.7, 0.25),
    "none, 0.04; sd 0.85": Sequences(0, 0.85, 0.04, margin=1),
    "1 point, 0.04; sd 0.85": Sequences(1, 0.85, 0.04, margin=1),
}
#: The committed files, and what writes them.
TABLES: Mapping[str, Callable[[], Iterator[dict[str, object]]]] = {
    "families.csv": lambda: families(200),
    "powers.csv": lambda: powers(100),
    "curves.csv": lambda: curves(150),
    "sequential.csv": lambda: sequential(60_000),
}


def main(name: str) -> None:
    """Measure one file of `TABLES`, and write it."""
    rows = list(TABLES[name]())
    path = RESULTS / "statistics" / name
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
