"""Compute the data of the page's plots, as plain JSON values: learning curves, reliability, stress, sweeps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict

import numpy as np

from flowers_bench.measure.quality import adaptive_bins
from flowers_bench.measure.statistics import share_interval
from flowers_bench.report.aggregate import Row
from flowers_bench.report.measures import COSTS
from flowers_bench.report.names import disambiguate, facts_without
from flowers_bench.report.shots import Family
from flowers_bench.store.records import Epoch

#: A bin of the reliability diagram has about so many test images, and there are no more bins than these.
IN_A_BIN, MOST_BINS = 30, 10
#: A sweep has at least this many values of its factor.
SWEPT = 3
#: Curves of a trial's history, by key: the title, and a function that gives the value at an epoch.
CURVES: dict[str, tuple[str, Callable[[Epoch], float | None]]] = {
    "val_top1": ("validation accuracy", lambda epoch: epoch.val_top1),
    "train_top1_clean": ("training accuracy", lambda epoch: epoch.train_top1_clean),
    "train_loss": ("training loss", lambda epoch: epoch.train_loss),
}
Numbers = list[float | None]


class Band(TypedDict):
    """Mean, smallest and largest value over seeds, for each epoch."""

    mean: Numbers
    low: Numbers
    high: Numbers


class Bins(TypedDict):
    """Mean confidence of each bin, the share that is right with its 95 % interval, and how many predictions it has."""

    confidence: Numbers
    accuracy: Numbers
    low: Numbers
    high: Numbers
    n: list[int]


class Reliability(TypedDict):
    """Reliability as predicted, and after temperature scaling."""

    raw: Bins | None
    scaled: Bins | None


class Stressed(TypedDict):
    """Accuracy at the levels of one kind of change, over seeds."""

    levels: list[int]
    labels: list[str]
    mean: Numbers
    low: Numbers
    high: Numbers


class Series(TypedDict):
    """The data of a row for the plots."""

    id: str
    name: str
    backbone: str
    top1: Numbers
    costs: dict[str, float | None]
    curves: dict[str, Band]
    reliability: Reliability
    stress: dict[str, Stressed]


class Sweep(TypedDict):
    """Rows that differ in one number `x`: low bound, mean and high bound of their accuracy at each `x`."""

    factor: str
    key: str
    x: list[float]
    top1: list[Numbers]
    names: list[str]
    ids: list[str]


class ShotsCurve(TypedDict):
    """Accuracy of one configuration at each number of training images."""

    name: str
    x: list[float]
    top1: list[Numbers]


def series(row: Row) -> Series:
    """Compute the data of a row for the plots."""
    histories = [trial.folder.history() for trial in row.trials]
    return {
        "id": row.id,
        "name": row.name,
        "backbone": row.config.backbone,
        "top1": rounded([row.top1.low, row.top1.value, row.top1.high]),
        "costs": {m.key: None if (value := row.mean(*m.path)) is None else float(f"{value:.6g}") for m in COSTS},
        "curves": {key: curve(histories, value) for key, (_, value) in CURVES.items()},
        "reliability": reliability(row),
        "stress": _stress(row),
    }


def sweeps(rows: Sequence[Row]) -> list[Sweep]:
    """Find rows of one technique that differ in a single number (and in the variant's name), sorted by that number."""
    found: dict[tuple[str | None, str, tuple[tuple[str, str], ...]], list[tuple[float, Row]]] = {}
    for row in {
        (row.config.technique, row.ids): row for row in rows
    }.values():  # each trial once, even if it has several names
        own = {key: value for key, value in row.factors.items() if key not in ("variant", "harness_revision")}
        ordered = tuple(sorted(own.items()))
        places = {key: place for place, (key, _) in enumerate(ordered)}
        for key, value in own.items():
            if not key.startswith("weights.") and (number := finite(value)) is not None:
                rest = ordered[: places[key]] + ordered[places[key] + 1 :]
                found.setdefault((row.config.technique, key, rest), []).append((number, row))
    swept = []
    for (technique, key, _), points in found.items():
        if len({number for number, _ in points}) >= SWEPT:
            points.sort(key=lambda point: point[0])
            swept.append((f"{technique}: {key}", key, points))
    # One number of one technique may be swept several times: on another backbone, with another setting.
    facts = [facts_without(points[0][1].config, key, "variant") for _, key, points in swept]
    titles = disambiguate([title for title, _, _ in swept], facts)
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


def shots_series(family: Family) -> dict[str, list[ShotsCurve]]:
    """Compute the curves of accuracy against training images of each class, one for each configuration."""
    curves: list[ShotsCurve] = [
        {
            "name": curve.name,
            "x": [family.columns[column] for column in curve.points],
            "top1": [rounded([top1.low, top1.value, top1.high]) for top1 in curve.points.values()],
        }
        for curve in family.curves
    ]
    return {"curves": curves}


def finite(text: str) -> float | None:
    """Convert text to a finite number, or to None if it is not one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def curve(histories: Sequence[Sequence[Epoch]], value: Callable[[Epoch], float | None]) -> Band:
    """Compute mean, smallest and largest value at each epoch, over the seeds that reached it."""
    values = [[found for epoch in history if (found := value(epoch)) is not None] for history in histories]
    by_epoch = [[seed[i] for seed in values if len(seed) > i] for i in range(max(map(len, values), default=0))]
    return {
        "mean": rounded(float(np.mean(found)) for found in by_epoch),
        "low": rounded(min(found) for found in by_epoch),
        "high": rounded(max(found) for found in by_epoch),
    }


def reliability(row: Row) -> Reliability:
    """Compute confidence and accuracy by bins of confidence, all seeds together: as predicted, and after scaling.

    Scores that are not probabilities have values after temperature scaling only.
    """
    raw = any(trial.result.test.ece is not None or not trial.result.has("temperature") for trial in row.trials)
    return {
        "raw": _bins(row.confidence, row) if raw else None,
        "scaled": _bins(row.calibrated, row) if row.calibrated is not None else None,
    }


def _bins(confidence: np.ndarray, row: Row) -> Bins:
    """Divide the predictions (S, N) by their confidence into bins of equally many, and see how many of each are right.

    The interval is Wilson's for the different test images of a bin: seeds err on the same images, so that their predictions
    of one image count once.
    """
    right = (row.predicted == row.labels).ravel()
    bins = adaptive_bins(confidence.ravel(), min(MOST_BINS, max(1, len(row.labels) // IN_A_BIN)))
    images = np.broadcast_to(np.arange(len(row.labels)), confidence.shape).ravel()
    found: Bins = {"confidence": [], "accuracy": [], "low": [], "high": [], "n": []}
    for number in np.unique(bins):
        inside = bins == number
        share = float(right[inside].mean())
        low, high = share_interval([share], len(np.unique(images[inside])))
        values = rounded([float(confidence.ravel()[inside].mean()), share, low, high])
        for key, value in zip(("confidence", "accuracy", "low", "high"), values, strict=True):
            found[key].append(value)  # type: ignore[literal-required]
        found["n"].append(int(inside.sum()))
    return found


def _stress(row: Row) -> dict[str, Stressed]:
    """Compute for each kind of change the accuracy at its levels, mean and range over seeds.

    Level 0 are the unchanged images; a factor of the dataset itself has no level 0.
    """
    measured = [(trial.result.test.top1, stress) for trial in row.trials if (stress := trial.result.stress)]
    found: dict[str, Stressed] = {}
    for kind, first in measured[0][1].items() if measured else ():
        # Another revision of the changes may have other levels, which cannot be averaged with these.
        levels = [point.level for point in first]
        curves = [(top1, stress.get(kind, ())) for top1, stress in measured]
        alike = [(top1, points) for top1, points in curves if [point.level for point in points] == levels]
        labels = [point.label for point in first]
        values = np.array([[point.top1 for point in points] for _, points in alike])
        if not kind.startswith("factor "):
            levels, labels = [0, *levels], ["none", *labels]
            values = np.column_stack([[top1 for top1, _ in alike], values])
        found[kind] = {
            "levels": levels,
            "labels": labels,
            "mean": rounded(values.mean(0)),
            "low": rounded(values.min(0)),
            "high": rounded(values.max(0)),
        }
    return found


def rounded(values: Iterable[float | None]) -> Numbers:
    """Round each number to four digits; None for numbers that are not finite."""
    return [None if value is None or not np.isfinite(value) else round(float(value), 4) for value in values]
