"""TensorBoard follows the trials: `flowers-bench --plugin ... --track tensorboard`, then `tensorboard --logdir runs/tensorboard`.

A tag is a metric's name in `history.jsonl` (`epoch/...`, by epoch) or `result.json` (`result/...`, at the chosen epoch),
in double precision. Needs the extra `tensorboard`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench import StoredRecord, file_name, hookimpl, metrics_of

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLOWERS_BENCH_TRACKER = "tensorboard"


# Hooks get plain JSON values: see flowers_bench.hookspecs.
def directory(trial: StoredRecord, run: StoredRecord) -> Path:
    """Name the folder of a trial's event files: after what the trial is, for TensorBoard's list, and its id."""
    name = f"{trial['technique']}-{trial['variant']}-{trial['dataset']['name']}-seed{trial['seed']}-{trial['id']}"
    return Path(str(run["store"])) / "tensorboard" / file_name(name)


def _writer(trial: StoredRecord, run: StoredRecord) -> SummaryWriter:
    # Each call has a writer and closes it: a killed trial has lost nothing, and there is no state to keep.
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(directory(trial, run)))


def _add(writer: SummaryWriter, prefix: str, values: Mapping[str, object], step: int) -> None:
    for name, value in metrics_of(values).items():
        tag = f"{prefix}/{name.replace('.', '/')}"
        writer.add_scalar(tag, value, step, new_style=True, double_precision=True)


@hookimpl
def trial_started(trial: StoredRecord, run: StoredRecord) -> None:
    import json

    with _writer(trial, run) as writer:
        writer.add_text("config", f"```json\n{json.dumps(trial, indent=1)}\n```")


@hookimpl
def epoch_finished(trial: StoredRecord, run: StoredRecord, epoch: StoredRecord) -> None:
    with _writer(trial, run) as writer:
        _add(writer, "epoch", {key: value for key, value in epoch.items() if key != "epoch"}, epoch["epoch"])


@hookimpl
def trial_finished(trial: StoredRecord, run: StoredRecord, result: StoredRecord) -> None:
    with _writer(trial, run) as writer:
        _add(writer, "result", {key: result[key] for key in ("val", "test", "cost")}, result["best_epoch"])
