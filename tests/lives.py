"""Whole trials of built-in techniques, in this process, for tests."""

from __future__ import annotations

from pathlib import Path

import torch

from flowers_bench.host import discover
from flowers_bench.store import Store, TrialFolder
from flowers_bench.suite import Planned, Request, plan
from flowers_bench.training.trial import run_trial

TOY = Path(__file__).parent / "toy.py"


def planned(
    tmp_path: Path,
    name: str,
    data: str = "toy",
    loss: str | None = None,
    augmentation: str | None = None,
    backbone: str = "test_resnet",
    **settings: str,
) -> Planned:
    """One trial of `technique/variant`, with a tiny backbone from scratch."""
    request = Request(
        [name],
        data,
        tmp_path / "cache",
        seeds=1,
        backbone=backbone,
        weights="none",
        loss=loss,
        augmentation=augmentation,
        settings={"image_size": "16", **settings},
    )
    (item,) = plan(discover([TOY]), request, [TOY])
    return item


def live(tmp_path: Path, name: str, data: str = "toy", store: str = "runs", **settings: str) -> TrialFolder:
    """The same, run from beginning to end."""
    item = planned(tmp_path, name, data, **settings)
    folder = Store(tmp_path / store).prepare(item.trial, {**item.run, "threads": 1, "command": []})
    run_trial(folder, lambda event: None)
    torch.use_deterministic_algorithms(False)
    return folder
