"""adapter and adaptformer: their equations, their start, and what is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from built import CLASSES, build
from few_parameters import TRANSFORMERS, first_step_is_plain, moved, refused
from torch import Tensor, nn

from flowers_bench import UsageError
from flowers_bench_plugins.adapter.layers import Bottleneck, add_adapters

VARIANTS = [("adapter", "houlsby"), ("adapter", "pfeiffer"), ("adaptformer", "m64")]


@pytest.mark.parametrize("backbone", TRANSFORMERS)
@pytest.mark.parametrize(("technique", "variant"), VARIANTS)
def test_the_first_step_is_the_plain_network(technique: str, variant: str, backbone: str) -> None:
    assert first_step_is_plain(technique, backbone, variant)


def filled(technique: str, variant: str) -> tuple[Any, Tensor]:
    """A block in float64 whose bottlenecks are not zero any more, and tokens for it."""
    model: Any = build(technique, variant, options={"bottleneck": 5}).model.double().eval()
    for module in model.modules():
        if isinstance(module, Bottleneck):
            for parameter in module.parameters():
                nn.init.normal_(parameter, std=0.3)
    return model.backbone.blocks[2], torch.randn(2, 5, 64, dtype=torch.float64)


def bottleneck(module: Any, h: Tensor, activation: Any) -> Tensor:
    """W_up s(W_down h + b_down) + b_up, written out."""
    low: Tensor = activation(h @ module.down.weight.T + module.down.bias)
    return low @ module.up.weight.T + module.up.bias


@pytest.mark.parametrize("variant", ["houlsby", "pfeiffer"])
def test_adapters_stand_behind_the_sublayers(variant: str) -> None:
    block, x = filled("adapter", variant)
    h = block.attn(block.norm1(x))
    if variant == "houlsby":
        h = h + bottleneck(block.ls1.bottleneck, h, F.gelu)
    y = x + h
    h = block.mlp(block.norm2(y))
    torch.testing.assert_close(block(x), y + h + bottleneck(block.ls2.bottleneck, h, F.gelu))


def test_adaptformer_stands_beside_the_mlp() -> None:
    block, x = filled("adaptformer", "m64")
    y = x + block.attn(block.norm1(x))
    n = block.norm2(y)
    plain = block.mlp.layer
    mlp = F.gelu(n @ plain.fc1.weight.T + plain.fc1.bias) @ plain.fc2.weight.T + plain.fc2.bias
    torch.testing.assert_close(block(x), mlp + 0.1 * bottleneck(block.mlp.bottleneck, n, F.relu) + y)


@pytest.mark.parametrize(("technique", "variant", "places", "norms"), [
    ("adapter", "houlsby", ("ls1", "ls2"), True), ("adapter", "pfeiffer", ("ls2",), False), ("adaptformer", "m64", ("mlp",), False),
])  # fmt: skip
def test_bottlenecks_and_classifier_are_all_that_is_trained(
    technique: str, variant: str, places: tuple[str, ...], norms: bool
) -> None:
    built = build(technique, variant, options={"bottleneck": 5})
    parts = [f"{layer}.{part}" for layer in ("down", "up") for part in ("weight", "bias")]
    expected = {
        f"backbone.blocks.{i}.{place}.bottleneck.{part}" for i in range(6) for place in places for part in parts
    }
    layers = ["backbone.head"]
    if norms:
        layers += ["backbone.norm", *(f"backbone.blocks.{i}.norm{k}" for i in range(6) for k in (1, 2))]
    expected |= {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert built.trainable() == expected
    count = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    each = 2 * 5 * 64 + 5 + 64
    assert count == 6 * len(places) * each + norms * 13 * 2 * 64 + 64 * CLASSES + CLASSES


@pytest.mark.parametrize(("technique", "variant"), VARIANTS)
def test_all_that_is_trained_moves(technique: str, variant: str) -> None:
    """W_down has no gradient in the first step, where W_up is zero."""
    built = build(technique, variant)
    assert moved(built, 3) == built.trainable()


@pytest.mark.parametrize("model", ["adapters", "adaptformer"])
@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_other_backbones_are_refused(model: str, backbone: str) -> None:
    with pytest.raises(UsageError, match="is not a vision transformer"):
        refused(model, backbone)()


def test_a_block_without_a_place_is_refused() -> None:
    network: Any = nn.Module()
    network.blocks, network.embed_dim = nn.Sequential(nn.Linear(2, 2)), 2
    with pytest.raises(UsageError, match=r"block 0 .* has no place ls1"):
        add_adapters(network, ("ls1",), 8)
