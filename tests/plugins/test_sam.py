"""sam: its step is algorithm 1, written out in float64; and the one-cycle schedule is torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lives import live, planned
from torch import nn

from flowers_bench import Recipe, StepContext
from flowers_bench_plugins.common import one_cycle
from flowers_bench_plugins.sam import build_sam, register_steps


class FlatBatch:
    """A batch for a linear model in float64, whose `update` is one step of plain gradient descent."""

    def __init__(self, weight: nn.Parameter, images: torch.Tensor, targets: torch.Tensor) -> None:
        self.parameters, self._images, self._targets = [weight, nn.Parameter(torch.ones(2))], images, targets

    def loss(self) -> torch.Tensor:
        return F.cross_entropy(self._images @ self.parameters[0], self._targets)

    def backward(self, loss: torch.Tensor) -> None:
        self.parameters[0].grad = None
        loss.backward()

    def update(self) -> None:
        with torch.no_grad():
            self.parameters[0] -= 0.5 * self.parameters[0].grad  # type: ignore[operator]


@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_the_step_is_algorithm_1(rho: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, dtype=torch.float64)
    images, targets = torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
    one_hot = F.one_hot(targets, 3).double()

    def gradient(at: torch.Tensor) -> torch.Tensor:  # of cross-entropy, by hand
        return images.T @ ((images @ at).softmax(1) - one_hot) / 7

    first = gradient(weight)
    expected = weight - 0.5 * gradient(weight + rho * first / first.square().sum().sqrt())
    batch = FlatBatch(nn.Parameter(weight.clone()), images, targets)
    loss = build_sam(StepContext(["a", "b", "c"], 5, 8, {"rho": rho}, nn.Identity()))(batch)  # type: ignore[arg-type]
    torch.testing.assert_close(batch.parameters[0].detach(), expected)
    assert loss.item() == pytest.approx(F.cross_entropy(images @ weight, targets).item())
    assert batch.parameters[1].grad is None
    assert rho == 0 or not torch.allclose(expected, weight - 0.5 * first, rtol=1e-5)


def test_it_trains_any_technique_and_its_twin_does_not_use_it(tmp_path: Path) -> None:
    assert not register_steps()[0].uses_images
    twin = planned(tmp_path, "sam/plain-scratch").trial
    ours = planned(tmp_path, "sam/scratch").trial
    assert (twin.step, ours.step) == ("usual", "sam")
    assert (twin.recipe, twin.model, twin.loss) == (ours.recipe, ours.model, ours.loss)
    folder = live(tmp_path, "transfer/scratch", step="sam", epochs="1", warmup_epochs="0", schedule="onecycle")
    assert folder.config().step == "sam"
    assert set(folder.config().code) == {"toy", "augmentation standard"}


def test_one_cycle_is_torchs() -> None:
    steps = 50
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=steps, pct_start=0.3)
    # Torch turns at step 0.3 * 50 - 1 and ends at step 49; between its turns both are the same curve.
    turn = 0.3 * steps - 1
    for step in range(steps):
        progress = 0.3 * step / turn if step <= turn else 0.3 + 0.7 * (step - turn) / (steps - 1 - turn)
        assert one_cycle(progress, Recipe()) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        scheduler.step()
