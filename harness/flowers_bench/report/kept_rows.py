"""Rows that are computed once: their arrays and intervals stand in the store's index until a trial of them changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np

from flowers_bench.measure.statistics import Interval
from flowers_bench.report.aggregate import Configuration, Row, build_row
from flowers_bench.report.measures import EVERYTHING, coarser
from flowers_bench.store import index

_ARRAYS = ("labels", "predicted", "confidence", "calibrated", "correct")


def row_of(name: str, configuration: Configuration) -> Row:
    """Make the row of a configuration, as `build_row`: from the store's index where that has it."""
    trials = configuration.trials
    root, kept_as = trials[0].folder.path.parent, f"row-{configuration.id}"
    key = index.key_of((trial.folder.id, trial.state) for trial in trials)
    if key is None:
        return build_row(name, configuration)
    if content := index.kept(root, kept_as, key):
        # Not of the form that is written below: as if there were none.
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            return _unpacked(content, name, configuration, key)
    row = replace(build_row(name, configuration), key=key)
    index.keep(root, kept_as, key, _packed(row))
    return row


def _packed(row: Row) -> bytes:
    """Write what `build_row` computes: a line of JSON, then the arrays' bytes."""
    arrays = {name: found for name in _ARRAYS if (found := getattr(row, name)) is not None}
    for measure in (*EVERYTHING, *coarser([row])):  # every table and plot asks for some of these means
        row.mean(*measure.path)
    head = {
        "arrays": [(name, array.dtype.str, array.shape) for name, array in arrays.items()],
        "keys": json.dumps(row.keys),
        "top1": asdict(row.top1),
        "metrics": {name: asdict(found) for name, found in row.metrics.items()},
        "if_calibrated": dict(row.if_calibrated),
        "means": list(row.means.items()),
    }
    return json.dumps(head, default=float).encode() + b"\n" + b"".join(a.tobytes() for a in arrays.values())


def _unpacked(content: bytes, name: str, configuration: Configuration, key: str) -> Row:
    """Read what `_packed` wrote. Where it is something else, raises `ValueError`, `TypeError`, `KeyError` or `RecursionError`."""
    line, _, data = content.partition(b"\n")
    head = json.loads(line)
    arrays: dict[str, np.ndarray] = {}
    at = 0
    for array, dtype, shape in head["arrays"]:
        found = np.frombuffer(data, dtype, int(np.prod(shape)), at).reshape(shape)
        arrays[array] = found
        at += found.nbytes
    return Row(
        id=configuration.id,
        name=name,
        trials=configuration.trials,
        keys=_keys(head["keys"]),
        labels=arrays["labels"],
        predicted=arrays["predicted"],
        confidence=arrays["confidence"],
        calibrated=arrays.get("calibrated"),
        correct=arrays["correct"],
        top1=Interval(**head["top1"]),
        metrics={measure: Interval(**found) for measure, found in head["metrics"].items()},
        if_calibrated=head["if_calibrated"],
        key=key,
        means={tuple(path): mean for path, mean in head["means"]},
    )


@lru_cache(maxsize=64)
def _keys(text: str) -> tuple[str, ...]:
    """Read the images' keys, which most rows have in common."""
    found: Sequence[str] = json.loads(text)
    return tuple(found)
