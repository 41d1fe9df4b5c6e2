"""Compare rows pairwise on the same seeds and images: is the difference real, and what does it cost?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowers_bench.contract.technique import in_use
from flowers_bench.measure.hardware import describe_hardware
from flowers_bench.measure.statistics import (
    Interval,
    holm,
    mcnemar,
    paired_difference,
    paired_p_value,
    seeds_needed,
    won_and_lost,
)
from flowers_bench.report.aggregate import Row, obstacles
from flowers_bench.report.names import factors

#: A difference is claimed where its p-value, adjusted for all pairs, is below this.
ALPHA = 0.05
#: The difference that `Pair.seeds_needed` is about: one point.
EFFECT = 0.01


@dataclass(frozen=True)
class Pair:
    """One row against another, on the seeds that both have.

    Attributes:
        ids: the ids of the two rows; programs look a pair up by them.
        first, second: the names of the rows.
        seeds: the common seeds.
        difference: accuracy of `first` minus accuracy of `second`.
        mcnemar: for each seed, the p-value of McNemar's exact test of the two trained networks; it says nothing about
            other seeds.
        p: p-value of equal accuracy over seeds and images; McNemar's if there is one seed.
        p_holm: `p` after Holm's correction for all pairs that are compared at once.
        won, lost: number of images that only `first`, or only `second`, classifies correctly; mean over seeds.
        time_ratio: training time of `first` divided by that of `second`; None if the hardware differs.
        differing: what else differs between the rows, as `key first / second`.
        seeds_needed: number of seeds that would show a difference of one point with a probability of 80 %; None if more
            seeds alone would not show it, or if there is only one seed.
    """

    ids: tuple[str, str]
    first: str
    second: str
    seeds: tuple[int, ...]
    difference: Interval
    mcnemar: tuple[float, ...]
    p: float
    p_holm: float
    won: float
    lost: float
    time_ratio: float | None
    differing: tuple[str, ...]
    seeds_needed: int | None

    @property
    def claimed(self) -> bool:
        """Whether a difference between the techniques may be claimed. With one seed it may not: two trainings of equal
        techniques differ as well, and the more images there are, the more surely the test sees it."""
        return not self.one_seed and self.p_holm < ALPHA

    @property
    def one_seed(self) -> bool:
        """Whether the comparison is of two single trainings."""
        return len(self.seeds) == 1


@dataclass(frozen=True)
class Refusal:
    """A pair that must not be compared, and the reasons."""

    ids: tuple[str, str]
    first: str
    second: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Pairs that were compared, and pairs that must not be compared."""

    pairs: tuple[Pair, ...]
    refused: tuple[Refusal, ...]

    @classmethod
    def of(cls, pairs: Iterable[tuple[Row, Row]]) -> Comparison:
        """Compare these pairs, with Holm's correction over all of them."""
        compared, refused = [], []
        for first, second in pairs:
            reasons = _reasons(first, second)
            if reasons:
                refused.append(Refusal((first.id, second.id), first.name, second.name, tuple(reasons)))
            else:
                compared.append((first, second))
        found = [_compare(first, second, len(compared)) for first, second in compared]
        adjusted = holm([pair.p for pair in found])
        return cls(tuple(replace(pair, p_holm=p) for pair, p in zip(found, adjusted, strict=True)), tuple(refused))

    @classmethod
    def all_of(cls, rows: Sequence[Row]) -> Comparison:
        """Compare every row with every later one."""
        return cls.of(itertools.combinations(rows, 2))


def _reasons(first: Row, second: Row) -> list[str]:
    found = obstacles(first.trials[0], second.trials[0])
    if first.ids & second.ids:
        found.append(
            "they are one and the same trial" if first.ids == second.ids else "one and the same trial stands in both"
        )
    if not found and (first.keys != second.keys or not np.array_equal(first.labels, second.labels)):
        found.append("other test images: their predictions are not about the same keys and labels")
    if not found and not set(first.seeds) & set(second.seeds):
        found.append(f"no seed in common: {_listed(first.seeds)} against {_listed(second.seeds)}")
    return found


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _compare(first: Row, second: Row, pairs: int) -> Pair:
    seeds = sorted(set(first.seeds) & set(second.seeds))
    places = [[row.seeds.index(seed) for seed in seeds] for row in (first, second)]
    one, other = first.correct[places[0]], second.correct[places[1]]
    won, lost = won_and_lost(one, other)
    p = paired_p_value(one, other)
    return Pair(
        ids=(first.id, second.id),
        first=first.name,
        second=second.name,
        seeds=tuple(seeds),
        difference=paired_difference(one, other),
        mcnemar=tuple(mcnemar(a, b) for a, b in zip(one, other, strict=True)),
        p=p,
        p_holm=p,
        won=won / len(seeds),
        lost=lost / len(seeds),
        time_ratio=_time_ratio(first, second, places),
        differing=_differing(first, second),
        seeds_needed=seeds_needed(one, other, EFFECT, ALPHA / pairs) if len(seeds) > 1 else None,
    )


def _time_ratio(first: Row, second: Row, places: Sequence[Sequence[int]]) -> float | None:
    trials = [[row.trials[i] for i in chosen] for row, chosen in zip((first, second), places, strict=True)]
    if len({describe_hardware(trial.result.hardware) for side in trials for trial in side}) > 1:
        return None
    seconds = [float(np.mean([trial.result.cost.seconds for trial in side])) for side in trials]
    return seconds[0] / seconds[1] if seconds[1] else None


def _differing(first: Row, second: Row) -> tuple[str, ...]:
    """List backbone, weights and recipe fields that differ: the difference in accuracy is then not the technique's alone.

    If one of the rows trains nothing, its recipe belongs to the technique, and is not listed.
    """
    one, other = factors(first.config), factors(second.config)
    both_trained = first.trials[0].trained and second.trials[0].trained
    recipe = in_use({**first.config.recipe.json(), **second.config.recipe.json()}, trained=both_trained)
    keys = ["backbone", "weights", *recipe]
    return tuple(f"{key} {one.get(key)} / {other.get(key)}" for key in keys if one.get(key) != other.get(key))
