"""The plugin contract. A plugin is a module (or a single .py file) with functions named as below, marked `@hookimpl`.

```python
from flowers_bench import Loss, hookimpl


@hookimpl
def register_losses() -> list[Loss]:
    return [Loss("my-loss", "one line for `flowers-bench list`", build=build_my_loss)]
```

A package makes itself known by an entry point in the group `flowers_bench` that names the module. Implementations
may take fewer arguments than a hook offers, and must not give them defaults (pluggy would never pass those).
The `register_*` hooks are called at discovery and must not import torch at the top of their module, so that
`flowers-bench list` stays fast: import it inside the `build` functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pluggy

if TYPE_CHECKING:
    from flowers_bench.contract.dataset import DatasetSource
    from flowers_bench.contract.optimizer import Optimizer, Schedule
    from flowers_bench.contract.pictures import FigureContext
    from flowers_bench.contract.predictor import Predictor
    from flowers_bench.contract.step import Step
    from flowers_bench.contract.technique import Augmentation, Loss, Model, Technique

PROJECT = "flowers_bench"
#: The newest version of the plugin API, which `flowers_bench` documents; a plugin states the one that it was written for as
#: `FLOWERS_BENCH_API = 2`. Version 2 moved the layers of single techniques out of `flowers_bench.nn`.
PLUGIN_API = 2
#: The oldest version that is still accepted. A plugin that states none is taken for version 1.
OLDEST_PLUGIN_API = 1

#: What observers are told: the JSON of one of a trial's files, plain data whatever the plugin's version, hence `Any` inside.
StoredRecord: TypeAlias = Mapping[str, Any]

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def register_models() -> list[Model]:  # type: ignore[empty-body]
    """Offer models, as a list of `flowers_bench.Model` values."""


@hookspec
def register_losses() -> list[Loss]:  # type: ignore[empty-body]
    """Offer losses, as a list of `flowers_bench.Loss` values."""


@hookspec
def register_augmentations() -> list[Augmentation]:  # type: ignore[empty-body]
    """Offer augmentations, as a list of `flowers_bench.Augmentation` values."""


@hookspec
def register_predictors() -> list[Predictor]:  # type: ignore[empty-body]
    """Offer predictors, as a list of `flowers_bench.Predictor` values. Losses and variants name them, as `--predictor` does."""


@hookspec
def register_steps() -> list[Step]:  # type: ignore[empty-body]
    """Offer steps, as a list of `flowers_bench.Step` values. Techniques and variants name them, as `--step` does."""


@hookspec
def register_optimizers() -> list[Optimizer]:  # type: ignore[empty-body]
    """Offer optimisers, as a list of `flowers_bench.Optimizer` values. Recipes name them, as `--set optimizer=NAME` does."""


@hookspec
def register_schedules() -> list[Schedule]:  # type: ignore[empty-body]
    """Offer schedules of the learning rate, as a list of `flowers_bench.Schedule` values. Recipes name them, as
    `--set schedule=NAME` does."""


@hookspec
def register_techniques() -> list[Technique]:  # type: ignore[empty-body]
    """Offer techniques, as a list of `flowers_bench.Technique` values; their parts may be any plugin's."""


@hookspec
def register_datasets() -> list[DatasetSource]:  # type: ignore[empty-body]
    """Offer datasets, as a list of `flowers_bench.DatasetSource` values."""


@hookspec
def trial_started(trial: StoredRecord, run: StoredRecord) -> None:
    """Take note that a trial begins or resumes. `trial` is its `config.json` with `technique` and `variant`,
    `run` its `run.json`: `store` is the run store's path.

    Called in the trial's process, as all observers are. They get copies, and torch's, numpy's and Python's random
    numbers go on as if they had not been there: whatever an observer does or raises, the trial's numbers are the same.

    A plugin that states `FLOWERS_BENCH_TRACKER = "package"` is a tracker, which needs that package: its observers are
    called only where the user asks for it by name, `flowers-bench run --track NAME`.
    """


@hookspec
def epoch_finished(trial: StoredRecord, run: StoredRecord, epoch: StoredRecord) -> None:
    """Take note that an epoch ended. `epoch` is its line of `history.jsonl`: `epoch` from 1, `train_loss`, `val_top1`,
    `seconds`, ..."""


@hookspec
def trial_finished(trial: StoredRecord, run: StoredRecord, result: StoredRecord) -> None:
    """Take note that the trial's result is about to be stored. `result` is its `result.json`."""


@hookspec
def trial_figures(trial: StoredRecord, context: FigureContext, directory: Path) -> None:
    """Draw a technique's own pictures of a finished trial into `directory`, as .png or .svg files.

    Called for every trial of every technique: return at once unless `trial` uses this plugin's part.
    `context` has the trained model, some test images and the class names.
    """
