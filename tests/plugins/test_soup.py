"""soup: the mean of finished trials' weights, and what may be averaged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import CLASSES, host
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import TOY, live
from safetensors.torch import load_file
from torch import Tensor, nn

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Classifier
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.trained import Sources, Trained, dataset_of


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


def soup(
    ingredients: str,
    trials: Mapping[str, Finished],
    name: str = "soup",
    validation: Callable[[nn.Module], float] | None = None,
) -> Any:
    part = host().models[name].value
    options = part.option_values({"ingredients": ingredients})
    backbone = Backbone("test_resnet", Weights(), CLASSES, 32)
    finder: Any = trials.__getitem__
    return part.build(ModelContext(backbone, CLASSES, 32, options, finder=finder, validation=validation))


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


@pytest.mark.parametrize("name", ["soup", "greedy-soup"])
@pytest.mark.parametrize("ingredients", ["", "0", "0,0", " , "])
def test_fewer_than_two_are_no_soup(ingredients: str, name: str) -> None:
    with pytest.raises(UsageError, match="at least two"):
        soup(ingredients, {"0": Finished({})}, name)


@pytest.mark.parametrize("name", ["soup", "greedy-soup"])
def test_networks_of_another_kind_are_refused(name: str) -> None:
    trials = {"a": Finished(trained(0).state_dict()), "b": Finished(trained(0, "test_vit").state_dict())}
    with pytest.raises(UsageError, match="trial b is not a plain test_resnet"):
        soup("a,b", trials, name)


def head(tensors: Mapping[str, Tensor]) -> np.ndarray:
    return tensors["backbone.fc.weight"].double().numpy().ravel()


def recipe_1(heads: Sequence[np.ndarray], accuracy: Callable[[np.ndarray], float]) -> list[int]:
    """The paper's recipe 1, word by word: the indices of the ingredients."""
    in_order = sorted(range(len(heads)), key=lambda i: accuracy(heads[i]), reverse=True)
    ingredients: list[int] = []
    for i in in_order:
        with_it = accuracy(np.mean([heads[j] for j in [*ingredients, i]], axis=0))
        if not ingredients or with_it >= accuracy(np.mean([heads[j] for j in ingredients], axis=0)):
            ingredients.append(i)
    return ingredients


NETWORKS = {str(seed): Finished(trained(seed).state_dict()) for seed in range(5)}


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), steps=st.sampled_from([0, 4, 30]), k=st.integers(2, 5))
def test_the_greedy_soup_is_recipe_1(seed: int, steps: int, k: int) -> None:
    """By an accuracy that is any function of the weights: how near they are to a point, in `steps` steps, so that some are equal."""
    heads = [head(NETWORKS[str(i)].tensors) for i in range(k)]
    rng = np.random.default_rng(seed)
    aim = np.mean([heads[i] for i in rng.permutation(k)[: rng.integers(1, k + 1)]], axis=0)
    aim = aim + rng.normal(0, 0.1, aim.shape)

    def accuracy(vector: np.ndarray) -> float:
        near = float(np.exp(-np.abs(vector - aim).mean() * 20))
        return round(near * steps) / steps if steps else near

    expected = recipe_1(heads, lambda vector: accuracy(vector.astype(np.float32).astype(np.float64)))
    cooked = soup(
        ",".join(NETWORKS)[: 2 * k - 1], NETWORKS, "greedy-soup", lambda model: accuracy(head(model.state_dict()))
    )
    assert cooked.kept.nonzero().ravel().tolist() == sorted(expected)
    np.testing.assert_allclose(head(cooked.state_dict()), np.mean([heads[i] for i in expected], axis=0), atol=1e-6)


def test_without_images_a_greedy_soup_has_the_shape_of_one() -> None:
    assert soup("0,1,2", NETWORKS, "greedy-soup").kept.tolist() == [1, 1, 1]


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialFolder]]:
    """A folder with a store of three trainings on the toy's images, by three rates."""
    folder = tmp_path_factory.mktemp("soup")
    common = {"epochs": "2", "warmup_epochs": "0", "batch_size": "16"}
    return folder, [live(folder, "transfer/k0", lr=lr, **common) for lr in ("3e-3", "1e-3", "1e-6")]


def test_a_greedy_soup_from_plan_to_prediction(kitchen: tuple[Path, list[TrialFolder]]) -> None:
    folder, trainings = kitchen
    ids = ",".join(one.id for one in trainings)
    cooked = live(folder, "soup/greedy", ingredients=ids)
    result, best = cooked.result(), max(one.result().val.top1 for one in trainings)
    assert result.val.top1 >= best
    assert set(result.cost.inherited or {}) == {one.id for one in trainings}
    assert (result.cost.fit_seconds or 0) > 0
    kept = load_file(cooked.weights())["kept"]
    assert kept[int(np.argmax([one.result().val.top1 for one in trainings]))] == 1
    trained = Trained.load(cooked, torch.device("cpu"), Sources([TOY], folder / "cache"))
    table = cooked.predictions()
    stored = np.stack(list(table[table["split"] == "test"]["logits"]))
    test = dataset_of(cooked, Sources([TOY], folder / "cache")).test
    assert trained.fitted(test.images).logits == pytest.approx(stored, rel=1e-4, abs=1e-5)


def test_ingredients_of_other_images_are_refused(kitchen: tuple[Path, list[TrialFolder]]) -> None:
    folder, trainings = kitchen
    ids = ",".join(one.id for one in trainings)
    with pytest.raises(UsageError, match="Both must have the same images in the same splits"):
        live(folder, "soup/greedy", data="petals", ingredients=ids, **{"data.species": "4", "data.size": "16"})
