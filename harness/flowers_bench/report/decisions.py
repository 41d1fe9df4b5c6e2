"""Decide about pairs of techniques, look after look, as their stored plan says."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from flowers_bench.measure.sequential import (
    SHARE,
    Look,
    adjust_both,
    nominal_levels,
    plan_looks,
    sequential_p_value,
)
from flowers_bench.measure.statistics import ALPHA, Difference, Pool
from flowers_bench.report.aggregate import are_twins, config_obstacles, protocol
from flowers_bench.report.names import seedless_id
from flowers_bench.store.decisions import Decision, LookRecord, PairRecord
from flowers_bench.store.identity import Label
from flowers_bench.store.records import Config
from flowers_bench.util.errors import UsageError


@dataclass(frozen=True)
class Contender:
    """A technique to be decided about: a planned trial of it, of any seed, and its names."""

    config: Config
    labels: Sequence[Label]

    @property
    def id(self) -> str:
        """What all of its seeds have in common."""
        return seedless_id(self.config)


def new_decision(contenders: Sequence[Contender], margin: float, seeds_max: int, finished_before: int) -> Decision:
    """Plan the looks for all pairs that may be compared.

    Raises:
        UsageError: there is no such pair.
    """
    allowed = [
        (one, other)
        for one, other in itertools.combinations(contenders, 2)
        if not config_obstacles(one.config, other.config)
    ]
    if not allowed:
        raise UsageError(
            "--decide takes two techniques or more that can be compared: --plugin deformable/stage3,deformable/plain"
        )
    pairs = [
        PairRecord(
            first=one.id, second=other.id, p=[], p_within=[], p_adjusted=1.0, p_within_adjusted=1.0, outcome="open"
        )
        for one, other in allowed
    ]
    return Decision(
        techniques=[contender.id for contender in contenders],
        labels=[contender.labels[0].text for contender in contenders],
        margin=margin,
        finished_before=finished_before,
        looks=_records(plan_looks(seeds_max)),
        done=0,
        pairs=pairs,
    )


def with_seeds_max(decision: Decision, seeds_max: int) -> Decision:
    """Plan the looks that are not over yet up to another number of seeds; they spend what the others left of alpha.

    Raises:
        UsageError: that many seeds were looked at already, or alpha is spent.
    """
    planned = decision.looks[-1].seeds
    if seeds_max == planned:
        return decision
    done = _looks(decision)[: decision.done]
    try:
        return replace(decision, looks=_records(plan_looks(seeds_max, done)))
    except ValueError as error:
        over = done[-1].seeds if done else 0
        raise UsageError(
            f"--seeds-max {seeds_max}: the plan in the store was for {planned} seeds and has looked at {over}; "
            f"{100 * (done[-1].spent if done else 0):.0f} % of alpha is spent. "
            + ("Nothing is left for more seeds." if done and done[-1].spent >= 1 else f"Give more than {over}.")
        ) from error


def _records(looks: Sequence[Look]) -> list[LookRecord]:
    return [LookRecord(seeds=look.seeds, spent=look.spent) for look in looks]


def _looks(decision: Decision) -> tuple[Look, ...]:
    return tuple(Look(look.seeds, look.spent) for look in decision.looks)


def going_on(decision: Decision) -> set[str]:
    """Give the ids of the techniques that are in a pair that is still open."""
    return {key for pair in decision.pairs if pair.outcome == "open" for key in (pair.first, pair.second)}


def look_again(decision: Decision, contenders: Sequence[Contender], outcomes: Mapping[str, np.ndarray]) -> Decision:
    """Take the next look at all open pairs, and decide what can be decided.

    Args:
        outcomes: bool (S, N) by technique: all seeds of the look of those that are going on, and of the others all that they
            have; images in one order.
    """
    looks = _looks(decision)
    seeds = looks[decision.done].seeds
    known = {contender.id: contender for contender in contenders}
    groups: dict[str, list[np.ndarray]] = {}
    for key, correct in outcomes.items():
        groups.setdefault(str(protocol(known[key].config)), []).append(correct[:seeds])
    pools = {name: Pool.of(group) for name, group in groups.items()}
    level = nominal_levels(looks, ALPHA * SHARE / len(decision.pairs))[-1]
    pairs = list(decision.pairs)
    for place, pair in enumerate(pairs):
        if pair.outcome != "open":
            continue
        one, other = known[pair.first], known[pair.second]
        twins = are_twins((one.config, one.labels), (other.config, other.labels))
        found = Difference.of(
            outcomes[pair.first][:seeds],
            outcomes[pair.second][:seeds],
            None if twins else pools[str(protocol(one.config))],
        )
        pairs[place] = replace(
            pair,
            p=[*pair.p, found.p_value()],
            p_within=[*pair.p_within, found.p_within(decision.margin)],
            outcome="images" if _limited_by_images(found, decision.margin, level) else "open",
        )
    return replace(decision, pairs=_decided(pairs, looks), done=decision.done + 1)


def _limited_by_images(found: Difference, margin: float, level: float) -> bool:
    """Say whether no number of seeds would decide: at the last look's level, the images alone leave open both whether the two
    differ, unless they prove to be further apart than now, and whether they are within the margin."""
    reach = -float(ndtri(level / 2)) * found.over_images
    return reach >= margin and abs(found.value) <= reach


def _decided(pairs: Sequence[PairRecord], looks: Sequence[Look]) -> list[PairRecord]:
    """Adjust all pairs' p-values together, and claim what is below alpha. A claim stays."""
    differ, within = adjust_both(
        [sequential_p_value(looks, pair.p) for pair in pairs],
        [sequential_p_value(looks, pair.p_within) for pair in pairs],
    )
    found = []
    for pair, different, near in zip(pairs, differ, within, strict=True):
        outcome = pair.outcome
        if outcome not in ("differ", "within"):
            outcome = "differ" if different < ALPHA else "within" if near < ALPHA else outcome
        found.append(replace(pair, p_adjusted=different, p_within_adjusted=near, outcome=outcome))
    return found
