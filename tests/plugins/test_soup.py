"""soup: the mean of finished trials' weights, and what may be averaged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from built import CLASSES, host
from torch import Tensor

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Classifier


@dataclass(frozen=True)
class Finished:
    """A finished trial, as far as a soup asks."""

    tensors: Mapping[str, Tensor]

    def weights(self) -> dict[str, Tensor]:
        return dict(self.tensors)


def trained(seed: int, backbone: str = "test_resnet") -> Classifier:
    torch.manual_seed(seed)
    model = Classifier(Backbone(backbone, Weights(), CLASSES, 32).create())
    model.train()(torch.randn(4, 3, 32, 32))  # batch norms' statistics differ, too
    return model.eval()


def soup(ingredients: str, trials: Mapping[str, Finished]) -> Any:
    part = host().models["soup"].value
    options = part.option_values({"ingredients": ingredients})
    backbone = Backbone("test_resnet", Weights(), CLASSES, 32)
    return part.build(ModelContext(backbone, CLASSES, 32, options, finder=trials.__getitem__))  # type: ignore[arg-type]


def test_a_soup_is_the_mean_of_its_ingredients() -> None:
    models = [trained(seed) for seed in range(3)]
    trials = {str(seed): Finished(model.state_dict()) for seed, model in enumerate(models)}
    found = soup("0, 1,2,1", trials).state_dict()  # whoever is named twice counts once
    for name, value in found.items():
        given = [model.state_dict()[name] for model in models]
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(given) / 3, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, given[0])


def test_a_soup_of_equal_networks_is_that_network() -> None:
    model = trained(0)
    images = torch.randn(2, 3, 32, 32)
    trials = {id: Finished(model.state_dict()) for id in "ab"}
    cooked = soup("a,b", trials).eval()
    torch.testing.assert_close(cooked(images).logits, model(images).logits)
    assert not any(parameter.requires_grad for parameter in cooked.parameters())


@pytest.mark.parametrize("ingredients", ["", "0", "0,0", " , "])
def test_fewer_than_two_are_no_soup(ingredients: str) -> None:
    with pytest.raises(UsageError, match="at least two"):
        soup(ingredients, {"0": Finished({})})


def test_networks_of_another_kind_are_refused() -> None:
    trials = {"a": Finished(trained(0).state_dict()), "b": Finished(trained(0, "test_vit").state_dict())}
    with pytest.raises(UsageError, match="trial b is not a plain test_resnet"):
        soup("a,b", trials)
