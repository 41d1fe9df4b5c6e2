"""Accuracy against training images of each class: the same configurations with increasing `--shots`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flowers_bench.measure.statistics import Interval
from flowers_bench.report.aggregate import Row, protocol
from flowers_bench.report.formatting import percent, percent_interval
from flowers_bench.report.leaderboard import Group, Leaderboard
from flowers_bench.report.names import configuration_id, disambiguate, distinct_names
from flowers_bench.report.table import Table
from flowers_bench.store.records import Config


@dataclass(frozen=True)
class Curve:
    """One configuration: its test accuracy with interval, by training images of each class.

    Attributes:
        points: the accuracies by column of the family.
    """

    name: str
    backbone: str
    points: Mapping[str, Interval]


@dataclass(frozen=True, eq=False)
class Family:
    """Groups that differ in `shots` alone.

    Attributes:
        title: the dataset; and the protocol, if another family has the same dataset.
        columns: number of training images of each class by column name, "1", "5", "all (10)"; smallest first.
        curves: configurations with more than one point, sorted by the accuracy at their last point, best first.
    """

    title: str
    columns: Mapping[str, float]
    curves: tuple[Curve, ...]

    def table(self) -> Table:
        """Make the table of the curves."""
        body = tuple(
            (curve.name, curve.backbone, *(_cell(curve.points.get(column)) for column in self.columns))
            for curve in self.curves
        )
        notes = (
            "test top-1 % with its 95 % interval by training images of each class, nested from left to right; another seed "
            "draws others, and the intervals cover that where there are several; the validation split stays whole",
        )
        return Table(self.title, ("technique/variant", "backbone", *self.columns), body, 2, notes)


def families(board: Leaderboard) -> dict[int, Family]:
    """Find families among the groups; the keys are positions of groups in the board, each with its group's family."""
    together: dict[str, list[int]] = {}
    for place, group in enumerate(board.groups):
        together.setdefault(_key(group.rows[0].config), []).append(place)
    members = [places for places in together.values() if len(places) > 1]
    drawn = [(places, family) for places in members if (family := _family([board.groups[i] for i in places]))]
    facts = [[_protocol(board.groups[places[0]].rows[0].config), {"groups": str(places)}] for places, _ in drawn]
    titles = disambiguate([family.title for _, family in drawn], facts, "; {}: {}".format)
    return {
        place: named
        for (places, family), title in zip(drawn, titles, strict=True)
        for named in [replace(family, title=title)]
        for place in places
    }


def _protocol(config: Config) -> dict[str, str]:
    """Describe in words what all points of a family have in common."""
    facts = protocol(replace(config, protocol=replace(config.protocol, shots=None)))
    return {**facts, "split": config.dataset.split_checksum[:8]}


def _key(config: Config) -> str:
    same = replace(config.protocol, shots=None).json()
    images = {k: v for k, v in config.dataset.json().items() if k not in ("n_train", "fingerprint", "resolution")}
    return json.dumps([images, config.data_options, same, config.harness_revision], sort_keys=True)


def _family(groups: Sequence[Group]) -> Family | None:
    columns: dict[str, float] = {}
    rows: dict[str, dict[str, Row]] = {}
    for group in groups:
        column, number = _shots(group.rows[0].config)
        columns[column] = number
        for row in group.rows:
            rows.setdefault(configuration_id(_without_shots(row.config)), {})[column] = row
    columns = dict(sorted(columns.items(), key=lambda item: (item[1], item[0])))
    curves = [points for points in rows.values() if len(points) > 1]
    names = distinct_names([_without_shots(next(iter(points.values())).config) for points in curves])
    found = [
        Curve(name, next(iter(points.values())).config.backbone, {c: points[c].top1 for c in columns if c in points})
        for name, points in zip(names, curves, strict=True)
    ]
    found.sort(key=lambda curve: -list(curve.points.values())[-1].value)
    title = f"{groups[0].rows[0].config.dataset.name}: accuracy against training images of each class"
    return Family(title, columns, tuple(found)) if found else None


def _shots(config: Config) -> tuple[str, float]:
    shots = config.protocol.shots
    mean = config.dataset.n_train / config.dataset.classes
    return (str(shots), float(shots)) if shots else (f"all ({mean:.3g})", mean)


def _without_shots(config: Config) -> Config:
    """Remove the number of training images, so that all points of a curve have the same configuration."""
    images = replace(config.dataset, n_train=0)
    return replace(config, protocol=replace(config.protocol, shots=None), dataset=images)


def _cell(top1: Interval | None) -> str:
    return "-" if top1 is None else f"{percent(top1.value)} {percent_interval(top1.low, top1.high)}"
