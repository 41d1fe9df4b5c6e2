"""Compare rows pairwise on the same seeds and images: is the difference real, and what does it cost?"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from flowers_bench.contract.technique import in_use
from flowers_bench.measure.hardware import describe_hardware
from flowers_bench.measure.statistics import (
    ALPHA,
    Difference,
    Interval,
    Pool,
    SeedsNeeded,
    holm,
    mcnemar,
    seeds_needed,
    won_and_lost,
)
from flowers_bench.report.aggregate import FarSeed, Row, are_twins, obstacles, protocol
from flowers_bench.store.decisions import Decision, PairRecord, read_each_decision

#: Two techniques are the same for practical purposes where they are within this of each other: one point. It is also the
#: difference that `Pair.needed` is about.
MARGIN = 0.01


@dataclass(frozen=True)
class Sequential:
    """How a pair was decided while its seeds were added (`--decide`).

    Attributes:
        looks: how many looks it had, of `planned` up to `seeds_max` seeds.
        pairs: how many pairs the plan has; p-values are adjusted for these, both claims, and all looks.
        outcome: `differ`, `within` the margin of the plan, `images` where more seeds would decide nothing, or `open`.
        late: how many trials of the plan's techniques were finished when it was made.
        seconds: time of the trainings that it took, on both sides.
    """

    looks: int
    planned: int
    seeds_max: int
    pairs: int
    outcome: str
    late: int
    seconds: float


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
        time_ratio: training time of `first` divided by that of `second`; None if the hardware differs, or `second` takes none.
        differing: what else differs between the rows, as `key first / second`.
        needed: number of seeds that would show a difference of `margin` at `level` with a probability of 80 %; None if
            there is only one seed.
        far_seeds: seeds of the two rows that lie far off from their others.
        sequential: how it was decided while seeds were added; None where the number of seeds was fixed. If it was so,
            `seeds` are those that it took, and margin, adjusted p-values and claims are those of its plan.
        at_chance: whether the interval of either row's accuracy reaches down to that of guessing: neither has shown that it
            learned anything, and of how they differ once they did, nothing is known.
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
    sequential: Sequential | None = None
    at_chance: bool = False

    @property
    def claimed(self) -> bool:
        """Whether a difference between the techniques may be claimed. With one seed it may not: two trainings of equal
        techniques differ as well, and the more images there are, the more surely the test sees it."""
        if self.sequential:
            return self.sequential.outcome == "differ"
        return not self.one_seed and self.p_holm < ALPHA

    @property
    def within(self) -> bool:
        """Whether it may be claimed that the techniques are within the margin of each other; with one seed it may not."""
        if self.sequential:
            return self.sequential.outcome == "within"
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
        tests: how many they are; pairs of the same trials under other names count once, and those that were decided while
            seeds were added have a family of their own.
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
        asked = list(pairs)
        damaged = _damaged_plans(asked)
        for first, second in asked:
            reasons = _reasons(first, second) + _without_plan(first, second, damaged)
            if reasons:
                refused.append(Refusal((first.id, second.id), first.name, second.name, tuple(reasons)))
            else:
                compared.append((first, second))
        plans = _plans(compared)
        found = _adjusted(compared, _pools(compared), plans, margin)
        fixed = {_tested(pair) for pair in compared if _key(pair) not in plans}
        return cls(found, tuple(refused), family, len(fixed))

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


def _key(pair: tuple[Row, Row]) -> frozenset[str]:
    """Give the ids by which a stored plan knows the two techniques."""
    return frozenset(row.trials[0].seedless_id for row in pair)


def _plans(pairs: Sequence[tuple[Row, Row]]) -> dict[frozenset[str], tuple[Decision, PairRecord]]:
    """Find the pairs that were looked at while seeds were added; of several plans of a pair, that with most pairs."""
    wanted = set(map(_key, pairs))
    decisions = [decision for root in _stores(pairs) for decision in read_each_decision(root)[0]]
    return {
        key: (decision, pair)
        for decision in sorted(decisions, key=lambda decision: len(decision.pairs))
        for pair in decision.pairs
        if pair.p and (key := frozenset((pair.first, pair.second))) in wanted
    }


def _stores(pairs: Iterable[tuple[Row, Row]]) -> list[Path]:
    return sorted({_store(row) for pair in pairs for row in pair})


def _store(row: Row) -> Path:
    return row.trials[0].folder.path.parent


def _damaged_plans(pairs: Iterable[tuple[Row, Row]]) -> dict[Path, str]:
    """Name a plan that cannot be read, for each store that has one."""
    return {root: str(damaged[0]) for root in _stores(pairs) if (damaged := read_each_decision(root)[1])}


def _without_plan(first: Row, second: Row, damaged: Mapping[Path, str]) -> list[str]:
    """Say why nothing can be claimed about a pair that a damaged plan may be about: its seeds may have been added until
    something was."""
    return [damaged[root] for root in sorted({_store(first), _store(second)}) if root in damaged]


def _adjusted(
    compared: Sequence[tuple[Row, Row]],
    pools: Mapping[str, Pool],
    plans: Mapping[frozenset[str], tuple[Decision, PairRecord]],
    margin: float,
) -> tuple[Pair, ...]:
    """Compare all pairs, and adjust them together by Holm's method: differences, and that they are within the margin."""
    tested = [_tested(pair) for pair in compared]
    found = []
    for rows, twin in zip(compared, _twins(compared), strict=True):
        plan = plans.get(_key(rows))
        pool = None if twin else pools[rows[0].id]
        found.append(_compare(*rows, pool, margin) if plan is None else _as_planned(rows, pool, *plan))
    # The same trials under other names have the same p-values.
    p_values = {key: pair for key, pair in zip(tested, found, strict=True) if pair.sequential is None}
    differ = dict(zip(p_values, holm([pair.p for pair in p_values.values()]), strict=True))
    within = dict(zip(p_values, holm([pair.p_within for pair in p_values.values()]), strict=True))
    claimed = sum(p < ALPHA for p in differ.values())
    # A pair that is not claimed would have been the next one in Holm's order, had it been below this.
    next_level = ALPHA / max(1, len(differ) - claimed)
    return tuple(
        pair
        if pair.sequential
        else replace(
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
    """Say of each pair whether its rows are twins, under any of their trials' names."""
    labels = {row.id: row.trials[0].labels for row in itertools.chain.from_iterable(pairs)}
    return [are_twins((one.config, labels[one.id]), (other.config, labels[other.id])) for one, other in pairs]


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


def _as_planned(rows: tuple[Row, Row], pool: Pool | None, decision: Decision, record: PairRecord) -> Pair:
    """Compare one pair on the seeds that it took until it was decided, with what its plan, and its margin, say about it."""
    seeds = decision.seeds_of(record)
    found = _compare(*rows, pool, decision.margin, seeds)
    return replace(
        found,
        p=record.p[-1],
        p_within=record.p_within[-1],
        p_holm=record.p_adjusted,
        p_within_holm=record.p_within_adjusted,
        among=len(decision.pairs),
        sequential=Sequential(
            looks=len(record.p),
            planned=len(decision.looks),
            seeds_max=decision.looks[-1].seeds,
            pairs=len(decision.pairs),
            outcome=record.outcome,
            late=decision.finished_before,
            seconds=sum(t.result.cost.seconds for row in rows for t in row.trials if t.config.seed < seeds),
        ),
    )


def _compare(first: Row, second: Row, pool: Pool | None, margin: float, most: int | None = None) -> Pair:
    """Compare one pair on its common seeds below `most`, not adjusted yet; without a pool, seeds are paired."""
    common = sorted(set(first.seeds) & set(second.seeds))
    seeds = tuple(seed for seed in common if most is None or seed < most) or tuple(common)
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
        at_chance=all(
            row.top1.low is not None and row.top1.low <= 1 / row.config.dataset.classes for row in (first, second)
        ),
    )


def _on_common_seeds(first: Row, second: Row, seeds: Sequence[int]) -> list[np.ndarray]:
    return [row.correct[[row.seeds.index(seed) for seed in seeds]] for row in (first, second)]


#: Seconds: what takes less trains nothing.
_SHORTEST = 0.1


def _time_ratio(first: Row, second: Row, seeds: Sequence[int]) -> float | None:
    trials = [[row.trials[row.seeds.index(seed)] for seed in seeds] for row in (first, second)]
    if len({describe_hardware(trial.result.hardware) for side in trials for trial in side}) > 1:
        return None
    seconds = [float(np.mean([trial.result.cost.seconds for trial in side])) for side in trials]
    return seconds[0] / seconds[1] if seconds[1] >= _SHORTEST else None


def _differing(first: Row, second: Row) -> tuple[str, ...]:
    """List backbone, weights and recipe fields that differ: the difference in accuracy is then not the technique's alone.

    If one of the rows trains nothing, its recipe belongs to the technique, and is not listed.
    """
    one, other = first.factors, second.factors
    both_trained = first.trials[0].trained and second.trials[0].trained
    recipe = in_use({**first.config.recipe.json(), **second.config.recipe.json()}, trained=both_trained)
    keys = ["backbone", "weights", *recipe]
    return tuple(f"{key} {one.get(key)} / {other.get(key)}" for key in keys if one.get(key) != other.get(key))
