"""ssf: the layer's equation, its start, its merging, and what is trained."""

from __future__ import annotations

import pytest
import torch
from built import CLASSES, build
from few_parameters import TRANSFORMERS, first_step_is_plain, moved, refused
from torch import nn

from flowers_bench import UsageError
from flowers_bench_plugins.ssf.layers import ScaleShift


@pytest.mark.parametrize("layer", [nn.Linear(5, 7), nn.Linear(5, 7, bias=False), nn.LayerNorm(5)])
def test_each_channel_is_scaled_and_shifted_and_can_be_merged(layer: nn.Module) -> None:
    dim = 7 if isinstance(layer, nn.Linear) else 5
    torch.manual_seed(0)
    scaled = ScaleShift(layer, dim).double()
    nn.init.normal_(scaled.scale)
    nn.init.normal_(scaled.shift)
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    expected = torch.stack([scaled.scale[d] * layer(x)[..., d] + scaled.shift[d] for d in range(dim)], -1)
    torch.testing.assert_close(scaled(x), expected)
    torch.testing.assert_close(scaled.merged()(x), expected)


@pytest.mark.parametrize("backbone", TRANSFORMERS)
def test_the_first_step_is_the_plain_network(backbone: str) -> None:
    assert first_step_is_plain("ssf", backbone)


def test_scales_shifts_and_classifier_are_all_that_is_trained() -> None:
    built = build("ssf")
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    scaled = [*(f"blocks.{i}.{layer}" for i in range(6) for layer in layers), "patch_embed.norm", "norm"]
    expected = {f"backbone.{layer}.{part}" for layer in scaled for part in ("scale", "shift")}
    assert built.trainable() == expected | {"backbone.head.weight", "backbone.head.bias"}
    assert moved(built) == built.trainable()
    count = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    assert count == 2 * (6 * (64 + 192 + 64 + 64 + 192 + 64) + 64 + 64) + 64 * CLASSES + CLASSES


def test_a_trained_network_can_be_merged() -> None:
    built = build("ssf")
    built.train(5)
    model = built.model.eval()
    with torch.inference_mode():
        before = model(built.images).logits
    for name, module in list(model.named_modules()):
        if isinstance(module, ScaleShift) and not isinstance(module.layer, nn.Identity):
            model.set_submodule(name, module.merged())
    with torch.inference_mode():
        torch.testing.assert_close(model(built.images).logits, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_other_backbones_are_refused(backbone: str) -> None:
    with pytest.raises(UsageError, match="is not a vision transformer"):
        refused("scaled", backbone)()
