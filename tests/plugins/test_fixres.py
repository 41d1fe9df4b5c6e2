"""fixres: what is fitted, which trials it starts from, and that the rest of the network stays as it was trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import CLASSES, host
from lives import TOY, live
from safetensors.torch import load_file
from torch import Tensor
from torchvision.transforms import v2

from flowers_bench import ModelContext, UsageError
from flowers_bench.backbones import Backbone, Weights, mean_and_std
from flowers_bench.nn import Classifier
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.trained import Sources, dataset_of


@dataclass(frozen=True)
class Finished:
    """A finished trial, as far as fixres asks."""

    tensors: Mapping[str, Tensor]
    image_size: int = 16

    def weights(self) -> dict[str, Tensor]:
        return dict(self.tensors)


def trained(backbone: str = "test_resnet", size: int = 16) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(Backbone(backbone, Weights(), CLASSES, size).create())
    model.train()(torch.randn(4, 3, size, size))
    return model.eval()


def fixed(given: Finished, tuned: str = "last-norm", backbone: str = "test_resnet", id: str = "an id") -> Any:
    part = host().models["fixres"].value
    options = part.option_values({"trained": id, "tuned": tuned})
    finder: Any = {"an id": given}.__getitem__
    return part.build(ModelContext(Backbone(backbone, Weights(), CLASSES, 32), CLASSES, 32, options, finder=finder))


HEAD = {"backbone.fc.weight", "backbone.fc.bias"}
LAST = {"backbone.layer4.0.bn2.weight", "backbone.layer4.0.bn2.bias"}


#: Scales and shifts of all norms: vectors that are none of the classifier's.
NORMS = {name for name, value in trained().named_parameters() if value.ndim == 1} - HEAD


@pytest.mark.parametrize(
    ("tuned", "expected"),
    [("last-norm", HEAD | LAST), ("classifier", HEAD), ("nothing", set()), ("all-norms", HEAD | NORMS)],
)
def test_only_what_is_named_is_trained(tuned: str, expected: set[str]) -> None:
    model = fixed(Finished(trained().state_dict()), tuned)
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == expected


def test_before_it_is_fitted_it_is_the_trained_network_to_the_bit() -> None:
    plain, images = trained(), torch.randn(3, 3, 32, 32)
    assert torch.equal(fixed(Finished(plain.state_dict())).eval()(images).logits, plain(images).logits)


@pytest.mark.parametrize(
    ("given", "asked", "words"),
    [
        (Finished({}), {"id": ""}, "--set trained=ID"),
        (Finished({}, 32), {}, "trained on images of 32 px, and here they have 32: larger ones are needed"),
        (Finished({}, 64), {}, "--set image_size=128"),
        (Finished({}), {}, "not a plain test_resnet"),
        (Finished(trained("test_vit").state_dict()), {"backbone": "test_vit"}, "position embeddings have one size"),
        (
            Finished(trained("test_convnext", 32).state_dict()),
            {"backbone": "test_convnext"},
            "no batch norm.*tuned=classifier",
        ),
    ],
)
def test_what_does_not_fit_is_refused(given: Finished, asked: dict[str, str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fixed(given, **asked)


@pytest.fixture(scope="module")
def smaller(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrialFolder]:
    folder = tmp_path_factory.mktemp("fixres")
    return folder, live(folder, "transfer/k0", epochs="2", warmup_epochs="0", batch_size="16")


def test_nothing_fitted_is_the_trained_network_on_larger_images(smaller: tuple[Path, TrialFolder]) -> None:
    """By plain torch and torchvision: the toy's images of 16 px are shown at 24."""
    folder, trial = smaller
    larger = live(folder, "fixres/larger", image_size="24", trained=trial.id)
    test = dataset_of(trial, Sources([TOY], folder / "cache")).test
    model = Classifier(Backbone("test_resnet", Weights(), 4, 24).create()).eval()
    model.load_state_dict(load_file(trial.weights()))
    mean, std = mean_and_std(model)
    resized = v2.Resize((24, 24), antialias=True)(torch.stack([test.images[i] for i in range(len(test))]))
    with torch.no_grad():
        expected = model(v2.functional.normalize(resized / 255, list(mean), list(std))).logits
    table = larger.predictions()
    found = np.stack(list(table[table["split"] == "test"]["logits"]))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert set(larger.result().cost.inherited or {}) == {trial.id}


def test_fitting_leaves_the_rest_as_it_was(smaller: tuple[Path, TrialFolder]) -> None:
    folder, trial = smaller
    fitted = live(folder, "fixres/last-norm", image_size="24", trained=trial.id, epochs="2", batch_size="16")
    before, after = load_file(trial.weights()), load_file(fitted.weights())
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    statistics = {f"backbone.layer4.0.bn2.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")}
    assert moved == HEAD | LAST | statistics
    assert fitted.result().cost.trainable_parameters == sum(before[name].numel() for name in HEAD | LAST)
