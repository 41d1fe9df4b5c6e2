"""triplet: each mining against a naive loop, another library as a judge, and what is trained."""

from __future__ import annotations

import math

import pytest
import torch
from built import build
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from flowers_bench import LossContext
from flowers_bench.nn import Output
from flowers_bench_plugins.triplet import MINING, build_triplet_entropy, distances, random_triplet, triplet_loss

CNN = "test_resnet"


def _case(seed: int, images: int = 9, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    points = F.normalize(torch.randn(images, 4, dtype=torch.float64, generator=generator), dim=1)
    return points, torch.randint(classes, (images,), generator=generator)


def _triplets(points: Tensor, labels: Tensor, mining: str) -> list[tuple[float, float]]:
    """(D(a, p), D(a, n)) of each mined triplet, by the sentences of the plugin's documentation."""
    n, label = len(points), labels.tolist()
    d = [[float((points[i] - points[j]).norm()) for j in range(n)] for i in range(n)]
    found = []
    for a in range(n):
        positives = [d[a][p] for p in range(n) if p != a and label[p] == label[a]]
        negatives = [d[a][x] for x in range(n) if label[x] != label[a]]
        if not positives or not negatives:
            continue
        if mining == "batch-hard":
            found.append((max(positives), min(negatives)))
        elif mining == "semi-hard":
            for positive in positives:
                farther = [x for x in negatives if x > positive]
                found.append((positive, min(farther) if farther else max(negatives)))
        else:
            found += [(positive, negative) for positive in positives for negative in negatives]
    return found


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    images=st.integers(1, 10),
    classes=st.integers(1, 4),
    mining=st.sampled_from(["batch-hard", "semi-hard", "all"]),
    margin=st.sampled_from([0.0, 0.2, 1.0]),
    soft=st.booleans(),
)
def test_mined_loss_is_the_loop(seed: int, images: int, classes: int, mining: str, margin: float, soft: bool) -> None:
    points, labels = _case(seed, images, classes)
    losses = [
        math.log1p(math.exp(p - n)) if soft else max(0.0, p - n + margin) for p, n in _triplets(points, labels, mining)
    ]
    counted = [x for x in losses if x > 0] if mining == "all" else losses
    expected = sum(counted) / len(counted) if counted else 0.0
    assert triplet_loss(points, labels, mining, margin, soft).item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("mining", ["batch-hard", "all"])
def test_it_agrees_with_pytorch_metric_learning(mining: str) -> None:
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    points, _ = _case(3, 12)
    labels = torch.arange(12) % 4
    judge = losses.TripletMarginLoss(margin=0.3)
    hard = miners.BatchHardMiner()(points, labels) if mining == "batch-hard" else None
    expected = judge(points, labels, hard).item()
    found = triplet_loss(points, labels, mining, 0.3, soft_margin=False)
    if mining == "batch-hard":  # that library's mean leaves out the triplets that are right already
        share = len([1 for p, n in _triplets(points, labels, mining) if p - n + 0.3 > 0]) / 12
        expected *= share
    assert found.item() == pytest.approx(expected)


def test_random_triplets_are_triplets_and_all_of_them_in_time() -> None:
    points, labels = _case(0, 6, 2)
    d, same = distances(points), labels[:, None] == labels
    allowed = {(round(p, 9), round(n, 9)) for p, n in _triplets(points, labels, "random")}
    seen = set()
    torch.manual_seed(0)
    for _ in range(200):
        positive, negative = random_triplet(d, same)
        seen |= {(round(p, 9), round(n, 9)) for p, n in zip(positive.tolist(), negative.tolist(), strict=True)}
    assert seen == allowed


@pytest.mark.parametrize("mining", list(MINING))
@pytest.mark.parametrize("soft", [False, True])
def test_gradient(mining: str, soft: bool) -> None:
    points, labels = _case(5)

    def loss(x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return triplet_loss(x, labels, mining, 0.2, soft)

    assert torch.autograd.gradcheck(loss, points.requires_grad_())


@pytest.mark.parametrize("mining", list(MINING))
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 1, 2]])
def test_same_images_and_missing_partners_give_finite_gradients(mining: str, labels: list[int]) -> None:
    points = torch.ones(4, 3, requires_grad=True)
    triplet_loss(points, torch.tensor(labels), mining, 0.2, soft_margin=False).backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()


def test_entropy_is_the_sum() -> None:
    points, labels = _case(1)
    logits = torch.randn(9, 3, dtype=torch.float64)
    options = {"mining": "batch-hard", "margin": 0.2, "soft_margin": False, "triplet_weight": 0.5}
    found = build_triplet_entropy(LossContext(3, 4, options))(Output(logits, points), labels)
    triplet = triplet_loss(points, labels, "batch-hard", 0.2, soft_margin=False)
    assert found.item() == pytest.approx(F.cross_entropy(logits, labels).item() + 0.5 * triplet.item())


def test_bfloat16_embeddings_are_compared_in_float32() -> None:
    built = build("triplet", backbone=CNN)
    points = F.normalize(torch.randn(8, 16), dim=1).bfloat16()
    assert built.criterion(Output(points[:, :0], points).widened(), built.labels).dtype == torch.float32


@pytest.mark.parametrize("backbone", [CNN, "test_vit"])
@pytest.mark.parametrize(("options", "dim"), [({}, 128), ({"embedding_dim": 0, "normalize": False}, None)])
def test_the_embedding_has_its_length_and_dimension(backbone: str, options: dict[str, object], dim: int | None) -> None:
    built = build("triplet", backbone=backbone, options=options)
    with torch.inference_mode():
        output = built.model.eval()(built.images)
    assert output.logits.shape == (8, 0)
    assert output.embedding.shape == (8, dim or built.model.backbone.num_features)
    if dim:
        assert output.embedding.norm(dim=1).allclose(torch.ones(8))
