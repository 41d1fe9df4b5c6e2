"""python benchmarks/species.py --out STORE: do more species to pretrain on buy more, of as many images?

Pretrains `test_resnet` on few and on many species of `grammar_seed=1`, 15,000 images each time, and starts from each on the species that a run
shows unasked. Run again, it continues. Intervals are of 95 %, over seeds and test images, of one pretraining of each number.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from platformdirs import user_cache_path
from pretrain import NETWORKS, pretrained
from rows import columns, percent, points
from tables import RESULTS, Table

from flowers_bench.measure.statistics import paired_difference
from flowers_bench.report.aggregate import Row, build_row, by_configuration
from flowers_bench.report.kept_trials import load_each
from flowers_bench.store.folder import Store

#: Species, and training and validation images of each: as many images in all.
SIZES = ((60, 250, 20), (600, 25, 2))
#: What starts from a pretraining, by the words for it.
STARTS = {"logistic regression": "linear-probe/logistic", "fine-tuned": "transfer/k0"}


def main() -> None:
    """Train what is not trained yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the run store")
    parser.add_argument("--data-dir", type=Path, default=user_cache_path("flowers-bench"), help="where caches lie")
    options = parser.parse_args()
    found: dict[int, str] = {}
    for species, train, val in SIZES:
        changes = {"data.species": species, "data.train": train, "data.val": val, "precision": "float32"}
        texts = {key: str(value) for key, value in changes.items()}
        (folder,) = pretrained(NETWORKS["test_resnet"], texts, options.out, options.data_dir, seeds=1)
        start_from(folder.id, options.out, options.data_dir)
        found[species] = folder.id
    tabulate(options.out, found).write(RESULTS / "instrument" / "species.csv")


def start_from(trial: str, out: Path, data_dir: Path) -> None:
    """Run what starts from a pretraining, with three seeds."""
    command = [sys.executable, "-m", "flowers_bench", "run", "--plugin", ",".join(STARTS.values())]
    command += ["--backbone", "test_resnet", "--weights", f"trial:{trial}", "--seeds", "3"]
    command += ["--data", "petals", "--data-dir", str(data_dir), "--out", str(out)]
    subprocess.run(command, check=True)


def tabulate(store: Path, pretrainings: Mapping[int, str]) -> Table:
    """Make the table of accuracy by the number of species that a pretraining saw, and its gain over that with the fewest.

    Args:
        pretrainings: the ids of their trials, by number of species, fewest first.
    """
    trials = load_each(Store(store).finished())
    rows = {(one.label, one.config.weights.name): build_row(one.label, one) for one in by_configuration(trials)}
    table = Table(["species", *(name for start in STARTS for name in (*columns(start), *columns(f"{start}: gain")))])
    fewest = next(iter(pretrainings.values()))
    for species, trial in pretrainings.items():
        cells = [_cells(rows[name, f"trial:{trial}"], rows[name, f"trial:{fewest}"]) for name in STARTS.values()]
        table.add(species, *(cell for some in cells for cell in some))
    return table


def _cells(row: Row, fewest: Row) -> Sequence[str]:
    gain = [""] * 3 if row is fewest else points(paired_difference(row.correct, fewest.correct))
    return [*percent(row.top1), *gain]


if __name__ == "__main__":
    main()
