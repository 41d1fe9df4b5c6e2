"""What the page's plots draw, as plain JSON values: learning curves, reliability, stress, sweeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowers_bench.measure.quality import BINS, equal_width_bins
from flowers_bench.report.aggregate import Row
from flowers_bench.report.measures import COSTS
from flowers_bench.report.names import factors, facts_without, told_apart
from flowers_bench.report.shots import Family

#: Values of a factor that make a sweep.
SWEPT = 3
#: What can be drawn of a trial's history, and what it is called.
CURVES = {"val_top1": "validation accuracy", "train_top1_clean": "training accuracy", "train_loss": "training loss"}


def series(row: Row) -> dict[str, Any]:
    """What the plots draw of a row."""
    return {
        "id": row.id,
        "name": row.name,
        "backbone": row.config["backbone"],
        "top1": rounded([row.top1.low, row.top1.value, row.top1.high]),
        "costs": {measure.key: row.mean(*measure.path) for measure in COSTS},
        "curves": {key: curve([trial.folder.history() for trial in row.trials], key) for key in CURVES},
        "reliability": reliability(row),
        "stress": _stress(row),
    }


def sweeps(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of a technique that differ in one number alone (their variant's name apart), by that number."""
    found: dict[tuple[Any, ...], list[tuple[float, Row]]] = {}
    for row in {(row.config["technique"], row.ids): row for row in rows}.values():  # once, whatever its names
        own = {key: value for key, value in factors(row.config).items() if key not in ("variant", "harness_revision")}
        for key, value in own.items():
            if not key.startswith("weights.") and (number := finite(value)) is not None:
                rest = tuple(sorted((k, v) for k, v in own.items() if k != key))
                found.setdefault((row.config["technique"], key, rest), []).append((number, row))
    swept = []
    for (technique, key, _), points in found.items():
        if len({number for number, _ in points}) >= SWEPT:
            points.sort(key=lambda point: point[0])
            swept.append((f"{technique}: {key}", key, points))
    # One number of one technique may be swept several times: on another backbone, with another setting.
    facts = [facts_without(points[0][1].config, key, "variant") for _, key, points in swept]
    titles = told_apart([title for title, _, _ in swept], facts)
    return [
        {
            "factor": title,
            "key": key,
            "x": [number for number, _ in points],
            "top1": [rounded([row.top1.low, row.top1.value, row.top1.high]) for _, row in points],
            "names": [row.name for _, row in points],
            "ids": [row.id for _, row in points],
        }
        for title, (_, key, points) in zip(titles, swept, strict=True)
    ]


def shots_series(family: Family) -> dict[str, Any]:
    """Accuracy against training images of each class, a curve for each configuration."""
    curves = [
        {
            "name": curve.name,
            "x": [family.columns[column] for column in curve.points],
            "top1": [rounded([top1.low, top1.value, top1.high]) for top1 in curve.points.values()],
        }
        for curve in family.curves
    ]
    return {"curves": curves}


def finite(text: str) -> float | None:
    """The finite number that a text is, or None."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def curve(histories: Sequence[Sequence[Mapping[str, Any]]], key: str) -> dict[str, list[float | None]]:
    """Mean, least and largest over the seeds that reached each epoch."""
    values = [[epoch[key] for epoch in history if epoch.get(key) is not None] for history in histories]
    by_epoch = [[seed[i] for seed in values if len(seed) > i] for i in range(max(map(len, values), default=0))]
    return {
        "mean": rounded(np.mean(found) for found in by_epoch),
        "low": rounded(min(found) for found in by_epoch),
        "high": rounded(max(found) for found in by_epoch),
    }


def reliability(row: Row) -> dict[str, Any]:
    """Confidence and accuracy by bins of confidence, all seeds together: as predicted, and after temperature scaling.
    Scores that were never meant as probabilities appear after scaling only."""
    raw = any("ece" in trial.result["test"] or "temperature" not in trial.result for trial in row.trials)
    return {
        "raw": _bins(row.confidence, row) if raw else None,
        "scaled": _bins(row.calibrated, row) if row.calibrated is not None else None,
    }


def _bins(confidence: np.ndarray, row: Row) -> dict[str, list[float | None]]:
    right = row.predicted == row.labels
    bins = equal_width_bins(confidence).ravel()
    n = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, confidence.ravel(), BINS) / n
        accuracy = np.bincount(bins, right.ravel(), BINS) / n
    return {"confidence": rounded(mean), "accuracy": rounded(accuracy), "n": n.tolist()}


def _stress(row: Row) -> dict[str, Any]:
    """By kind of change: its levels and the accuracy at each, mean and range over seeds. Level 0 is the images as they
    are; a factor of the dataset's own has none."""
    measured = [trial.result for trial in row.trials if trial.result.get("stress")]
    found = {}
    for kind in measured[0]["stress"] if measured else ():
        # Of another revision of the changes there may be other levels, which nothing can be averaged with.
        levels = [point["level"] for point in measured[0]["stress"][kind]]
        results = [r for r in measured if [point["level"] for point in r["stress"].get(kind, ())] == levels]
        curves = [result["stress"][kind] for result in results]
        if not kind.startswith("factor "):
            curves = [
                [{"level": 0, "label": "none", "top1": result["test"]["top1"]}, *curve]
                for result, curve in zip(results, curves, strict=True)
            ]
        values = np.array([[point["top1"] for point in curve] for curve in curves])
        found[kind] = {
            "levels": [point["level"] for point in curves[0]],
            "labels": [point["label"] for point in curves[0]],
            "mean": rounded(values.mean(0)),
            "low": rounded(values.min(0)),
            "high": rounded(values.max(0)),
        }
    return found


def rounded(values: Any) -> list[float | None]:
    return [None if value is None or not np.isfinite(value) else round(float(value), 4) for value in values]
