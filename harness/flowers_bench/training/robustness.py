"""A finished trial once more, on test images that are changed: nothing is trained, and nothing is chosen by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import load_dataset
from flowers_bench.measure.quality import correct_in_top_k
from flowers_bench.measure.robustness import CHANGES, Condition, conditions
from flowers_bench.measure.statistics import accuracy_interval
from flowers_bench.store.folder import STRESS_REVISION, TrialFolder
from flowers_bench.store.identity import trial_from_config
from flowers_bench.training.process import Emit, Interrupted, interrupt_flag, prepare_process
from flowers_bench.training.trained import Sources, Trained
from flowers_bench.util.files import write_atomically, write_json


def stress_trial(folder: TrialFolder, emit: Emit) -> None:
    """Predict the changed test images by the checkpoint that validation chose; writes `stress.parquet`, then the
    summary into `result.json`.

    Raises:
        Interrupted: stopped by SIGINT; nothing is written, the next run starts this measurement again.
        UsageError: data or plugins are not what the trial saw, or the trial is not finished.
    """
    run = folder.run()
    device = prepare_process(run)
    stop_requested = interrupt_flag()
    files = [Path(path) for path in run["plugin_files"]]
    dataset = load_dataset(discover(files), trial_from_config(folder.config()), run)
    trained = Trained.load(folder, device, Sources(files), dataset)
    asked = list(conditions(dataset))
    tables: list[pd.DataFrame] = []
    summary: dict[str, list[dict[str, Any]]] = {}
    for done, condition in enumerate(asked):
        if stop_requested():
            raise Interrupted
        emit({"event": "stress", "kind": condition.kind, "done": done, "of": len(asked)})
        with torch.random.fork_rng():
            logits = trained.fitted(condition.split.images).logits
        correct = correct_in_top_k(logits, np.asarray(condition.split.labels))
        tables.append(_table(condition, correct))
        summary.setdefault(condition.kind, []).append(_point(condition, correct))
    table = pd.concat(tables, ignore_index=True)
    write_atomically(folder.path / "stress.parquet", lambda path: table.to_parquet(path, index=False))
    means = {kind: float(np.mean([point["top1"] for point in summary[kind]])) for kind in CHANGES}
    figures = {"stress_revision": STRESS_REVISION, "stress": summary, "robustness": means}
    write_json(folder.path / "result.json", {**folder.result(), **figures})
    (folder.path / "failure.json").unlink(missing_ok=True)


def _table(condition: Condition, correct: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": condition.kind,
            "level": np.int8(condition.level),
            "value": np.float32(condition.value),
            "key": list(condition.split.keys),
            "correct": correct,
        }
    )


def _point(condition: Condition, correct: np.ndarray) -> dict[str, Any]:
    found = accuracy_interval(correct[None])
    return {
        "level": condition.level,
        "value": condition.value,
        "label": condition.label,
        "n": found.n_images,
        "top1": found.value,
        "low": found.low,
        "high": found.high,
    }
