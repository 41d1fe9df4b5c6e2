"""Accuracy by what is known of each test image: of a technique and its baseline, where a dataset draws its images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from flowers_bench.contract.dataset import Dataset
from flowers_bench.measure.statistics import Interval, accuracy_interval
from flowers_bench.report.aggregate import Row
from flowers_bench.report.formatting import percent
from flowers_bench.report.leaderboard import Group, Leaderboard
from flowers_bench.report.table import Table
from flowers_bench.util.text import counted

#: The test images are divided by each factor into as many parts of one size.
PARTS = ("the smallest third", "the middle third", "the largest third")


def factor_tables(board: Leaderboard, datasets: Sequence[Dataset]) -> list[Table]:
    """Make a table for each technique and baseline of the board, of the datasets that know something of their test images."""
    known = {dataset.fingerprint: dataset for dataset in datasets if dataset.shown_factors}
    return [
        _table(first, second, known[first.config.dataset.fingerprint])
        for group in board.groups
        for first, second in _pairs(group)
        if first.config.dataset.fingerprint in known
    ]


def _pairs(group: Group) -> Iterator[tuple[Row, Row]]:
    rows = {row.id: row for row in group.rows}
    for pair in group.differences:
        yield rows[pair.ids[0]], rows[pair.ids[1]]


def _table(first: Row, second: Row, dataset: Dataset) -> Table:
    found = [_by_thirds(row, dataset) for row in (first, second)]
    body = tuple(
        (part, *(" / ".join(percent(one[name][i].value) for one in found) for name in dataset.shown_factors))
        for i, part in enumerate(PARTS)
    )
    title = f"top-1 % by what is known of each test image: {first.name} / {second.name}"
    return Table(title, ("test images by", *dataset.shown_factors), body, 1, (_note(found),))


def _by_thirds(row: Row, dataset: Dataset) -> dict[str, list[Interval]]:
    """Compute the row's accuracy on each third of its images, by factor; the smallest values first."""
    found = {}
    for name, values in dataset.shown_factors.items():
        known = dict(zip(dataset.test.keys, values, strict=True))
        order = np.argsort([known[key] for key in row.keys], kind="stable")
        found[name] = [accuracy_interval(row.correct[:, images]) for images in np.array_split(order, len(PARTS))]
    return found


def _note(found: Sequence[Mapping[str, Sequence[Interval]]]) -> str:
    every = [interval for row in found for thirds in row.values() for interval in thirds]
    widest = max((interval.high - interval.low) / 2 for interval in every)
    seeds, images = (min(numbers) for numbers in zip(*((i.n_seeds, i.n_images) for i in every), strict=True))
    return (
        f"each accuracy: {counted(seeds, 'seed')}, at least {images} images, +-{100 * widest:.1f} points or less (95 %); "
        "the other factors vary within a third as they do everywhere"
    )
