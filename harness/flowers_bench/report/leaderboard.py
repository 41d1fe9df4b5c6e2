"""The leaderboard: finished trials grouped into comparable protocols, one row per configuration, with intervals."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from flowers_bench.measure.hardware import describe_hardware
from flowers_bench.report.aggregate import (
    Finished,
    LabelsById,
    Row,
    by_configuration,
    protocol,
    search_budget,
    start,
)
from flowers_bench.report.comparison import MARGIN, Comparison, Pair
from flowers_bench.report.kept_rows import row_of
from flowers_bench.report.kept_trials import load_each
from flowers_bench.report.names import disambiguate
from flowers_bench.store.folder import TrialFolder

#: How many rows, from the best one, are compared with each other; `flowers-bench compare` takes any rows.
COMPARED = 12


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: same dataset, same images, same split, same protocol.

    Attributes:
        title: dataset, sizes and split in words; and the protocol, if another group has the same dataset, sizes and split.
        notes: what must be said wherever a number from this dataset is printed.
        hardware: the machines that the trials ran on, in words.
        rows: the rows, best first.
        compared: the pairs of the best `COMPARED` rows, and each row with the row of its baseline, if the group has it; one
            family, in every table and page.
        baselines: the ids of each row that has its baseline in the group, and of that.
        same: a sentence for rows that share trials: they are one training under several names.
    """

    title: str
    notes: tuple[str, ...]
    hardware: tuple[str, ...]
    rows: tuple[Row, ...]
    compared: Comparison
    baselines: tuple[tuple[str, str], ...]
    same: tuple[str, ...] = ()

    @property
    def differences(self) -> tuple[Pair, ...]:
        """Those pairs that are a row and its baseline."""
        found = {pair.ids: pair for pair in self.compared.pairs}
        return tuple(found[ids] for ids in self.baselines if ids in found)

    @property
    def told(self) -> tuple[Pair, ...]:
        """The pairs that have a sentence: those of `differences`, and those that were decided while seeds were added."""
        differences = self.differences
        decided = [pair for pair in self.compared.pairs if pair.sequential and pair not in differences]
        return (*differences, *decided)


@dataclass(frozen=True)
class Leaderboard:
    """Groups of comparable rows."""

    groups: tuple[Group, ...]

    @classmethod
    def of(
        cls,
        folders: Sequence[TrialFolder],
        labels: LabelsById | None = None,
        margin: float = MARGIN,
        states: Mapping[str, str | None] = MappingProxyType({}),
    ) -> Leaderboard:
        """Group finished trials by protocol: under every name that they have, or only under the names in `labels`; with
        claims of being within `margin`, a share, of each other. `states` are those of `Contents`, where they are known."""
        groups: dict[str, list[Finished]] = {}
        for trial in load_each(folders, labels, states):
            key = json.dumps(protocol(trial.config), sort_keys=True)
            groups.setdefault(key, []).append(trial)
        found = [_group(trials, margin) for _, trials in sorted(groups.items())]
        facts = [
            [protocol(group.rows[0].config), {"group": key}] for key, group in zip(sorted(groups), found, strict=True)
        ]
        titles = disambiguate([group.title for group in found], facts, "; {}: {}".format)
        return cls(tuple(replace(group, title=title) for group, title in zip(found, titles, strict=True)))


def _unlabelled(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """Name images without labels, for a title, and say in a sentence which rows learned from them."""
    used = {row.name: row.config.dataset.n_unlabelled for row in rows if row.config.dataset.n_unlabelled}
    if not used:
        return "", []
    count = max(used.values())
    return f" + {count} unlabelled", [
        f"{', '.join(used)} learned from {count} images without labels too; the others did not."
    ]


def _group(trials: Sequence[Finished], margin: float) -> Group:
    configurations = by_configuration(trials)
    labels = [configuration.label for configuration in configurations]
    names = disambiguate(labels, [configuration.trials[0].kinds for configuration in configurations])
    rows = sorted(map(row_of, names, configurations), key=lambda row: -row.top1.value)
    data = trials[0].config.dataset
    shots = trials[0].config.protocol.shots
    train = f"{data.n_train} train ({shots} of each class)" if shots else f"{data.n_train} train"
    unlabelled, notes = _unlabelled(rows)
    train += unlabelled
    title = (
        f"{data.name}: {data.classes} classes, {train} / {data.n_val} val / {data.n_test} test, "
        f"{data.resolution}, split {data.split_checksum[:8]}"
    )
    if budget := search_budget(trials[0].config):
        title += f"; recipes searched: {budget}"
    machines = [trial.result.hardware for trial in trials]
    hardware = {f"{describe_hardware(machine)}, kernel {machine.kernel or 'not used'}" for machine in machines}
    called: dict[str, list[Row]] = {}
    for row in rows:
        called.setdefault(row.trials[0].label.text, []).append(row)
    with_baselines = [(row, other) for row in rows if (other := _baseline(row, called)) is not None]
    return Group(
        title,
        (*data.notes, *notes),
        tuple(sorted(hardware)),
        tuple(rows),
        _compared(rows, with_baselines, margin),
        tuple((row.id, other.id) for row, other in with_baselines),
        tuple(_same(rows)),
    )


def _compared(rows: Sequence[Row], with_baselines: Sequence[tuple[Row, Row]], margin: float) -> Comparison:
    """Compare the best rows with each other and each row with its baseline, each pair once."""
    pairs = {frozenset((row.id, other.id)): (row, other) for row, other in with_baselines}
    for row, other in itertools.combinations(rows[:COMPARED], 2):
        pairs.setdefault(frozenset((row.id, other.id)), (row, other))
    best = "all pairs of the rows" if len(rows) <= COMPARED else f"all pairs of the best {COMPARED} rows"
    beside = ", and each row against its baseline" if len(rows) > COMPARED and with_baselines else ""
    # Rows that share trials are no test; why is said in the group's `same`.
    allowed = [(row, other) for row, other in pairs.values() if not row.ids & other.ids]
    return Comparison.of(allowed, best + beside, margin)


def _same(rows: Sequence[Row]) -> Iterator[str]:
    """Say which rows are the same trials."""
    names: dict[frozenset[str], list[str]] = {}
    for row in rows:
        names.setdefault(row.ids, []).append(row.name)
    for alike in names.values():
        if len(alike) > 1:
            yield f"{' and '.join(alike)} are one and the same training under several names: not compared with each other"
    having: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for trial in row.ids:
            having.setdefault(trial, []).append(place)
    # Only rows that share a trial are looked at: of thousands of rows, all pairs would take minutes.
    for first, second in sorted({pair for places in having.values() for pair in itertools.combinations(places, 2)}):
        one, other = rows[first], rows[second]
        shared = one.ids & other.ids
        if one.ids != other.ids:
            seeds = ", ".join(
                str(seed) for seed, trial in zip(one.seeds, one.trials, strict=True) if trial.folder.id in shared
            )
            yield f"{one.name} and {other.name} are one and the same trial for seed {seeds}: not compared with each other"


def _baseline(row: Row, called: Mapping[str, Sequence[Row]]) -> Row | None:
    """Find the row of its baseline, by what rows are `called`, with the same backbone and weights; of several, the one with the
    most similar recipe."""
    found = [
        other
        for other in called.get(row.baseline or "", ())
        if other is not row and start(other.config) == start(row.config)
    ]
    return max(found, key=lambda other: len(row.factors.items() & other.factors.items()), default=None)
