"""Finished trials written to a store as a run would leave them, with outcomes that a test chooses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flowers_bench.contract.technique import Recipe
from flowers_bench.measure.quality import quality
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import Label, Protocol, Trial
from flowers_bench.store.reading import SCHEMA_VERSION
from flowers_bench.store.records import Run, StressLevel
from flowers_bench.util.files import write_json

CLASSES = 4
HARDWARE = {
    "processor": "Abacus",
    "cores": 2,
    "threads": 1,
    "cpu_capability": "AVX2",
    "device": "cpu",
    "load_average": [0.1, 0.1, 0.1],
    "system": "Linux",
    "python": "3.11",
    "versions": {"flowers-bench": "0.1.0", "torch": "2.10"},
    "kernel": None,
}


def outcomes(seed: int, accuracy: float, images: int = 400) -> np.ndarray:
    """bool (N,): the same images are hard for everyone."""
    difficulty = np.random.default_rng(0).normal(0, 1, images)
    noise = np.random.default_rng([1, seed]).normal(0, 0.5, images)
    return difficulty + noise < np.quantile(difficulty + noise, accuracy)


def plain_key(split: str, number: int) -> str:
    """Of a split's images."""
    return f"{split}/{number:05}"


def store_trial(
    root: Path,
    label: str,
    seed: int,
    correct: np.ndarray,
    *,
    dataset: Mapping[str, Any] | None = None,
    recipe: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
    run: Mapping[str, Any] | None = None,
    protocol: Protocol = Protocol(),  # noqa: B008 - frozen
    backbone: str = "resnet18",
    weights: Mapping[str, Any] | None = None,
    data_options: Mapping[str, Any] | None = None,
    code: Mapping[str, str] | None = None,
    class_names: tuple[str, ...] = ("rose", "tulip", "daisy", "lily"),
    seconds: float = 60.0,
    probabilities: bool = True,
    predictor: str = "classifier",
    key: Callable[[str, int], str] = plain_key,
) -> TrialFolder:
    """A finished trial `technique/variant` whose test images are right or wrong as `correct` (N,) says."""
    n = len(correct)
    trial = Trial(
        model="classifier",
        loss="cross-entropy",
        augmentation="standard",
        sampler="shuffled",
        predictor=predictor,
        options=dict(options or {}),
        dataset={
            "name": "meadow",
            "classes": CLASSES,
            "n_train": 40,
            "n_val": 20,
            "n_test": n,
            "fingerprint": "f" * 64,
            "split_checksum": "5" * 64,
            "resolution": "64x64",
            "notes": [],
            # Another label, or another dataset's name, shall be another trial here, though names are in no id.
            "options": {"for": f"{label} {(dataset or {}).get('name')}", **(data_options or {})},
            **(dataset or {}),
        },
        data_options=dict(data_options or {}),
        backbone=backbone,
        weights=weights or {"name": "none", "sha256": None},
        recipe=Recipe().changed(**{"epochs": 3, **(recipe or {})}),
        seed=seed,
        code=code or {"common": "flowers-bench 0.1.0"},
        protocol=protocol,
    )
    given = {"data_source": "toy", "data_path": None, "cache_dir": "nowhere", "plugin_files": []}
    baseline = f"{label.partition('/')[0]}/plain"
    about = Run.read({**given, "command": ["--plugin", label], **(run or {})})
    folder = Store(root).prepare(trial, about, [Label.of(label, baseline)])
    changes = {"cost": cost(seconds), "class_names": list(class_names), **(result or {})}
    finish(folder, correct, probabilities=probabilities, key=key, **changes)
    return folder


