"""Compare two rows on changed images: which of them withstands a kind of change better, on the same images and seeds?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from flowers_bench.measure.statistics import ALPHA, Interval, holm, paired_difference, paired_p_value
from flowers_bench.report.aggregate import Finished, Row, obstacles
from flowers_bench.report.formatting import p_value, points_interval
from flowers_bench.report.table import Table
from flowers_bench.store.records import StressLevel

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    "change",
    "from",
    "to",
    "difference",
    "95 % interval",
    "grows by",
    "95 % interval of that",
    "p (Holm)",
)


@dataclass(frozen=True)
class Robustness:
    """One kind of change, `first` minus `second`.

    Attributes:
        kind: the kind of change, or `factor NAME`.
        weakest, strongest: its weak and strong end in words; unchanged images are the weak end of a kind of change.
        difference: difference of accuracy, mean over the five levels.
        growth: difference at the strong end minus difference at the weak end; if it is above zero, `first` withstands the
            change better.
        p, p_holm: p-value of zero `growth`; and the same after Holm's correction for all kinds of this pair.
    """

    kind: str
    weakest: str
    strongest: str
    difference: Interval
    growth: Interval
    p: float
    p_holm: float

    @property
    def claimed(self) -> bool:
        """Whether one technique withstands the change better; one training of each cannot show that."""
        return self.growth.n_seeds > 1 and self.p_holm < ALPHA


@dataclass(frozen=True)
class UnderStress:
    """Two rows compared on changed test images, on their common seeds; `ids` are the ids of the rows."""

    ids: tuple[str, str]
    first: str
    second: str
    seeds: tuple[int, ...]
    kinds: tuple[Robustness, ...]


def under_stress(first: Row, second: Row) -> UnderStress | None:
    """Compare two rows on changed images; None if they must not be compared, or have no common seed with `--stress`."""
    if obstacles(first.trials[0], second.trials[0]):
        return None
    measured = [
        {t.config.seed: t for t in row.trials if t.result.stress_revision is not None} for row in (first, second)
    ]
    seeds = tuple(sorted(set(measured[0]) & set(measured[1])))
    trials = [[of_seed[seed] for seed in seeds] for of_seed in measured]
    if not seeds or len({trial.result.stress_revision for side in trials for trial in side}) > 1:
        return None
    one, other = (_outcomes(side) for side in trials)
    plain = [row.correct[[row.seeds.index(seed) for seed in seeds]].astype(float) for row in (first, second)]
    points = trials[0][0].result.stress or {}
    kinds = [
        _robustness(kind, points[kind], one[kind], other[kind], plain)
        for kind in points
        if kind in one and kind in other
    ]
    adjusted = holm([kind.p for kind in kinds])
    adjusted_kinds = tuple(replace(kind, p_holm=p) for kind, p in zip(kinds, adjusted, strict=True))
    return UnderStress((first.id, second.id), first.name, second.name, seeds, adjusted_kinds)


def _outcomes(trials: list[Finished]) -> dict[str, np.ndarray]:
    """Read the outcomes by kind of change: float (S seeds, L levels, N images), images in order of their keys."""
    found: dict[str, list[np.ndarray]] = {}
    for table in (trial.folder.stress() for trial in trials):
        for kind, rows in table.groupby("kind", sort=False):
            found.setdefault(str(kind), []).append(_by_level(rows))
    return {kind: np.stack(seeds) for kind, seeds in found.items() if len(seeds) == len(trials)}


def _by_level(rows: pd.DataFrame) -> np.ndarray:
    ordered = rows.sort_values(["level", "key"])
    correct: np.ndarray = ordered["correct"].to_numpy(dtype=float).reshape(ordered["level"].nunique(), -1)
    return correct


def _robustness(
    kind: str, points: Sequence[StressLevel], one: np.ndarray, other: np.ndarray, plain: list[np.ndarray]
) -> Robustness:
    # A factor of the dataset always has some value: its weak end is its easiest value, not the unchanged images.
    is_factor = plain[0].shape[1] != one.shape[2] or kind.startswith("factor ")
    weak = (one[:, 0], other[:, 0]) if is_factor else plain
    ends = one[:, -1] - weak[0], other[:, -1] - weak[1]
    p = paired_p_value(*ends)
    levels, summed = one.shape[1], paired_difference(one.sum(1), other.sum(1))
    return Robustness(
        kind=kind,
        weakest=points[0].label if is_factor else "none",
        strongest=points[-1].label,
        difference=replace(summed, **{key: getattr(summed, key) / levels for key in ("value", "low", "high")}),
        growth=paired_difference(*ends),
        p=p,
        p_holm=p,
    )


def sentences(found: UnderStress) -> list[str]:
    """Say what may be claimed about the two rows."""
    lines = [
        f"from {kind.weakest} to {kind.strongest} of {kind.kind}, {found.first} "
        f"{'gains' if kind.growth.value > 0 else 'loses'} {abs(100 * kind.growth.value):.1f} points on {found.second} "
        f"{points_interval(kind.growth.low, kind.growth.high)}"
        for kind in found.kinds
        if kind.claimed
    ]
    basis = f"{len(found.seeds)} seeds" if len(found.seeds) > 1 else "one seed: run at least 3"
    return lines or [
        f"of no kind of change can it be claimed that {found.first} or {found.second} stands it better "
        f"({len(found.kinds)} kinds, {basis})"
    ]


def table(found: UnderStress) -> Table:
    """Make the table of all kinds of change."""
    body = tuple(
        (
            kind.kind,
            kind.weakest,
            kind.strongest,
            f"{100 * kind.difference.value:+.1f}",
            points_interval(kind.difference.low, kind.difference.high),
            f"{100 * kind.growth.value:+.1f}",
            points_interval(kind.growth.low, kind.growth.high),
            p_value(kind.p_holm),
        )
        for kind in found.kinds
    )
    images = sorted({kind.difference.n_images for kind in found.kinds})
    notes = (
        f"points of test top-1 accuracy, first minus second, on {len(found.seeds)} seed{'s' if len(found.seeds) > 1 else ''} "
        f"x {' or '.join(map(str, images))} images; intervals: 95 %, over {found.kinds[0].difference.over}",
        "difference: mean over the levels; grows by: the difference at the strong end minus that at the weak end: above "
        "zero, the first stands the change better; p: of this, adjusted for all kinds",
        "read by the checkpoints that unchanged validation images chose; nothing was chosen by these numbers",
        *(() if len(found.seeds) > 1 else ("one seed: nothing is claimed about the techniques, whatever p is",)),
    )
    return Table(f"{found.first} against {found.second} under stress", COLUMNS, body, 3, notes)


def records(found: UnderStress) -> list[dict[str, object]]:
    """Give all kinds of change as JSON values, in full precision."""
    return [
        {
            "kind": kind.kind,
            "weakest": kind.weakest,
            "strongest": kind.strongest,
            "seeds": list(found.seeds),
            "images": kind.difference.n_images,
            "difference": kind.difference.value,
            "low": kind.difference.low,
            "high": kind.difference.high,
            "growth": kind.growth.value,
            "growth_low": kind.growth.low,
            "growth_high": kind.growth.high,
            "p": kind.p,
            "p_holm": kind.p_holm,
            "claimed": kind.claimed,
        }
        for kind in found.kinds
    ]
