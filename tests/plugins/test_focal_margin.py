"""focal-margin: each loss against its sums written out, the cosine head, and what is trained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from built import build, host, planned
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowers_bench import LossContext, UsageError
from flowers_bench.nn import Output
from flowers_bench.training.optimizer import build_optimizer
from flowers_bench_plugins.focal_margin import build_focal, build_focal_margin, build_hybrid_focal_margin
from flowers_bench_plugins.focal_margin.layers import CosineLinear
from flowers_bench_plugins.focal_margin.loss import focal, focal_tversky

GAMMAS = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])


def _case(seed: int, classes: int, spread: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(6, classes, dtype=torch.float64, generator=generator)
    return logits, torch.randint(classes, (6,), generator=generator)


def _focal_by_hand(logits: Tensor, target: Tensor, gamma: float) -> float:
    total = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        p = math.exp(row[label]) / sum(math.exp(z) for z in row)
        total -= (1 - p) ** gamma * math.log(p)
    return total / len(logits)


def _focal_margin_by_hand(logits: Tensor, target: Tensor, gamma: float, margin: float) -> float:
    """Chen 2023, equation 12: the factor from the plain prediction, the logarithm from the one with a margin."""
    total = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        plain = math.exp(row[label]) / sum(math.exp(z) for z in row)
        shifted = [z - margin if c == label else z for c, z in enumerate(row)]
        total -= (1 - plain) ** gamma * math.log(math.exp(shifted[label]) / sum(math.exp(z) for z in shifted))
    return total / len(logits)


def _tversky_by_hand(logits: Tensor, target: Tensor) -> float:
    probabilities = logits.softmax(1).tolist()
    total, classes = 0.0, logits.shape[1]
    for c in range(classes):
        hit = missed = wrong = 0.0
        for p, label in zip(probabilities, target.tolist(), strict=True):
            if label == c:
                hit, missed = hit + p[c], missed + 1 - p[c]
            else:
                wrong += p[c]
        total += (1 - (hit + 1) / (hit + 0.7 * missed + 0.3 * wrong + 1)) ** 0.75
    return total / classes


def _context(**options: float) -> LossContext:
    return LossContext(5, 8, options)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 7), gamma=GAMMAS)
def test_focal_is_its_sum(seed: int, classes: int, gamma: float) -> None:
    logits, target = _case(seed, classes)
    found = build_focal(_context(gamma=gamma))(Output(logits, logits), target)
    assert found.item() == pytest.approx(_focal_by_hand(logits, target, gamma))
    soft = F.one_hot(target, classes).double()
    assert focal(logits, soft, gamma).item() == pytest.approx(found.item())


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), gamma=GAMMAS, margin=st.floats(0, 1), scale=st.floats(0.5, 5))
def test_focal_margin_is_focal_of_cosines_with_the_true_one_shifted(
    seed: int, gamma: float, margin: float, scale: float
) -> None:
    vectors, target = _case(seed, 5)
    head = CosineLinear(5, 5, scale).double()
    shifted = torch.empty(6, 5, dtype=torch.float64)
    for i, x in enumerate(vectors):
        for c, w in enumerate(head.weight.detach()):
            cosine = float(x @ w / (x.norm() * w.norm()))
            shifted[i, c] = scale * (cosine - margin if c == target[i] else cosine)
    loss = build_focal_margin(_context(gamma=gamma, margin=margin, cosine_scale=scale))
    found = loss(Output(head(vectors), vectors), target)
    assert found.item() == pytest.approx(_focal_by_hand(shifted, target, gamma))


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    classes=st.integers(2, 7),
    gamma=GAMMAS,
    margin=st.floats(0, 3),
    weight=st.floats(0, 1),
)
def test_hybrid_is_chens_equation(seed: int, classes: int, gamma: float, margin: float, weight: float) -> None:
    logits, target = _case(seed, classes)
    loss = build_hybrid_focal_margin(_context(gamma=gamma, logit_margin=margin, focal_weight=weight))
    expected = weight * _focal_margin_by_hand(logits, target, gamma, margin)
    expected += (1 - weight) * _tversky_by_hand(logits, target)
    assert loss(Output(logits, logits), target).item() == pytest.approx(expected)


def test_the_focal_margin_loss_holds_the_others_as_its_ends() -> None:
    logits, target = _case(3, 5)
    shifted = logits - 0.7 * F.one_hot(target, 5)
    assert focal(logits, target, 2.0, 0.0).item() == pytest.approx(_focal_by_hand(logits, target, 2.0))
    assert focal(logits, target, 0.0, 0.7).item() == pytest.approx(F.cross_entropy(shifted, target).item())
    assert focal(logits, target, 0.0, 0.0).item() == pytest.approx(F.cross_entropy(logits, target).item())


def test_the_tversky_term_is_zero_for_certain_predictions_and_minds_misses_more_than_false_alarms() -> None:
    right, target = 50.0 * F.one_hot(torch.tensor([0, 1, 2]), 3).double(), torch.tensor([0, 1, 2])
    assert focal_tversky(right, target).item() == pytest.approx(0, abs=1e-10)
    # One image of the only class is half missed; or half of it is claimed by a class that has no image.
    missed, alarm = 1 - 1.5 / (0.5 + 0.35 + 1), 1 - 1 / (0.15 + 1)
    expected = (missed**0.75 + alarm**0.75) / 2
    assert focal_tversky(torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])).item() == pytest.approx(expected)
    assert missed > alarm


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_gradients_are_right_and_stay_finite_for_a_certain_prediction(gamma: float) -> None:
    logits, target = _case(0, 4)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: focal(z, target, gamma), logits)
    assert torch.autograd.gradcheck(lambda z: focal(z, target, gamma, 0.5), logits)
    assert torch.autograd.gradcheck(lambda z: focal_tversky(z, target), logits)
    certain = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    label = torch.tensor([0])
    (focal(certain, label, gamma, 0.5) + focal_tversky(certain, label)).backward()
    assert certain.grad is not None
    assert torch.isfinite(certain.grad).all()


def test_logits_are_scaled_cosines() -> None:
    built = build("focal-margin", options={"cosine_scale": 7.0})
    output = built.model.eval()(built.images)
    weight = built.model.backbone.get_classifier().weight
    expected = 7 * F.cosine_similarity(output.embedding[:, None], weight[None], dim=2)
    torch.testing.assert_close(output.logits, expected)


def test_the_margin_makes_training_harder_and_leaves_prediction_alone() -> None:
    easy, hard = (build("focal-margin", "margin", options={"margin": m}) for m in (0.0, 0.5))
    output = easy.model.eval()(easy.images)
    assert torch.equal(output.logits, hard.model.eval()(easy.images).logits)
    assert hard.criterion(output, hard.labels) > easy.criterion(output, easy.labels)


@pytest.mark.parametrize("backbone", ["test_vit3", "test_resnet", "test_convnext"])
def test_runs_on_other_backbones(backbone: str) -> None:
    losses = build("focal-margin", backbone=backbone).train(2)
    assert all(math.isfinite(loss) for loss in losses)


def test_frozen_trains_only_the_classifier() -> None:
    built = build("focal-margin", "frozen")
    assert built.trainable() == {"backbone.head.weight", "backbone.head.bias"}


def test_everything_is_trained_otherwise_at_rates_that_fall_with_depth() -> None:
    built = build("focal-margin")
    named = dict(built.model.named_parameters())
    assert built.trainable() == set(named)
    groups = build_optimizer(built.recipe, built.model, built.criterion).param_groups
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    depth, decay = 6, built.recipe.layer_decay
    assert decay < 1
    assert scale[id(named["backbone.head.weight"])] == 1
    for block in range(depth):
        assert scale[id(named[f"backbone.blocks.{block}.mlp.fc1.weight"])] == pytest.approx(decay ** (depth - block))
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert scale[id(named[f"backbone.{name}"])] == pytest.approx(decay ** (depth + 1)), name


def test_results_from_the_former_groups_have_other_ids(tmp_path: Path) -> None:
    full, probe = planned(["focal-margin/full", "focal-margin/frozen"], "test_vit", tmp_path)
    assert full.code["optimizer"] == "revision 2"
    (plain,) = planned(["focal-margin/full"], "test_vit", tmp_path, {"layer_decay": "1", "weight_decay": "0"})
    assert "optimizer" not in {**probe.code, **plain.code}


def test_the_cosine_margin_needs_cosines_and_whole_labels() -> None:
    loss = host().losses["focal-margin"].value
    assert loss.needs - host().models["classifier"].value.provides == {"cosines", "hard_targets"}
    assert "cosines" in host().models["cosine-classifier"].value.provides


def test_a_classifier_that_is_no_linear_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="not one linear layer"):
        build("focal-margin", backbone="deit_tiny_distilled_patch16_224")
