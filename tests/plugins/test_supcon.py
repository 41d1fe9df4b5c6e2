"""supcon: the loss is pytorch-metric-learning's and the paper's, written out; its projection is trained and not kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from built import build
from lives import live
from pytorch_metric_learning.losses import CrossBatchMemory, SupConLoss
from safetensors.torch import load_file
from torch import Tensor

from flowers_bench.nn import Output
from flowers_bench_plugins.supcon.loss import WithMemory, supcon


def case(labels: list[int]) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(len(labels), 6, dtype=torch.float64, requires_grad=True), torch.tensor(labels)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 0, 2, 2, 0, 0]])
def test_it_is_pytorch_metric_learnings(labels: list[int], temperature: float) -> None:
    x, target = case(labels)
    found, expected = supcon(F.normalize(x, dim=1), target, temperature), SupConLoss(temperature)(x, target)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    (slope,) = torch.autograd.grad(found, x)
    (peers,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(slope, peers)


def test_it_is_the_papers_equation() -> None:
    x, target = case([0, 1, 1, 1, 0, 2])
    z = F.normalize(x.detach(), dim=1)
    total, counted = 0.0, 0
    for i in range(6):
        others = [a for a in range(6) if a != i]
        positives = [p for p in others if target[p] == target[i]]
        if not positives:
            continue  # the only one of class 2
        below = sum(math.exp(float(z[i] @ z[a]) / 0.1) for a in others)
        total -= sum(float(z[i] @ z[p]) / 0.1 - math.log(below) for p in positives) / len(positives)
        counted += 1
    assert counted == 5
    assert float(supcon(z, target, 0.1)) == pytest.approx(total / 5, rel=1e-9)


def test_with_a_memory_it_is_pytorch_metric_learnings() -> None:
    """Whose memory of M has the batch itself, so that M - N past images are left."""
    torch.manual_seed(0)
    past, batch = 9, 6
    ours = WithMemory(5, 4, 0.1, past).double()
    theirs = CrossBatchMemory(SupConLoss(0.1), 4, memory_size=past + batch)
    for _ in range(5):
        embedding, target = torch.randn(batch, 5, dtype=torch.float64), torch.randint(0, 3, (batch,))
        z = ours.projected(Output(embedding, embedding))
        expected = theirs(z, target)  # the value alone: it takes the batch's own images for past ones
        found = ours(Output(embedding, embedding), target)
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_with_a_memory_slopes_are_those_of_differences() -> None:
    x, target = case([0, 0, 1, 2])
    memory, labels = torch.randn(5, 6, dtype=torch.float64), torch.tensor([1, 0, -1, 2, -1])
    assert torch.autograd.gradcheck(lambda z: supcon(z, target, 0.5, memory, labels), (x,))
    without = labels != -1  # what is not there has no part
    expected = supcon(x, target, 0.5, memory[without], labels[without])
    assert supcon(x, target, 0.5, memory, labels).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("memory", [2, 5, 6, 100])
def test_the_memory_has_the_last_images(memory: int) -> None:
    torch.manual_seed(0)
    loss = WithMemory(5, 4, 0.1, memory).double()
    seen: list[tuple[list[float], int]] = []
    for _ in range(4):
        output, target = Output(torch.empty(6, 0), torch.randn(6, 5, dtype=torch.float64)), torch.randint(0, 3, (6,))
        loss(output, target).backward()
        z = loss.projected(output).tolist()
        seen += list(zip(z, target.tolist(), strict=True))
        filled = loss.kept_labels >= 0
        kept = list(zip(loss.kept[filled].tolist(), loss.kept_labels[filled].tolist(), strict=True))
        assert sorted(kept) == sorted(seen[-memory:])


def test_without_any_positive_it_is_zero_with_a_finite_slope() -> None:
    z, target = case([0, 1, 2])
    loss = supcon(z, target, 0.1)
    loss.backward()
    assert float(loss) == 0
    assert z.grad is not None
    assert bool(z.grad.isfinite().all())


def test_it_falls_and_the_projection_is_trained() -> None:
    built = build("supcon", backbone="test_resnet")
    before = [parameter.clone() for parameter in built.criterion.parameters()]
    losses = built.train(15)
    assert losses[-1] < losses[0] - 0.5
    assert all(not torch.equal(one, other) for one, other in zip(built.criterion.parameters(), before, strict=True))


def test_a_trial_keeps_the_network_alone_and_predicts_by_a_linear_classifier(tmp_path: Path) -> None:
    folder = live(tmp_path, "supcon/logistic", epochs="3", batch_size="16", warmup_epochs="1", lr="3e-3")
    assert folder.config().predictor == "logistic"
    assert not any("projection" in name for name in load_file(folder.weights()))
    assert folder.result().test.top1 > 0.5  # chance is 0.25
