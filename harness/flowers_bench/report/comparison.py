"""Compare rows pairwise on the same seeds and images: is the difference real, and what does it cost?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flowers_bench.contract.technique import in_use
from flowers_bench.measure.hardware import describe_hardware
from flowers_bench.measure.statistics import (
    Difference,
    Interval,
    Pool,
    SeedsNeeded,
    holm,
    mcnemar,
    seeds_needed,
    won_and_lost,
)
from flowers_bench.report.aggregate import FarSeed, Row, obstacles, protocol, start
from flowers_bench.report.names import factors

#: A difference is claimed where its p-value, adjusted for all pairs, is below this.
ALPHA = 0.05
#: Two techniques are the same for practical purposes where they are within this of each other: one point. It is also the
#: difference that `Pair.needed` is about.
MARGIN = 0.01


@dataclass(frozen=True)
class Pair:
    """One row against another, on the seeds that both have.

    Attributes:
        ids: the ids of the two rows; programs look a pair up by them.
        first, second: the names of the rows.
        seeds: the common seeds.
        twins: whether one is the other's baseline on the same backbone and weights: their seeds are paired then.
        agree: whether all seeds agree on every image, as of techniques without chance.
        difference: accuracy of `first` minus accuracy of `second`.
        mcnemar: for each seed, the p-value of McNemar's exact test of the two trained networks; it says nothing about
            other seeds.
        p: p-value of equal accuracy over seeds and images; McNemar's if there is one seed.
        p_holm: `p` after Holm's correction for all pairs that are compared at once.
        margin: how far apart, as a share, techniques are that are the same for practical purposes.
        p_within: p-value of a difference of `margin` or more.
        p_within_holm: `p_within` after Holm's correction for the same pairs.
        among: how many pairs are compared at once; those of the same trials under other names count once.
        level: the level that `p` had to be below, as the other pairs' p-values are.
        won, lost: number of images that only `first`, or only `second`, classifies correctly; mean over seeds.
        time_ratio: training time of `first` divided by that of `second`; None if the hardware differs.
        differing: what else differs between the rows, as `key first / second`.
        needed: number of seeds that would show a difference of `margin` at `level` with a probability of 80 %; None if
            there is only one seed.
        far_seeds: seeds of the two rows that lie far off from their others.
    """

    ids: tuple[str, str]
    first: str
    second: str
    seeds: tuple[int, ...]
    twins: bool
    agree: bool
    difference: Interval
    mcnemar: tuple[float, ...]
    p: float
    p_holm: float
    margin: float
    p_within: float
    p_within_holm: float
    among: int
    level: float
    won: float
    lost: float
    time_ratio: float | None
    differing: tuple[str, ...]
    needed: SeedsNeeded | None
    far_seeds: tuple[FarSeed, ...]

    @property
    def claimed(self) -> bool:
        """Whether a difference between the techniques may be claimed. With one seed it may not: two trainings of equal
        techniques differ as well, and the more images there are, the more surely the test sees it."""
        return not self.one_seed and self.p_holm < ALPHA

    @property
    def within(self) -> bool:
        """Whether it may be claimed that the techniques are within the margin of each other; with one seed it may not."""
        return not self.one_seed and self.p_within_holm < ALPHA

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
    """Pairs that were compared, and pairs that must not be compared.

    Attributes:
        family: which pairs Holm's correction is over, in words.
        tests: how many they are; pairs of the same trials under other names count once.
    """

    pairs: tuple[Pair, ...]
    refused: tuple[Refusal, ...]
    family: str
    tests: int

    @classmethod
    def of(
        cls, pairs: Iterable[tuple[Row, Row]], family: str = "the pairs asked for", margin: float = MARGIN
    ) -> Comparison:
        """Compare these pairs, with Holm's correction over all of them."""
        compared, refused = [], []
        for first, second in pairs:
            reasons = _reasons(first, second)
            if reasons:
                refused.append(Refusal((first.id, second.id), first.name, second.name, tuple(reasons)))
            else:
                compared.append((first, second))
        pools = _pools(compared)
        return cls(_adjusted(compared, pools, margin), tuple(refused), family, len(set(map(_tested, compared))))

    @classmethod
    def all_of(cls, rows: Sequence[Row], margin: float = MARGIN) -> Comparison:
        """Compare every row with every later one."""
        return cls.of(itertools.combinations(rows, 2), "all pairs of the names given", margin)

    @classmethod
    def against(cls, rows: Sequence[Row], one: Row, margin: float = MARGIN) -> Comparison:
        """Compare each of the rows with `one`."""
        return cls.of(((row, one) for row in rows), f"each name given against {one.name}", margin)


