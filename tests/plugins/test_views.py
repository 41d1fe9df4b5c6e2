"""test-time: views are torchvision's crops, averages are means of softmax over them, and what views cost is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from built import CLASSES, host
from lives import TOY, live
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision import transforms
from torchvision.transforms import v2

from flowers_bench import Predictor, PredictorContext, UsageError, ViewsContext
from flowers_bench.backbones import Backbone, Weights, mean_and_std
from flowers_bench.contract.predictor import CLASSIFIER
from flowers_bench.data.pixels import Normalizer, stored_side
from flowers_bench.measure.cost import flops
from flowers_bench.nn import Classifier, Output
from flowers_bench.training.evaluation import Evaluator, Fitted
from flowers_bench.training.export import export_trial
from flowers_bench.training.trained import Sources

SIDE = 32
COUNTS = {"flips": 2, "five-crops": 5, "ten-crops": 10}
#: torchvision's own views, image by image.
REFERENCE = {
    "flips": lambda image: [transforms.CenterCrop(SIDE)(image), transforms.CenterCrop(SIDE)(image).flip(-1)],
    "five-crops": transforms.FiveCrop(SIDE),
    "ten-crops": transforms.TenCrop(SIDE),
}


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    network = Classifier(Backbone("test_resnet", Weights(), CLASSES, SIDE).create())
    network.train()(torch.randn(8, 3, SIDE, SIDE))  # batch norms that are not the identity
    network.backbone.get_classifier().weight.data *= 100  # views must differ by more than rounding does
    return network.eval()


def photographs() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((50, 70), (90, 60), (64, 64))
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]


def fitted(model: nn.Module, name: str, average: str = "probabilities") -> Fitted:
    predictor = CLASSIFIER if name == "classifier" else host().predictors[name].value
    options = predictor.option_values({"average": average} if predictor.options else {})
    views = predictor.views(ViewsContext(SIDE, options)) if predictor.views else None
    context = PredictorContext([f"class {c}" for c in range(CLASSES)], options)
    normalize = Normalizer(*mean_and_std(model), torch.device("cpu"))
    return Evaluator(predictor, context, SIDE, normalize, views).fit(model, None)


def outputs(model: nn.Module, name: str, image: Tensor) -> Output:
    """What the network gives for torchvision's views of one image: logits (V, C) and embeddings (V, D)."""
    mean, std = mean_and_std(model)
    prepared = transforms.Compose(
        [
            v2.Resize(stored_side(SIDE), antialias=True),  # of the same rounding as the harness's
            transforms.CenterCrop(stored_side(SIDE)) if name != "flips" else transforms.Lambda(lambda resized: resized),
            transforms.Lambda(lambda square: torch.stack(list(REFERENCE[name](square))).float() / 255),
            transforms.Normalize(mean, std),
        ]
    )
    with torch.no_grad():
        found: Output = model(prepared(image))
    return found


@pytest.mark.parametrize("name", COUNTS)
def test_probabilities_are_the_mean_of_softmax_over_torchvisions_views(model: nn.Module, name: str) -> None:
    found = fitted(model, name)(photographs())
    for row, image in enumerate(photographs()):
        views = outputs(model, name, image)
        assert len(views.logits) == COUNTS[name]
        expected = views.logits.double().softmax(1).mean(0)
        np.testing.assert_allclose(np.exp(found.logits[row]), expected, rtol=1e-4)
        np.testing.assert_allclose(found.embeddings[row], views.embedding.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", COUNTS)
def test_logits_are_averaged_where_asked(model: nn.Module, name: str) -> None:
    found = fitted(model, name, "logits")(photographs()).logits
    for row, image in enumerate(photographs()):
        expected = outputs(model, name, image).logits.double().mean(0).softmax(0)
        np.testing.assert_allclose(np.exp(found[row]), expected, rtol=1e-4)


def test_the_two_averages_differ_where_views_disagree(model: nn.Module) -> None:
    one, other = (fitted(model, "ten-crops", average)(photographs()).logits for average in ("probabilities", "logits"))
    assert np.abs(one - other).max() > 1e-3


def test_an_unknown_average_is_refused(model: nn.Module) -> None:
    with pytest.raises(UsageError, match="average=median: valid choices are probabilities, logits"):
        fitted(model, "flips", "median")


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_operations_are_counted_for_every_view(model: nn.Module, name: str, count: int) -> None:
    image = torch.zeros(1, 3, stored_side(SIDE), stored_side(SIDE))
    one = flops(fitted(model, "classifier").scores, image[..., :SIDE, :SIDE]).counted
    many = fitted(model, name)
    assert flops(many.scores, image[..., : many.evaluator.side, : many.evaluator.side]).counted == count * one


def test_a_margin_without_views_is_refused() -> None:
    with pytest.raises(UsageError, match="'wide': margin=True is for views"):
        Predictor("wide", "for tests", fit=CLASSIFIER.fit, margin=True)


def test_one_seed_trains_the_same_weights_and_the_rest_of_the_trial_works(tmp_path: Path) -> None:
    settings = {"epochs": "1", "warmup_epochs": "0", "batch_size": "16"}
    one, many = (live(tmp_path, f"test-time/{name}", **settings) for name in ("one-view", "ten-crops"))
    assert many.config().predictor == "ten-crops"
    ours, theirs = load_file(one.weights()), load_file(many.weights())
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    costs = one.result().cost, many.result().cost
    assert costs[1].flops == 10 * costs[0].flops
    # Frozen layers are not stored for squares that no view shows.
    cached = live(tmp_path, "test-time/five-crops", freeze="-1", **settings)
    assert "several views" in cached.result().cost.prefix_cache["reason"]
    exported = export_trial(many, "pt2", tmp_path / "model.pt2", Sources([TOY], tmp_path / "cache"))
    assert exported.disagreements == 0
    assert exported.side == stored_side(16)


def test_training_images_are_not_passed_over(model: nn.Module) -> None:
    class Untouched:
        def __len__(self) -> int:
            raise AssertionError("the training split is read")

    evaluator = fitted(model, "flips").evaluator
    assert evaluator.fit(model, Untouched()).score is not None  # type: ignore[arg-type]
    knn = replace(evaluator, predictor=host().predictors["knn"].value)
    with pytest.raises((AssertionError, AttributeError)):
        knn.fit(model, Untouched())  # type: ignore[arg-type]
