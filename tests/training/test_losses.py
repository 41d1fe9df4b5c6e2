"""Losses: each is checked, on a GPU a step late, and nothing is written after one that is not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lives import ignore, planned, training_of
from torch import Tensor

from flowers_bench.nn import Output
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.loop import Training
from flowers_bench.training.losses import At, Losses
from flowers_bench.util.errors import TrialFailed

NAN = torch.tensor(float("nan"))


def fine(value: float = 1.0) -> Tensor:
    return torch.tensor(value)


def test_a_loss_is_read_at_once_or_at_the_next_step() -> None:
    with pytest.raises(TrialFailed, match=r"the loss is nan at epoch 2, step 1 of 3.*--set lr="):
        Losses(late=False).note(NAN, At(2, 0, 3))
    late = Losses(late=True)
    late.note(fine(), At(2, 0, 3))
    late.note(NAN, At(2, 0, 3))
    late.note(fine(), At(2, 0, 3))
    with pytest.raises(TrialFailed, match=r"the loss is nan at epoch 2, step 1 of 3.*--set lr="):
        late.note(fine(), At(2, 1, 3))


@pytest.mark.parametrize("reported", [True, False])
def test_the_last_loss_of_an_epoch_is_read_before_its_mean_is_told(reported: bool) -> None:
    late = Losses(late=True)
    late.report(late.note(fine(), At(1, 1, 3)), 4)
    last = late.note(NAN, At(1, 2, 3))
    if reported:
        late.report(last, 4)
    with pytest.raises(TrialFailed, match=r"step 3 of 3"):
        late.mean()


@pytest.mark.parametrize("late", [True, False])
def test_the_mean_is_over_images_and_begins_anew(late: bool) -> None:
    losses = Losses(late=late)
    for epoch in (1, 2):
        for step, (value, images) in enumerate([(1.5, 4), (0.25, 4), (epoch, 2)]):
            losses.note(fine(100.0), At(epoch, step, 3))  # not reported
            losses.report(losses.note(fine(value), At(epoch, step, 3)), images)
        assert losses.mean() == (1.5 * 4 + 0.25 * 4 + epoch * 2) / 10


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    item = planned(tmp_path, "toy/plain")
    return Store(tmp_path / "runs").prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)


def late_training(folder: TrialFolder, at: int | None = None) -> Training:
    """A training that reads its losses late, as on a GPU, and whose `at`-th loss is not finite, from 1."""
    training, calls = training_of(folder), [0]
    criterion = training.parts.criterion

    def explodes(output: Output, target: Tensor) -> Tensor:
        calls[0] += 1
        loss = criterion(output, target)
        return loss * float("inf") if calls[0] == at else loss

    object.__setattr__(training._trained, "criterion", explodes)
    object.__setattr__(training._trained, "losses", Losses(late=True))
    return training


@pytest.mark.parametrize("step", [1, 2, 3])
def test_nothing_is_written_after_a_loss_that_is_not_finite(folder: TrialFolder, step: int) -> None:
    """Three steps an epoch: of the second epoch nothing may be left, though its weights were updated."""
    with pytest.raises(TrialFailed, match=rf"the loss is inf at epoch 2, step {step} of 3"):
        late_training(folder, at=3 + step).run(ignore)
    kept = torch.load(folder.checkpoint_path, weights_only=True)
    assert len(kept["history"]) == 1
    assert all(value.isfinite().all() for value in kept["model"].values())
    continued = late_training(folder)
    continued.run(ignore)
    assert [record.epoch for record in continued.history] == [1, 2, 3, 4]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noting_a_loss_does_not_wait_for_the_gpu() -> None:
    losses, loss = Losses(late=True), torch.ones((), device="cuda") * 2
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(3):
            losses.report(losses.note(loss, At(1, step, 3)), 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.mean() == 2