def finish(
    folder: TrialFolder,
    correct: np.ndarray,
    *,
    probabilities: bool = True,
    key: Callable[[str, int], str] = plain_key,
    **changes: Any,
) -> None:
    """Give a prepared trial the files of a finished one. `changes` replace what its `result.json` would hold."""
    data, seed = folder.config().dataset, folder.config().seed
    labels = np.arange(max(len(correct), data.n_val)) % data.classes
    correct = np.resize(correct, len(labels))
    figures, tables = {}, []
    for split, count in (("val", data.n_val), ("test", data.n_test)):
        logits = _logits(labels[:count], correct[:count], seed, data.classes)
        figures[split] = quality(logits, labels[:count], probabilities=probabilities).json()
        keys = [key(split, i) for i in range(count)]
        tables.append(
            pd.DataFrame(
                {
                    "split": split,
                    "key": keys,
                    "label": labels[:count].astype(np.int32),
                    "prediction": logits.argmax(1).astype(np.int32),
                    "logits": list(logits),
                }
            )
        )
    pd.concat(tables, ignore_index=True).to_parquet(folder.path / "predictions.parquet", index=False)
    train(folder, 3, figures["val"]["top1"])
    write_json(folder.path / "environment.json", HARDWARE)
    write_json(folder.path / "result.json", result_record(folder, **{**figures, **changes}))


def add_stress(folder: TrialFolder, kinds: Sequence[str] = ("blur", "noise"), levels: int = 2) -> None:
    """Measure a finished trial under changes, each of which leaves it fewer images."""
    scores = folder.scores()
    correct, tables, stress = scores.logits.argmax(1) == scores.labels, [], {}
    for kind in kinds:
        for level in range(1, levels + 1):
            left = correct & (np.arange(len(correct)) % 5 >= level)
            columns = {"kind": kind, "level": np.int8(level), "value": np.float32(level), "key": list(scores.keys)}
            tables.append(pd.DataFrame({**columns, "correct": left}))
            top1, value = float(left.mean()), float(level)
            point = StressLevel(level=level, value=value, label=f"{level}", n=len(left), top1=top1, low=0.0, high=1.0)
            stress.setdefault(kind, []).append(point)
    means = {kind: float(np.mean([point.top1 for point in points])) for kind, points in stress.items()}
    folder.add_stress(pd.concat(tables, ignore_index=True), stress, means)


def train(folder: TrialFolder, epochs: int, top1: float = 0.5) -> None:
    """Give a prepared trial the history of so many epochs."""
    history = [_epoch(epoch, top1) for epoch in range(1, epochs + 1)]
    (folder.path / "history.jsonl").write_text("".join(json.dumps(record) + "\n" for record in history))


def result_record(folder: TrialFolder, **changes: Any) -> dict[str, Any]:
    """What `result.json` of a finished trial holds."""
    config = folder.config()
    return {
        "schema_version": SCHEMA_VERSION,
        "id": folder.id,
        "seed": config.seed,
        "best_epoch": 3,
        "stopped_early": False,
        "val": {"n": config.dataset.n_val, "top1": 0.5},
        "test": {"n": config.dataset.n_test, "top1": 0.5},
        "cost": cost(60.0),
        "weights_report": None,
        "class_names": [f"class {index}" for index in range(config.dataset.classes)],
        "hardware": HARDWARE,
        **changes,
    }


def _logits(labels: np.ndarray, correct: np.ndarray, seed: int, classes: int) -> np.ndarray:
    rng = np.random.default_rng([2, seed])
    logits = rng.normal(0, 0.5, (len(labels), classes)).astype(np.float32)
    chosen = np.where(correct, labels, (labels + 1 + rng.integers(0, 2, len(labels))) % classes)
    logits[np.arange(len(labels)), chosen] += 4
    return logits


def _epoch(epoch: int, top1: float) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": 2.0 / epoch,
        "train_top1_clean": min(1.0, top1 * epoch / 2),
        "val_top1": min(1.0, top1 * epoch / 3),
        "val_nll": 2.0 / epoch,
        "train_seconds": 15.0,
        "seconds": 20.0,
        "images": 40,
    }


def cost(seconds: float) -> dict[str, Any]:
    """What a trial of so many seconds cost."""
    return {
        "parameters": 11_000_000,
        "trainable_parameters": 2_000_000,
        "trained_bytes": 8_000_000,
        "epochs": 3,
        "train_seconds": 0.8 * seconds,
        "data_wait_share": 0.0123,
        "seconds": seconds,
        "seconds_to_best": seconds,
        "train_images_per_second": 120 / (0.8 * seconds),
        "peak_rss_bytes": 1 << 30,
        "setup_seconds": 1.0,
        "test_seconds": 1.0,
    }
