"""bitfit: biases and classifier are trained, and nothing else."""

from __future__ import annotations

import pytest
from built import CLASSES, build
from few_parameters import TRANSFORMERS, first_step_is_plain, moved
from torch import nn

from flowers_bench import UsageError
from flowers_bench_plugins.common import train_classifier_and


@pytest.mark.parametrize("backbone", ["test_resnet", *TRANSFORMERS])
def test_the_first_step_is_the_plain_network(backbone: str) -> None:
    assert first_step_is_plain("bitfit", backbone)


def test_biases_and_classifier_are_all_that_is_trained() -> None:
    built = build("bitfit")
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    biases = {f"backbone.blocks.{i}.{layer}.bias" for i in range(6) for layer in layers}
    outside = {"backbone.patch_embed.proj.bias", "backbone.norm.bias", "backbone.head.bias", "backbone.head.weight"}
    assert built.trainable() == biases | outside
    assert moved(built) == built.trainable()


def test_a_convolutional_network_trains_the_biases_of_its_batch_norms() -> None:
    built = build("bitfit", backbone="test_resnet")
    names = built.trainable()
    assert {name.split(".")[-1] for name in names} == {"bias", "weight"}
    assert [name for name in names if name.endswith("weight")] == ["backbone.fc.weight"]
    # Of random weights some biases move only later: a block's last scale starts at zero.
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert {name for name in moved(built) if not name.endswith(statistics)} <= names
    assert sum(p.numel() for p in built.model.backbone.fc.parameters()) == 96 * CLASSES + CLASSES


def test_a_network_without_biases_is_refused() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.default_cfg = {"classifier": "fc"}
            self.body, self.fc = nn.Linear(2, 2, bias=False), nn.Linear(2, 3)

    network = Plain()
    with pytest.raises(UsageError, match="Plain has no bias outside of its classifier"):
        train_classifier_and(network, [p for n, p in network.named_parameters() if n.endswith("bias")], "bias")
