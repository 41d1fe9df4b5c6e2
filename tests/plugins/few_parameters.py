"""What holds for every technique that trains few parameters of a pretrained network, for their tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
from built import CLASSES, Built, build, host
from torch import nn

from flowers_bench import ModelContext
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights

#: Every kind of pooling: class token, average, attention.
TRANSFORMERS = ("test_vit", "test_vit2", "test_vit3")


def as_built(name: str, seed: int = 0) -> nn.Module:
    """timm's network with the values that `built.build` starts from, in evaluation mode, without gradients."""
    torch.manual_seed(seed)
    arguments = {"img_size": 32} if "vit" in name else {}
    return timm.create_model(name, num_classes=CLASSES, **arguments).eval().requires_grad_(False)


def first_step_is_plain(
    technique: str, backbone: str, variant: str | None = None, options: Mapping[str, Any] = {}
) -> bool:
    """Whether the adapted network computes, before training, what the plain one does: to the bit."""
    built = build(technique, variant, backbone, options=options)
    plain, adapted = as_built(backbone), built.model.eval().requires_grad_(False)
    with torch.inference_mode():
        return torch.equal(adapted(built.images).logits, plain(built.images))


def moved(built: Built, steps: int = 3) -> set[str]:
    """Names of the parameters and statistics that training changes."""
    before = {name: value.clone() for name, value in built.model.state_dict().items()}
    built.train(steps)
    return {name for name, value in built.model.state_dict().items() if not torch.equal(value, before[name])}


def refused(model: str, backbone: str) -> Callable[[], object]:
    """A call that builds a model on a backbone, without values, to see what it says."""
    part = host().models[model].value
    context = ModelContext(Backbone(backbone, Weights(), CLASSES, 64), CLASSES, 64, part.option_values({}))

    def call() -> object:
        with torch.device("meta"):
            return part.build(context)

    return call
