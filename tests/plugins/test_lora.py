"""lora: the layer's equation, its start, its merging, and what is trained."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import timm
import torch
from built import (
    CLASSES,
    build,
    host,
    planned,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench_plugins.lora.layers import LowRank, adapt_attention

TARGETS = ("qv", "qkv", "qkvo")


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(1, 9),
    alpha=st.floats(0, 20),
    adapted=st.sampled_from([(0,), (0, 2), (1, 2), (0, 1, 2)]),
    bias=st.booleans(),
)
def test_each_part_of_the_output_has_its_own_update(
    seed: int, rank: int, alpha: float, adapted: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(seed)
    linear = nn.Linear(5, 6, bias=bias).double()
    layer = LowRank(linear, rank, alpha, 3, adapted).double()
    nn.init.normal_(layer.b)
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    expected = linear(x)
    for k, part in enumerate(adapted):
        expected[..., 2 * part : 2 * part + 2] += alpha / rank * (x @ layer.a[k].T @ layer.b[k].T)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)
    assert not any(p.requires_grad for p in layer.linear.parameters())


@pytest.mark.parametrize("backbone", ["test_vit", "test_vit2", "test_vit3"])
@pytest.mark.parametrize("targets", TARGETS)
def test_the_first_step_is_the_plain_network(backbone: str, targets: str) -> None:
    built = build("lora", backbone=backbone, options={"targets": targets})
    plain = timm.create_model(backbone, num_classes=CLASSES, img_size=32)
    state = {k.replace(".linear.", "."): v for k, v in built.model.backbone.state_dict().items()}
    plain.load_state_dict({k: v for k, v in state.items() if not k.endswith((".a", ".b"))})
    plain.requires_grad_(
        False
    )  # torch's matmul takes another path, with other last bits, where a weight has a gradient
    with torch.inference_mode():
        assert torch.equal(built.model.eval()(built.images).logits, plain.eval()(built.images))


def test_a_starts_as_in_loralib() -> None:
    torch.manual_seed(0)
    found = LowRank(nn.Linear(12, 9), 5, 1.0, 3, (1,)).a
    torch.manual_seed(0)
    nn.Linear(12, 9)
    assert torch.equal(found[0], nn.init.kaiming_uniform_(torch.empty(5, 12), a=math.sqrt(5)))


def test_results_from_the_former_start_have_other_ids(tmp_path: Path) -> None:
    updated, frozen = planned(["lora/qv", "lora/frozen"], "test_vit", tmp_path)
    assert updated.code["model lora"] == "revision 2"
    assert set(frozen.code) == {"toy", "augmentation standard"}  # the file of the dataset, and what draws its images


def test_a_trained_network_can_be_merged() -> None:
    built = build("lora", "qkvo")
    built.train(5)
    model = built.model.eval()
    with torch.inference_mode():
        before = model(built.images).logits
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LowRank)]
    assert len(layers) == 12
    for name, module in layers:
        assert module.b.abs().max() > 0
        model.set_submodule(name, module.merged())
    with torch.inference_mode():
        torch.testing.assert_close(model(built.images).logits, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("targets", "parts"), [("qv", 2), ("qkv", 3), ("qkvo", 4)])
def test_updates_and_classifier_are_all_that_is_trained(targets: str, parts: int) -> None:
    built = build("lora", options={"targets": targets, "rank": 3})
    layers = ["attn.qkv"] + ["attn.proj"] * (targets == "qkvo")
    updates = {f"backbone.blocks.{i}.{layer}.{p}" for i in range(6) for layer in layers for p in "ab"}
    assert built.trainable() == updates | {"backbone.head.weight", "backbone.head.bias"}
    count = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    assert count == 6 * parts * 3 * (64 + 64) + 64 * CLASSES + CLASSES


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext"])
def test_other_backbones_are_refused(backbone: str) -> None:
    model = host().models["lora"].value
    context = ModelContext(Backbone(backbone, Weights(), CLASSES, 64), CLASSES, 64, model.option_values({}))
    with torch.device("meta"), pytest.raises(UsageError, match="is not a vision transformer"):
        model.build(context)


def test_attention_without_a_fused_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="block 0"):
        adapt_attention(nn.Sequential(nn.Linear(2, 2)), 8, 16.0, (0, 2), False)
