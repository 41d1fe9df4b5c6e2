"""Whole trials of built-in techniques, in this process, for tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request, TrialPlan
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.build import Places, build_parts
from flowers_bench.training.events import Emit
from flowers_bench.training.loop import Training
from flowers_bench.training.trial import run_trial

TOY = Path(__file__).parent / "toy.py"


def planned(
    tmp_path: Path,
    name: str,
    data: str = "toy",
    loss: str | None = None,
    augmentation: str | None = None,
    step: str | None = None,
    backbone: str = "test_resnet",
    weights: str = "none",
    shots: int | None = None,
    files: Sequence[Path] = (),
    store: Path | None = None,
    **settings: str,
) -> TrialPlan:
    """One trial of `technique/variant`, with a tiny backbone, from scratch unless there are weights; `files` are plugins
    beside the toy."""
    request = Request(
        [name],
        data,
        tmp_path / "cache",
        seeds=1,
        backbone=backbone,
        weights=weights,
        loss=loss,
        augmentation=augmentation,
        step=step,
        settings={"image_size": "16", **settings},
        shots=shots,
        store=store,
    )
    plugins = [TOY, *files]
    (item,) = plan(discover(plugins), request, plugins)
    return item


def live(
    tmp_path: Path,
    name: str,
    data: str = "toy",
    store: str = "runs",
    run: Mapping[str, Any] | None = None,
    emit: Emit = lambda event: None,
    **asked: Any,
) -> TrialFolder:
    """The same, run from beginning to end; `run` is added to its `run.json`."""
    item = planned(tmp_path, name, data, store=tmp_path / store, **asked)
    folder = Store(tmp_path / store).prepare(
        item.trial, replace(item.run, **{"threads": 1, "command": [], **(run or {})}), item.labels
    )
    run_trial(folder, emit)
    torch.use_deterministic_algorithms(False)
    return folder


def ignore(*event: object) -> None:
    """Nobody listens."""


def training_of(
    folder: TrialFolder, stop_requested: Callable[[], bool] = lambda: False, device: str = "cpu"
) -> Training:
    """The training of a prepared trial of the toy plugin."""
    trial, run, host = folder.trial(), folder.run(), discover([TOY])
    dataset = load_dataset(host, trial, DataPlace.of(run))
    parts, _ = build_parts(host, trial, Places.of(run), dataset.class_names, torch.device(device))
    return Training(
        trial, parts, dataset.train, dataset.val, folder, ignore, stop_requested, unlabelled=dataset.unlabelled
    )


def run_once_interrupted(folder: TrialFolder) -> None:
    """One epoch of the trial, then the stop that Ctrl-C asks for."""
    torch.set_num_threads(1)
    training_of(folder, stop_requested=lambda: True).run(ignore)
