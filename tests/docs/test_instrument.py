"""benchmarks/instrument.py reads a store and asks its questions: who is right, and who takes a twin for another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from stored import outcomes, store_trial

from flowers_bench.report.aggregate import Row
from flowers_bench.store.records import AtLevel

#: Classes 0 and 1 are twins, and 2 and 3.
FAMILIES = AtLevel(top1=0.5, names=2, of_class=[0, 0, 1, 1])


def with_families(row: Row) -> Row:
    tests = (replace(trial.result.test, name_levels={"family": FAMILIES}) for trial in row.trials)
    trials = [
        replace(trial, result=replace(trial.result, test=test)) for trial, test in zip(row.trials, tests, strict=True)
    ]
    return replace(row, trials=tuple(trials))


@pytest.fixture
def instrument(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("benchmarks/instrument.py")


@pytest.fixture
def rows(instrument: ModuleType, tmp_path: Path) -> dict[str, Row]:
    for name, accuracy in (("mixup", 0.6), ("cutmix", 0.6), ("none", 0.9)):
        for seed in range(3):
            store_trial(tmp_path, f"mixed/{name}", seed, outcomes(seed, accuracy))
    return {name: with_families(row) for name, row in instrument.read_rows(tmp_path).items()}


def as_twins(row: Row) -> Row:
    """Every mistake is the twin."""
    return replace(row, predicted=np.where(row.correct, row.labels, row.labels ^ 1))


def as_strangers(row: Row) -> Row:
    """Every mistake is of the other family."""
    return replace(row, predicted=np.where(row.correct, row.labels, (row.labels + 2) % 4))


def test_who_takes_twins_for_each_other_is_found(instrument: ModuleType, rows: dict[str, Row]) -> None:
    found = {
        **rows,
        "mixed/mixup": as_twins(rows["mixed/mixup"]),
        "mixed/cutmix": as_strangers(rows["mixed/cutmix"]),
        "mixed/none": as_twins(rows["mixed/none"]),
    }
    table = instrument.twins(found, "mixing")
    assert table.column("top-1") == ["-30.0", "-30.0"]
    assert table.column("family") == ["+0.0", "-40.0"]
    assert table.column("twins") == ["-30.0", "+10.0"]
    assert table.column("answer")[0] == "yes, worse"


def test_no_difference_is_claimed_of_equals(instrument: ModuleType, rows: dict[str, Row]) -> None:
    row = as_twins(rows["mixed/none"])
    table = instrument.twins({"mixed/mixup": row, "mixed/cutmix": row, "mixed/none": row}, "mixing")
    assert table.column("answer") == ["not decided", "not decided"]


def test_what_was_not_measured_under_stress_is_refused(instrument: ModuleType, rows: dict[str, Row]) -> None:
    plain = {"deformation/deformable": rows["mixed/mixup"], "deformation/plain": rows["mixed/none"]}
    with pytest.raises(SystemExit, match="--stress"):
        instrument.tilt(plain)
