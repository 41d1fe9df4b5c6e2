"""Plans of looks, and what was found: `runs/decisions/ID.json`, one for each set of techniques that were decided about.

Seeds that were added until something was claimed must never be taken for a number that was fixed before: whoever reads such
trials needs the plan beside them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flowers_bench.store.identity import short_hash
from flowers_bench.store.reading import PLANS, damaged, read_record
from flowers_bench.store.records import Count, Id, Name, Positive, Share
from flowers_bench.store.schema import Number, Record, Text
from flowers_bench.util.errors import Unreadable, UsageError
from flowers_bench.util.files import write_json


@dataclass(frozen=True, kw_only=True)
class LookRecord(Record):
    """A look: after how many seeds, and which share of alpha is spent by then."""

    seeds: Positive
    spent: Share


@dataclass(frozen=True, kw_only=True)
class PairRecord(Record):
    """A pair, at the looks that it had.

    Attributes:
        first, second: ids of the two techniques, as in `Decision.techniques`.
        p, p_within: of each look, the p-value that they are equal, and that they differ by the margin or more.
        p_adjusted, p_within_adjusted: the same of all looks together, adjusted for all pairs and both claims.
        outcome: `differ`, `within` the margin, `images` where more seeds would decide nothing, or `open`.
    """

    first: Id
    second: Id
    p: Sequence[Share]
    p_within: Sequence[Share]
    p_adjusted: Share
    p_within_adjusted: Share
    outcome: Annotated[str, Text(10, "differ|within|images|open")]


@dataclass(frozen=True, kw_only=True)
class Decision(Record):
    """A plan of looks, and what they found.

    Attributes:
        techniques: ids of what determines each technique's outcome but the seed (`names.seedless_id`).
        labels: their names, in the same order.
        margin: within which techniques are the same, as a share.
        finished_before: how many of their trials were finished when the plan was made.
        looks: all that are planned; `done` of them are over.
        pairs: all that are to be decided.
    """

    techniques: Sequence[Id]
    labels: Sequence[Name]
    margin: Annotated[float, Number(0, 1)]
    finished_before: Count
    looks: Sequence[LookRecord]
    done: Count
    pairs: Sequence[PairRecord]

    @property
    def id(self) -> str:
        """The plan's id, and its file's name: there is one plan for a set of techniques."""
        return decision_id(self.techniques)

    def seeds_of(self, pair: PairRecord) -> int:
        """Give how many seeds a pair took: those of its last look, 0 before the first."""
        return self.looks[len(pair.p) - 1].seeds if pair.p else 0


def decision_id(techniques: Iterable[str]) -> str:
    """Compute the id of the plan for these techniques, in any order."""
    return short_hash(sorted(techniques))


def read_decision(root: Path, techniques: Iterable[str]) -> Decision | None:
    """Read the plan for these techniques; None if there is none. Raises `Unreadable`."""
    path = root / PLANS / f"{decision_id(techniques)}.json"
    return _read(path) if os.path.lexists(path) else None


def read_decisions(root: Path) -> list[Decision]:
    """Read all plans of a store, by id. Raises `Unreadable`."""
    found, unreadable = read_each_decision(root)
    if unreadable:
        raise unreadable[0]
    return found


def read_each_decision(root: Path) -> tuple[list[Decision], list[Unreadable]]:
    """Read the plans of a store that can be read, by id; and an error for each of the others."""
    found, unreadable = [], []
    try:
        for path in _files(root):
            try:
                found.append(_read(path))
            except Unreadable as error:
                unreadable.append(error)
    except Unreadable as error:
        unreadable.append(error)
    return found, unreadable


def _files(root: Path) -> list[Path]:
    """List the plans' files. Raises `Unreadable` where the place of their folder has something else, or it is locked."""
    folder = root / PLANS
    if not os.path.lexists(folder):
        return []
    if folder.is_symlink() or not folder.is_dir():
        raise damaged(folder, "is no folder")
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".json" and not path.name.startswith("."))
    except OSError as error:
        raise damaged(folder, f"cannot be read: {error.strerror or error}") from error


def _read(path: Path) -> Decision:
    """Read a plan, and check that its parts fit each other."""
    found = read_record(path, Decision)
    seeds = [look.seeds for look in found.looks]
    fits = {
        "the looks": bool(seeds) and seeds == sorted(set(seeds)) and found.done <= len(seeds),
        "the pairs": all(
            {pair.first, pair.second} <= set(found.techniques) and len(pair.p) == len(pair.p_within) <= found.done
            for pair in found.pairs
        ),
        "the names": len(found.labels) == len(found.techniques),
        "its name": path.stem == found.id,
    }
    for what, fit in fits.items():
        if not fit:
            raise damaged(path, f"is damaged: {what} cannot be")
    return found


def bring_decisions(sources: Iterable[Path], target: Path) -> None:
    """Copy the plans of other stores into `target`; of one plan in several, that with the most looks."""
    for root in sources:
        for decision in read_decisions(root):
            there = read_decision(target, decision.techniques)
            if there is None or there.done < decision.done:
                write_decision(target, decision)


def write_decision(root: Path, decision: Decision) -> None:
    """Write the plan. Raises `UsageError` where the store cannot be written, or its folder of plans
    leads elsewhere."""
    path = root / PLANS / f"{decision.id}.json"
    if path.parent.is_symlink():
        raise damaged(path.parent, "is a link: a run store has plain files only")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, decision.json())
    except OSError as error:
        raise UsageError(f"the run store {root} cannot be written: {error}. Choose another with --store.") from error
