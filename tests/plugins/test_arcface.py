"""arcface: logits and loss are pytorch-metric-learning's and the paper's, written out."""

from __future__ import annotations

import math

import pytest
import torch
from built import CLASSES, build
from pytorch_metric_learning.losses import ArcFaceLoss, SubCenterArcFaceLoss
from torch import Tensor

from flowers_bench_plugins.arcface.layers import SubCenters
from flowers_bench_plugins.arcface.loss import arcface

N, DIM, C, SCALE = 9, 6, 5, 20.0


def case(centers: int) -> tuple[SubCenters, Tensor, Tensor]:
    torch.manual_seed(centers)
    layer = SubCenters(DIM, C, centers, SCALE).double()
    return layer, torch.randn(N, DIM, dtype=torch.float64, requires_grad=True), torch.arange(N) % C


@pytest.mark.parametrize("centers", [1, 3])
@pytest.mark.parametrize("margin", [0.0, 0.2, 0.5, 1.5])
def test_it_is_pytorch_metric_learnings(centers: int, margin: float) -> None:
    layer, x, labels = case(centers)
    kind = SubCenterArcFaceLoss if centers > 1 else ArcFaceLoss
    more = {"sub_centers": centers} if centers > 1 else {}
    peer = kind(num_classes=C, embedding_size=DIM, margin=math.degrees(margin), scale=SCALE, **more).double()
    # Its columns are the centres, those of a class beside each other.
    peer.W.data = layer.weight.detach().flatten(0, 1).T.clone()
    expected = peer(x, labels)
    found = arcface(layer(x), labels, SCALE, margin)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    (slope,) = torch.autograd.grad(found, x)
    (peers,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(slope, peers, rtol=1e-4, atol=1e-6)


def test_it_is_the_papers_equation() -> None:
    layer, x, labels = case(3)
    x = x.detach()
    layer.requires_grad_(False)
    total = 0.0
    for i in range(N):
        cosines = [max(float(torch.cosine_similarity(x[i], w, dim=0)) for w in layer.weight[c]) for c in range(C)]
        angle = math.acos(cosines[labels[i]]) + 0.2
        z = [SCALE * (math.cos(angle) if c == labels[i] else cosines[c]) for c in range(C)]
        total += math.log(sum(math.exp(v) for v in z)) - z[labels[i]]
    assert float(arcface(layer(x), labels, SCALE, 0.2)) == pytest.approx(total / N, rel=1e-9)


def test_without_a_margin_it_is_cross_entropy() -> None:
    layer, x, labels = case(2)
    logits = layer(x)
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(arcface(logits, labels, SCALE, 0.0), expected)


@pytest.mark.parametrize("cosine", [1.0, -1.0])
def test_the_slope_is_finite_where_an_image_is_its_centre(cosine: float) -> None:
    logits = torch.tensor([[SCALE * cosine, 0.0]], requires_grad=True)
    arcface(logits, torch.tensor([0]), SCALE, 0.3).backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


@pytest.mark.parametrize(("variant", "centers"), [("sub-centers", 2), ("one-center", 1), ("no-margin", 1)])
def test_a_class_has_so_many_centres(variant: str, centers: int) -> None:
    built = build("arcface", variant, "test_resnet")
    assert built.model.backbone.fc.weight.shape == (CLASSES, centers, 96)
    losses = built.train(15)
    assert losses[-1] < losses[0] / 2
