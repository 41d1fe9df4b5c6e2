"""python benchmarks/defaults.py STORE: a table of techniques, each against its baseline, from one seed of their defaults on petals.

The store is that of `flowers-bench run --plugin NAME,NAME --seeds 1`, whose bare names mean a default variant and its baseline. With one
seed all intervals cover the test images alone; p-values are McNemar's, adjusted for the table's rows by Holm's method.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rows import Rows, answer, columns, percent, points, read_rows
from tables import RESULTS, Table

from flowers_bench.measure.statistics import holm, mcnemar, paired_difference


def main() -> None:
    """Read the store and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    options = parser.parse_args()
    place = RESULTS / "petals" / "defaults.csv"
    place.parent.mkdir(exist_ok=True)
    defaults(read_rows(options.store)).write(place)


def defaults(rows: Rows) -> Table:
    """Make the table of rows against their baselines, best difference first; ValueError where one has more than one seed."""
    pairs = [
        (row, rows[against])
        for name, row in rows.items()
        if (against := row.baseline) is not None and against in rows and against != name
    ]
    if several := [row.name for row, _ in pairs if len(row.seeds) > 1]:
        raise ValueError(f"one seed each is what this table tells; there are more of: {', '.join(several)}")
    found = [paired_difference(row.correct, baseline.correct) for row, baseline in pairs]
    adjusted = holm([mcnemar(row.correct[0], baseline.correct[0]) for row, baseline in pairs])
    table = Table(
        [
            "technique",
            *columns("top-1"),
            "against",
            *columns("its top-1"),
            *columns("difference"),
            "p (Holm)",
            "network",
            "it is",
        ]
    )
    for (row, baseline), difference, p in sorted(
        zip(pairs, found, adjusted, strict=True), key=lambda entry: -entry[1].value
    ):
        cells = [row.name, *percent(row.top1), baseline.name, *percent(baseline.top1), *points(difference), _p(p)]
        table.add(*cells, row.config.backbone, answer(difference, p, "above", "below"))
    return table


def _p(p: float) -> str:
    return f"{p:.2g}" if p >= 1e-4 else "< 0.0001"


if __name__ == "__main__":
    main()
