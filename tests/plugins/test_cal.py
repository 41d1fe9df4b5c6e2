"""cal: attention pooling and its counterfactual against their equations, written out in float64; what is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import CLASSES, build, host
from lives import planned
from torch import Tensor

from flowers_bench import LossContext, ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Output
from flowers_bench_plugins.cal.layers import attention_pooling


def pooled_by_hand(features: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """One image: features (D, H, W), maps (M, H, W), place by place."""
    _, height, width = features.shape
    h = np.zeros((len(maps), len(features)))
    for row in range(height):
        for column in range(width):
            h += np.outer(maps[:, row, column], features[:, row, column]) / (height * width)
    rooted = np.sign(h) * np.sqrt(np.abs(h) + 1e-6)
    return (rooted / np.sqrt((rooted**2).sum())).flatten()


def test_pooling_is_the_papers_equation() -> None:
    torch.manual_seed(0)
    features, maps = torch.randn(3, 5, 4, 4, dtype=torch.float64), torch.rand(3, 2, 4, 4, dtype=torch.float64)
    for found, one, looked in zip(attention_pooling(features, maps), features, maps, strict=True):
        assert found.numpy() == pytest.approx(pooled_by_hand(one.numpy(), looked.numpy()), rel=1e-9)


def test_slopes_are_those_of_differences() -> None:
    torch.manual_seed(0)
    features, maps = torch.rand(2, 3, 2, 2, dtype=torch.float64), torch.rand(2, 2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(attention_pooling, (features.requires_grad_(), maps.requires_grad_()))


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_blank_image_has_finite_values_and_slopes(value: float) -> None:
    features = torch.full((2, 4, 3, 3), value, requires_grad=True)
    attention_pooling(features, torch.zeros(2, 2, 3, 3)).square().sum().backward()
    assert features.grad is not None
    assert bool(features.grad.isfinite().all())


def trained(**options: Any) -> Any:
    return build("cal", backbone="test_resnet", options={"channels": 6, "attention_maps": 4, **options}).model.double()


def test_the_effect_is_the_difference_to_random_attention() -> None:
    model = trained().train()
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    torch.manual_seed(5)
    output = model(images)
    features = model.reduce(model.backbone.forward_features(images))
    torch.manual_seed(5)
    anywhere = torch.rand(4, 4, 2, 2, dtype=torch.float64) * 2
    for image in range(4):
        other = 100 * pooled_by_hand(features[image].detach().numpy(), anywhere[image].numpy())
        expected = output.logits[image].detach().numpy() - model.classifier.weight.detach().numpy() @ other
        assert output.more["effect"][image].detach().numpy() == pytest.approx(expected, rel=1e-8)
    assert output.embedding.shape == (4, 24)
    torch.testing.assert_close(output.logits, 100 * output.embedding @ model.classifier.weight.T)
    assert not model.eval()(images).more


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_loss_adds_the_effects_cross_entropy(weight: float) -> None:
    part = host().losses["counterfactual"].value
    logits, effect, target = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    loss = part.build(LossContext(3, 8, part.option_values({"effect_weight": weight})))

    def entropy(scores: Tensor) -> float:
        shares = np.exp(scores.double().numpy())
        shares /= shares.sum(1, keepdims=True)
        return float(-np.log(shares[np.arange(5), target.numpy()]).mean())

    found = loss(Output(logits, logits, more={"effect": effect}), target)
    assert found.item() == pytest.approx(entropy(logits) + weight * entropy(effect), rel=1e-5)


def test_it_learns() -> None:
    built = build("cal", backbone="test_resnet")
    losses = built.train(15)
    assert losses[-1] < losses[0] / 2
    assert built.model.classifier.weight.shape == (CLASSES, 32 * 128)


def test_a_transformer_and_a_model_without_attention_are_refused(tmp_path: Path) -> None:
    part = host().models["attention-pooling"].value
    context = ModelContext(Backbone("test_vit", Weights(), CLASSES, 64), CLASSES, 64, part.option_values({}))
    with torch.device("meta"), pytest.raises(UsageError, match="gives no feature map"):
        part.build(context)
    with pytest.raises(UsageError, match="loss 'counterfactual' needs effect"):
        planned(tmp_path, "transfer/scratch", loss="counterfactual")
