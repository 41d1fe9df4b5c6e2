"""norm-tuning: scales and shifts of the normalisations are trained, and nothing else."""

from __future__ import annotations

import pytest
import torch
from built import build
from few_parameters import TRANSFORMERS, first_step_is_plain, moved
from timm.layers import LayerNorm2d, RmsNorm
from torch import nn

from flowers_bench_plugins.norm_tuning import norm_parameters


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", *TRANSFORMERS])
def test_the_first_step_is_the_plain_network(backbone: str) -> None:
    assert first_step_is_plain("norm-tuning", backbone)


def test_norms_and_classifier_are_all_that_is_trained() -> None:
    built = build("norm-tuning")
    norms = [f"backbone.blocks.{i}.norm{k}" for i in range(6) for k in (1, 2)]
    expected = {
        f"{layer}.{part}" for layer in (*norms, "backbone.norm", "backbone.head") for part in ("weight", "bias")
    }
    assert built.trainable() == expected
    assert moved(built) == expected


def test_batch_norms_are_trained_with_their_statistics() -> None:
    built = build("norm-tuning", backbone="test_resnet")
    norms = {name for name, module in built.model.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert norms
    parts = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    changed = moved(built)
    assert {f"{norm}.{part}" for norm in norms for part in parts} <= changed
    assert changed <= {f"{norm}.{part}" for norm in norms for part in parts} | {
        "backbone.fc.weight",
        "backbone.fc.bias",
    }


def test_every_kind_of_norm_is_found() -> None:
    network = nn.ModuleList([nn.BatchNorm2d(4), nn.LayerNorm(4), nn.GroupNorm(2, 4), LayerNorm2d(4), RmsNorm(4),
                             nn.RMSNorm(4), nn.LayerNorm(4, elementwise_affine=False), nn.Linear(4, 4)])  # fmt: skip
    found = norm_parameters(network)
    assert len(found) == 4 * 2 + 2
    assert all(torch.equal(p, torch.ones(4)) or torch.equal(p, torch.zeros(4)) for p in found)
