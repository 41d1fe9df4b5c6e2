"""The leaderboard: finished trials grouped into comparable protocols, one row per configuration, with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from flowers_bench.environment import describe_hardware
from flowers_bench.measure.quality import correct_in_top_k, mean_per_class
from flowers_bench.statistics import Interval, accuracy_interval, paired_difference
from flowers_bench.store import TrialFolder


@dataclass(frozen=True)
class Row:
    """One configuration over its seeds.

    Attributes:
        name: `technique/variant`, with the replaced parts and options that tell it from its neighbours.
        seeds: which.
        top1: test accuracy with its interval.
        correct: bool (S, N), in the order of `seeds` and of the image keys.
        config, results: of its trials.
        baseline: the variant that it is to be compared with.
    """

    name: str
    seeds: tuple[int, ...]
    top1: Interval
    correct: np.ndarray
    keys: tuple[str, ...]
    config: dict[str, Any]
    results: tuple[dict[str, Any], ...]
    mean_per_class: float
    baseline: str | None

    def mean(self, *path: str) -> float | None:
        """Mean over seeds of a number in `result.json`, or None where it was not measured."""
        values = [_at(result, path) for result in self.results]
        numbers = [value for value in values if value is not None]
        return float(np.mean(numbers)) if numbers else None


def _at(value: Any, path: Sequence[str]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


@dataclass(frozen=True)
class Difference:
    """A row against the group's baseline, on the seeds that both have."""

    row: str
    baseline: str
    interval: Interval


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: same dataset, same images, same split, same protocol."""

    title: str
    notes: tuple[str, ...]
    hardware: tuple[str, ...]
    rows: tuple[Row, ...]
    differences: tuple[Difference, ...]


@dataclass(frozen=True)
class Leaderboard:
    """Groups of comparable rows."""

    groups: tuple[Group, ...]

    @classmethod
    def of(cls, folders: Sequence[TrialFolder]) -> Leaderboard:
        """From finished trials."""
        loaded = [(folder, folder.config(), folder.result()) for folder in folders]
        groups: dict[str, list[tuple[TrialFolder, dict[str, Any], dict[str, Any]]]] = {}
        for item in loaded:
            groups.setdefault(_protocol_key(item[1]), []).append(item)
        return cls(tuple(_group(items) for _, items in sorted(groups.items())))


def _protocol_key(config: dict[str, Any]) -> str:
    data = config["dataset"]
    # The split and not the pixels' stored size: 64 px and 128 px input of the same photographs are comparable.
    return json.dumps(
        [data["name"], data["split_checksum"], data["n_test"], config["protocol"], config["data_options"]],
        sort_keys=True,
    )


def _row_key(config: dict[str, Any]) -> str:
    return json.dumps({k: v for k, v in config.items() if k not in ("seed", "id", "code")}, sort_keys=True)


def _group(items: Sequence[tuple[TrialFolder, dict[str, Any], dict[str, Any]]]) -> Group:
    by_row: dict[str, list[tuple[TrialFolder, dict[str, Any], dict[str, Any]]]] = {}
    for item in items:
        by_row.setdefault(_row_key(item[1]), []).append(item)
    names = _distinct_names([rows[0][1] for rows in by_row.values()])
    rows = sorted(
        (_row(name, trials) for name, trials in zip(names, by_row.values(), strict=True)),
        key=lambda r: -r.top1.value,
    )
    data = items[0][1]["dataset"]
    title = (
        f"{data['name']}: {data['classes']} classes, {data['n_train']} train / {data['n_val']} val / {data['n_test']} test, "
        f"{data['resolution']}, split {data['split_checksum'][:8]}"
    )
    hardware = {
        f"{describe_hardware(result['hardware'])}, kernel {result['hardware']['kernel'] or 'not used'}"
        for _, _, result in items
    }
    return Group(title, tuple(data["notes"]), tuple(sorted(hardware)), tuple(rows), _differences(rows))


def _distinct_names(configs: Sequence[dict[str, Any]]) -> list[str]:
    """`technique/variant`, followed by whatever differs between rows of the same name."""
    names = []
    for config in configs:
        label = f"{config['technique']}/{config['variant']}"
        twins = [c for c in configs if (c["technique"], c["variant"]) == (config["technique"], config["variant"])]
        flat = [_flat(c) for c in twins]
        own = _flat(config)
        differing = sorted(key for key in own if len({json.dumps(f.get(key)) for f in flat}) > 1 and key not in _SHOWN)
        names.append(label + "".join(f" {key}={own[key]}" for key in differing))
    return names


#: Has its own column.
_SHOWN = {"backbone", "weights.name"}
#: Follows from something that is shown.
_DERIVED = ("seed", "id", "code", "dataset", "weights.sha256", "schema_version", "harness_revision")


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict):
            found.update({(k if key in ("recipe", "options") else f"{key}.{k}"): v for k, v in value.items()})
        else:
            found[key] = value
    return {k: v for k, v in found.items() if not k.startswith(_DERIVED)}


def _row(name: str, trials: Sequence[tuple[TrialFolder, dict[str, Any], dict[str, Any]]]) -> Row:
    trials = sorted(trials, key=lambda item: item[1]["seed"])
    tables = [_test_predictions(folder) for folder, _, _ in trials]
    keys, labels = tuple(tables[0]["key"]), tables[0]["label"].to_numpy()
    logits = [np.stack(list(table["logits"])) for table in tables]
    correct = np.stack([correct_in_top_k(scores, labels) for scores in logits])
    return Row(
        name=name,
        seeds=tuple(config["seed"] for _, config, _ in trials),
        top1=accuracy_interval(correct),
        correct=correct,
        keys=keys,
        config=trials[0][1],
        results=tuple(result for _, _, result in trials),
        mean_per_class=float(np.mean([mean_per_class(hits, labels) for hits in correct])),
        baseline=trials[0][0].run().get("baseline"),
    )


def _test_predictions(folder: TrialFolder) -> pd.DataFrame:
    table = folder.predictions()
    return table[table["split"] == "test"].sort_values("key", kind="stable").reset_index(drop=True)


def _differences(rows: Sequence[Row]) -> tuple[Difference, ...]:
    """Each row against the row of its baseline variant, where the group has it; paired by seed and image."""
    found = []
    for row in rows:
        for other in rows:
            if other is not row and _is_baseline(other, row) and other.keys == row.keys:
                shared = sorted(set(row.seeds) & set(other.seeds))
                if shared:
                    first = row.correct[[row.seeds.index(seed) for seed in shared]]
                    second = other.correct[[other.seeds.index(seed) for seed in shared]]
                    found.append(Difference(row.name, other.name, paired_difference(first, second)))
    return tuple(found)


def _is_baseline(other: Row, row: Row) -> bool:
    same = ("technique", "backbone", "weights")
    return all(other.config[k] == row.config[k] for k in same) and other.config["variant"] == row.baseline