def _tested(pair: tuple[Row, Row]) -> frozenset[frozenset[str]]:
    """Give what two pairs of rows have in common that are one test: the trials."""
    return frozenset(row.ids for row in pair)


def _pools(pairs: Sequence[tuple[Row, Row]]) -> dict[str, Pool]:
    """Collect the seeds of all rows of a protocol in one pool, each trial once; by the rows' ids."""
    groups: dict[str, dict[str, Row]] = {}
    for row in itertools.chain.from_iterable(pairs):
        groups.setdefault(str(protocol(row.config)), {})[row.id] = row
    found = {}
    for rows in groups.values():
        different = {row.ids: row.correct for row in rows.values()}
        pool = Pool.of(list(different.values()))
        found.update(dict.fromkeys(rows, pool))
    return found


def _adjusted(compared: Sequence[tuple[Row, Row]], pools: Mapping[str, Pool], margin: float) -> tuple[Pair, ...]:
    """Compare all pairs, and adjust them together by Holm's method: differences, and that they are within the margin."""
    tested = [_tested(pair) for pair in compared]
    twins = _twins(compared)
    found = [
        _compare(*rows, None if twin else pools[rows[0].id], margin) for rows, twin in zip(compared, twins, strict=True)
    ]
    p_values = dict(zip(tested, found, strict=True))  # the same trials under other names have the same p-values
    differ = dict(zip(p_values, holm([pair.p for pair in p_values.values()]), strict=True))
    within = dict(zip(p_values, holm([pair.p_within for pair in p_values.values()]), strict=True))
    claimed = sum(p < ALPHA for p in differ.values())
    # A pair that is not claimed would have been the next one in Holm's order, had it been below this.
    next_level = ALPHA / max(1, len(differ) - claimed)
    return tuple(
        replace(
            pair,
            p_holm=differ[key],
            p_within_holm=within[key],
            among=len(differ),
            level=next_level,
            needed=_needed(rows, pair, None if pair.twins else pools[rows[0].id], next_level),
        )
        for rows, key, pair in zip(compared, tested, found, strict=True)
    )


def _twins(pairs: Sequence[tuple[Row, Row]]) -> list[bool]:
    """Say of each pair whether one row is the other's baseline, under any of their trials' names, on the same backbone and
    weights. Only then do equal seeds mean equal chance: of a variant and its baseline same-seed accuracies were
    measured to vary together; of other techniques a common seed is a common number and no more."""
    labels = {row.id: row.trials[0].folder.labels() for row in itertools.chain.from_iterable(pairs)}
    names = {key: {label.text for label in found} for key, found in labels.items()}
    bases = {key: {label.baseline for label in found} for key, found in labels.items()}
    return [
        start(one.config) == start(other.config)
        and bool(bases[one.id] & names[other.id] or bases[other.id] & names[one.id])
        for one, other in pairs
    ]


def _needed(rows: tuple[Row, Row], pair: Pair, pool: Pool | None, level: float) -> SeedsNeeded | None:
    if pair.one_seed:
        return None
    one, other = _on_common_seeds(*rows, pair.seeds)
    return seeds_needed(one, other, pair.margin, level, pool=pool)


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


def _compare(first: Row, second: Row, pool: Pool | None, margin: float) -> Pair:
    """Compare one pair, not adjusted yet; without a pool, seeds are paired."""
    seeds = tuple(sorted(set(first.seeds) & set(second.seeds)))
    one, other = _on_common_seeds(first, second, seeds)
    won, lost = won_and_lost(one, other)
    found = Difference.of(one, other, pool)
    p, p_within = found.p_value(), found.p_within(margin)
    return Pair(
        ids=(first.id, second.id),
        first=first.name,
        second=second.name,
        seeds=seeds,
        twins=pool is None,
        agree=found.spread is None,
        difference=found.interval(),
        mcnemar=tuple(mcnemar(a, b) for a, b in zip(one, other, strict=True)),
        p=p,
        p_holm=p,
        margin=margin,
        p_within=p_within,
        p_within_holm=p_within,
        among=1,
        level=ALPHA,
        won=won / len(seeds),
        lost=lost / len(seeds),
        time_ratio=_time_ratio(first, second, seeds),
        differing=_differing(first, second),
        needed=None,
        far_seeds=tuple(far for row in (first, second) if (far := row.far_seed)),
    )


def _on_common_seeds(first: Row, second: Row, seeds: Sequence[int]) -> list[np.ndarray]:
    return [row.correct[[row.seeds.index(seed) for seed in seeds]] for row in (first, second)]


def _time_ratio(first: Row, second: Row, seeds: Sequence[int]) -> float | None:
    trials = [[row.trials[row.seeds.index(seed)] for seed in seeds] for row in (first, second)]
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
