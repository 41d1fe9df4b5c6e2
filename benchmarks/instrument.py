"""python benchmarks/instrument.py STORE: a table for each question of the suite `instrument`, from its trials with `--stress`.

Every table is one question. Differences are points of top-1, paired by seed and test image; intervals are of 95 %, as
docs/statistics.md tells. A table's p-values are adjusted for its rows by Holm's method.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from rows import Rows, answer, columns, percent, points, read_rows
from tables import RESULTS, Table

from flowers_bench.measure.statistics import Interval, holm, paired_difference, paired_p_value
from flowers_bench.report.aggregate import Finished, Row
from flowers_bench.report.robustness import under_stress

FOLDER = RESULTS / "instrument"
#: What only drawn flowers can be asked about their shape, by the words for it.
SHAPE = {
    "factor perspective": "tilt",
    "factor rotation": "turn",
    "factor scale": "size",
    "factor elastic": "bend",
}
OCCLUSION = "factor occlusion"
PAIRS = {
    "mixing": (("mixed/mixup", "mixed/none"), ("mixed/cutmix", "mixed/none")),
    "margin": (("margin/arcface", "margin/none"), ("margin/two-centers", "margin/none")),
}


def main() -> None:
    """Read the store and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    rows = read_rows(options.store)
    tables: Mapping[str, Callable[[Rows], Table]] = {
        "tilt": tilt,
        "mixing": lambda found: twins(found, "mixing"),
        "margin": lambda found: twins(found, "margin"),
        "shots": shots,
        "occlusion": occlusion,
    }
    for name, table in tables.items():
        table(rows).write(FOLDER / f"{name}.csv")


def tilt(rows: Rows) -> Table:
    """Make the table of deformable convolutions against plain ones, by what changes a flower's shape."""
    found = under_stress(rows["deformation/deformable"], rows["deformation/plain"])
    if found is None:
        raise SystemExit("these trials were not measured on changed images: flowers-bench run instrument --stress")
    kinds = [kind for kind in found.kinds if kind.kind in SHAPE]
    table = Table(
        ["drawn again with", "from", "to", *columns("difference"), *columns("grows by"), "p (Holm)", "answer"]
    )
    for kind, p in zip(kinds, holm([kind.p for kind in kinds]), strict=True):
        growth = [*points(kind.difference), *points(kind.growth)]
        table.add(SHAPE[kind.kind], kind.weakest, kind.strongest, *growth, f"{p:.2g}", answer(kind.growth, p))
    return table


def twins(rows: Rows, question: str) -> Table:
    """Make the table of rows against their baselines: top-1, the family's top-1, and twins told apart.

    Twins told apart is the share of images whose species is right, less the share whose family is: minus the share that is
    taken for a twin. So its difference is that of top-1 less that of the family.
    """
    pairs = [(rows[first], rows[second]) for first, second in PAIRS[question]]
    table = Table(["row", "against", *columns("top-1"), *columns("family"), *columns("twins"), "p (Holm)", "answer"])
    told = [tuple(-_taken_for_a_twin(row) for row in pair) for pair in pairs]
    adjusted = holm([paired_p_value(*both) for both in told])
    for (first, second), both, p in zip(pairs, told, adjusted, strict=True):
        measured = [
            paired_difference(first.correct, second.correct),
            paired_difference(_right_family(first), _right_family(second)),
            paired_difference(*both),
        ]
        cells = [cell for interval in measured for cell in points(interval)]
        table.add(first.name, second.name, *cells, f"{p:.2g}", answer(measured[-1], p))
    return table


def shots(rows: Rows) -> Table:
    """Make the table of accuracy by training images of each class."""
    table = Table(["images of each class", *columns("logistic regression"), *columns("fine-tuned")])
    names = {1: "1", 2: "2", 5: "5", 10: "10"}
    for count, text in names.items():
        tuned = rows["mixed/none" if count == 10 else f"shots/fine-tuned-{count}"]
        table.add(text, *percent(rows[f"shots/logistic-{count}"].top1), *percent(tuned.top1))
    return table


def occlusion(rows: Rows) -> Table:
    """Make the table of what every row loses from an open flower to one that a leaf covers by 45 %, best first."""
    measured: dict[str, tuple[list[np.ndarray], Interval]] = {}
    seen: set[tuple[str, ...]] = set()
    for row in rows.values():
        trials = tuple(trial.folder.id for trial in row.trials)
        if trials in seen:  # one training under several names
            continue
        seen.add(trials)
        ends = [np.stack([_outcome(trial, level) for trial in row.trials]) for level in (0, -1)]
        measured[row.name] = (ends, paired_difference(ends[1], ends[0]))
    table = Table(["row", "open %", "covered %", *columns("change")])
    for name, (ends, change) in sorted(measured.items(), key=lambda item: -item[1][0][1].mean()):
        table.add(name, *(f"{100 * end.mean():.1f}" for end in ends), *points(change))
    return table


def _outcome(trial: Finished, level: int) -> np.ndarray:
    """Read whether each image was right at the weakest (0) or strongest (-1) level of occlusion: float (N,)."""
    table = trial.folder.stress()
    rows = table[table["kind"] == OCCLUSION]
    chosen = sorted(rows["level"].unique())[level]
    found: np.ndarray = rows[rows["level"] == chosen].sort_values("key")["correct"].to_numpy(dtype=float)
    return found


def _right_family(row: Row) -> np.ndarray:
    families = np.asarray((row.trials[0].result.test.name_levels or {})["family"].of_class)
    right: np.ndarray = (families[row.predicted] == families[row.labels]).astype(float)
    return right


def _taken_for_a_twin(row: Row) -> np.ndarray:
    return _right_family(row) - row.correct


if __name__ == "__main__":
    main()
