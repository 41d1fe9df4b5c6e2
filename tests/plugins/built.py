"""Techniques built for tests as a trial builds them, on timm's tiny networks, and trained for a few steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench import LossContext, ModelContext, Recipe
from flowers_bench.contract.host import Host, discover
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Output, train_mode
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.identity import Trial
from flowers_bench.training.optimizer import build_optimizer

CLASSES = 4
torch.set_num_threads(1)  # tiny networks: waking other threads costs more than they save


@functools.cache
def host() -> Host:
    """The installed plugins."""
    return discover()


@dataclass
class Built:
    """A technique's parts, ready to train on random images."""

    model: nn.Module
    criterion: Callable[[Output, Tensor], Tensor]
    recipe: Recipe
    images: Tensor
    labels: Tensor

    def train(self, steps: int, optimizer: str = "adamw", lr: float = 3e-3) -> list[float]:
        """The loss of each step."""
        recipe = Recipe(optimizer=optimizer, lr=lr, weight_decay=0.0)
        stepper = build_optimizer(recipe, self.model, self.criterion)
        losses = []
        for _ in range(steps):
            train_mode(self.model)
            loss = self.criterion(self.model(self.images), self.labels)
            stepper.zero_grad()
            loss.backward()
            stepper.step()
            losses.append(loss.item())
        return losses

    def trainable(self) -> set[str]:
        """Names of the parameters that get a gradient."""
        return {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}


def build(
    technique: str,
    variant: str | None = None,
    backbone: str = "test_vit",
    image_size: int = 32,
    seed: int = 0,
    options: Mapping[str, Any] = {},
) -> Built:
    """A technique's variant with its own parts and options, randomly initialised from `seed`."""
    found = host().techniques[technique].value
    _, chosen = found.variant(variant)
    model_part = host().models[chosen.model or found.model].value
    loss_part = host().losses[chosen.loss or found.loss].value
    given = {**chosen.options, **options}
    torch.manual_seed(seed)
    source = Backbone(backbone, Weights(), CLASSES, image_size)
    model = model_part.build(ModelContext(source, CLASSES, image_size, model_part.option_values(given)))
    images = torch.randn(2 * CLASSES, 3, image_size, image_size)
    labels = torch.arange(2 * CLASSES) % CLASSES
    with torch.inference_mode():
        dim = model.eval()(images[:2]).embedding.shape[1]
    criterion = loss_part.build(LossContext(CLASSES, dim, loss_part.option_values(given)))
    return Built(model, criterion, found.recipe.changed(**chosen.recipe), images, labels)


def planned(names: Sequence[str], backbone: str, folder: Path, settings: Mapping[str, str] = {}) -> list[Trial]:
    """One trial of each `NAME/VARIANT` on a dataset of four classes, as the planner makes it."""
    toy = Path(__file__).parents[1] / "toy.py"
    small = {"image_size": "32", "batch_size": "8", **settings}
    request = Request(names, "toy", folder, 1, backbone, "none", settings=small)
    return [item.trial for item in plan(discover([toy]), request, [toy])]
