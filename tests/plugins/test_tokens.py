"""Frozen features: which tokens of a transformer they are made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from built import CLASSES, build, host
from torch import Tensor

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Output


def features(backbone: str, tokens: str) -> tuple[Any, Tensor, Tensor]:
    """The network inside, some images, and their features."""
    built = build("ridge", backbone=backbone, options={"tokens": tokens})
    model: Any = built.model.eval()
    with torch.inference_mode():
        found: Output = model(built.images)
    assert found.logits.shape == (len(built.images), 0)
    return getattr(model.backbone, "transformer", model.backbone), built.images, found.embedding


def behind_each_block(vit: Any, images: Tensor) -> list[Tensor]:
    """All tokens behind each block, after the last norm, block by block."""
    tokens = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    found = []
    for block in vit.blocks:
        tokens = block(tokens)
        found.append(vit.norm(tokens))
    return found


@pytest.mark.parametrize("backbone", ["test_vit", "test_resnet"])
def test_pooled_is_what_the_network_gives_its_classifier(backbone: str) -> None:
    network, images, found = features(backbone, "pooled")
    with torch.inference_mode():
        torch.testing.assert_close(found, network.forward_head(network.forward_features(images), pre_logits=True))


@pytest.mark.parametrize(("tokens", "blocks", "mean"), [("class", 1, False), ("class-mean", 1, True),
                                                        ("last4", 4, False), ("last4-mean", 4, True)])  # fmt: skip
@pytest.mark.parametrize("backbone", ["test_vit", "vit_tiny_patch16_224"])
def test_tokens_are_those_of_the_paper(backbone: str, tokens: str, blocks: int, mean: bool) -> None:
    vit, images, found = features(backbone, tokens)
    with torch.inference_mode():
        behind = behind_each_block(vit, images)
    expected = [block[:, 0] for block in behind[-blocks:]]
    if mean:
        expected.append(behind[-1][:, vit.num_prefix_tokens :].mean(1))
    torch.testing.assert_close(found, torch.cat(expected, dim=1))
    assert not any(parameter.requires_grad for parameter in vit.parameters())


@pytest.mark.parametrize(
    ("backbone", "said"), [("test_resnet", "is not a vision transformer"), ("test_vit3", "does not have a class token")]
)
def test_tokens_of_a_network_without_them_are_refused(backbone: str, said: str) -> None:
    model = host().models["frozen-features"].value
    options = model.option_values({"tokens": "class"})
    context = ModelContext(Backbone(backbone, Weights(), CLASSES, 32), CLASSES, 32, options)
    with torch.device("meta"), pytest.raises(UsageError, match=said):
        model.build(context)
