"""python benchmarks/scale.py STORE: where time, memory and disk of the trials of scale.toml went, a row for each kind of trial.

Seconds are by the clock, means over the trials of a row; memory is the largest peak of a trial's process, with the pages of
images that it mapped.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tables import RESULTS, Table

from flowers_bench.report.aggregate import Finished
from flowers_bench.report.kept_trials import load_each
from flowers_bench.store.folder import Store


def main() -> None:
    """Read the store and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    place = parser.parse_args().store
    kinds = defaultdict(list)
    for trial in load_each(Store(place).finished()):
        kinds[trial.config.dataset.n_train, trial.label.text].append(trial)
    table = Table(["technique", "training images", "trials", "set up s", "fit or train s", "test s", "speed s",
                   "peak MiB", "stored MB"])  # fmt: skip
    for (images, label), trials in sorted(kinds.items(), key=lambda kind: (-kind[0][0], kind[0][1])):
        table.add(f"`{label}`", f"{images:,}", len(trials), *_cells(place, trials))
    table.write(RESULTS / "performance" / "scale.csv")


def _cells(place: Path, trials: Sequence[Finished]) -> list[str]:
    costs = [trial.result.cost for trial in trials]
    seconds = (
        [cost.setup_seconds for cost in costs],
        [cost.seconds for cost in costs],
        [cost.test_seconds for cost in costs],
        [cost.inference.seconds if cost.inference else None for cost in costs],
    )
    peak = max(cost.peak_rss_bytes or 0 for cost in costs)
    stored = [sum(file.stat().st_size for file in (place / trial.result.id).rglob("*")) for trial in trials]
    return [*(_mean(of) for of in seconds), f"{peak / 2**20:,.0f}", f"{np.mean(stored) / 1e6:.1f}"]


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.1f}" if known else "not measured"


if __name__ == "__main__":
    main()
