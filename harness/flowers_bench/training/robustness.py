"""Measures a finished trial on changed test images: nothing is trained, and nothing is chosen by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.measure.quality import correct_in_top_k
from flowers_bench.measure.robustness import CHANGES, Condition, conditions
from flowers_bench.measure.statistics import accuracy_interval
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.records import StressLevel
from flowers_bench.training.events import Emit, UnderStress
from flowers_bench.training.process import Interrupted, interrupt_flag, prepare_process
from flowers_bench.training.trained import Sources, Trained


def stress_trial(folder: TrialFolder, emit: Emit) -> None:
    """Predict the changed test images with the checkpoint that validation chose; write `stress.parquet`, then the
    summary into `result.json`.

    Raises:
        Interrupted: stopped by SIGINT; nothing is written, the next run starts this measurement again.
        UsageError: data or plugins are not what the trial saw, or the trial is not finished.
    """
    run = folder.run()
    device = prepare_process(run.threads, device=run.device)
    stop_requested = interrupt_flag()
    files = list(map(Path, run.plugin_files or ()))
    dataset = load_dataset(discover(files), folder.trial(), DataPlace.of(run))
    trained = Trained.load(folder, device, Sources(files), dataset)
    wanted = list(conditions(dataset))
    tables: list[pd.DataFrame] = []
    levels: dict[str, list[StressLevel]] = {}
    for done, condition in enumerate(wanted):
        if stop_requested():
            raise Interrupted
        emit(UnderStress(condition.kind, done, len(wanted)))
        with torch.random.fork_rng():
            logits = trained.fitted(condition.split.images).logits
        correct = correct_in_top_k(logits, np.asarray(condition.split.labels))
        tables.append(_table(condition, correct))
        levels.setdefault(condition.kind, []).append(_level(condition, correct))
    means = {kind: float(np.mean([level.top1 for level in levels[kind]])) for kind in CHANGES}
    folder.add_stress(pd.concat(tables, ignore_index=True), levels, means)


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


def _level(condition: Condition, correct: np.ndarray) -> StressLevel:
    found = accuracy_interval(correct[None])
    return StressLevel(
        level=condition.level,
        value=condition.value,
        label=condition.label,
        n=found.n_images,
        top1=found.value,
        low=found.low,
        high=found.high,
    )
