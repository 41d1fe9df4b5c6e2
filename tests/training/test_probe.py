"""A classifier that starts as a linear probe (`classifier_start=probe`), before everything is trained from there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lives import ignore, live, planned, run_once_interrupted, training_of
from torch import Tensor, nn

from flowers_bench.contract.host import discover
from flowers_bench.nn import Classifier, LogisticRegression, fit_logistic
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import trial_from_config
from flowers_bench.training.distributed import ALONE
from flowers_bench.training.probe import linear_classifier, start_from_probe
from flowers_bench.training.process import Interrupted
from flowers_bench.training.trial import run_trial
from flowers_bench.util.errors import UsageError

PROBE = {"classifier_start": "probe", "epochs": "1", "warmup_epochs": "0"}


def few_steps(points: Tensor, labels: Tensor, steps: int = 500) -> LogisticRegression:
    return fit_logistic(points, labels, 3, 0.01, steps)


def test_raw_features_get_the_scores_of_standardised_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(30, 4, generator=generator) * torch.tensor([0.1, 1, 10, 100]) + 5
    probe = few_steps(points, torch.arange(30) % 3)
    weight, bias = probe.on_raw_features()
    torch.testing.assert_close((points.double() @ weight.T + bias).float(), probe(points), rtol=1e-4, atol=1e-4)


def test_the_classifier_starts_as_the_probe_of_the_network_as_it_starts(tmp_path: Path) -> None:
    training = training_of(live(tmp_path, "transfer/scratch", **PROBE))
    model, evaluator, train = training.parts.model, training.parts.evaluator, training.train
    before = {name: values.clone() for name, values in model.state_dict().items()}
    features = evaluator.features(model, train)
    start_from_probe(model, evaluator, train, ALONE)
    logits = evaluator.features(model, train).output.logits
    probe = fit_logistic(features.output.embedding, features.labels, evaluator.context.num_classes, 0.01)
    # Fifty steps of L-BFGS are not the end of it.
    torch.testing.assert_close(logits, probe(features.output.embedding), rtol=0, atol=0.05)
    assert float((logits.argmax(1) == features.labels).double().mean()) > 0.9
    changed = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert len(changed) == 2
    assert {tuple(model.state_dict()[name].shape) for name in changed} == {
        (len(training.parts.evaluator.context.class_names), features.output.embedding.shape[1]),
        (len(training.parts.evaluator.context.class_names),),
    }


def test_training_begins_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it was interrupted behind its first epoch and continued, which ends as if undisturbed."""
    fits = []

    def counted(*given: object) -> LogisticRegression:
        fits.append(given)
        return fit_logistic(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("flowers_bench.training.probe.fit_logistic", counted)
    settings = {**PROBE, "epochs": "2"}
    undisturbed = live(tmp_path, "transfer/scratch", **settings)
    assert len(fits) == 1
    item = planned(tmp_path, "transfer/scratch", store=tmp_path / "other", **settings)
    folder = Store(tmp_path / "other").prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)
    with pytest.raises(Interrupted):
        run_once_interrupted(folder)
    assert len(fits) == 2
    run_trial(folder, ignore)
    torch.use_deterministic_algorithms(False)
    assert len(fits) == 2
    assert folder.weights().read_bytes() == undisturbed.weights().read_bytes()


@pytest.mark.parametrize(
    ("name", "backbone"), [("triplet/batch-hard", "test_resnet"), ("focal-margin/additive", "test_vit")]
)
def test_a_model_without_a_linear_classifier_is_refused_in_planning(tmp_path: Path, name: str, backbone: str) -> None:
    with pytest.raises(UsageError, match="classifier_start=probe needs a model whose logits are a linear layer"):
        planned(tmp_path, name, backbone=backbone, **PROBE)


@pytest.mark.parametrize("name", ["test-time/flips", "test-time/ten-crops"])
def test_a_predictor_of_several_views_changes_nothing_about_the_start(tmp_path: Path, name: str) -> None:
    training = training_of(live(tmp_path, name, **PROBE))
    alone = training_of(live(tmp_path, "test-time/one-view", **PROBE))
    for each in (training, alone):
        each.parts.model.load_state_dict(alone.parts.model.state_dict())
        start_from_probe(each.parts.model, each.parts.evaluator, each.train, ALONE)
    assert training.parts.evaluator.views is not None
    found, expected = (linear_classifier(each.parts.model).weight for each in (training, alone))
    torch.testing.assert_close(found, expected)


def test_a_classifier_without_a_bias_is_refused() -> None:
    class Backbone(nn.Module):
        def get_classifier(self) -> nn.Module:
            return nn.Linear(3, 2, bias=False)

    with pytest.raises(UsageError, match="with a bias"):
        linear_classifier(Classifier(Backbone()))


def test_a_fresh_start_leaves_ids_as_they_were(tmp_path: Path) -> None:
    plain = planned(tmp_path, "toy/plain").trial
    assert "classifier_start" not in plain.recipe.facts()
    assert planned(tmp_path, "toy/plain", classifier_start="fresh").trial.id == plain.id
    probed = planned(tmp_path, "transfer/scratch", **PROBE).trial
    assert probed.id != planned(tmp_path, "transfer/scratch", **{**PROBE, "classifier_start": "fresh"}).trial.id
    assert trial_from_config({**probed.facts(), "id": probed.id}).recipe == probed.recipe


@pytest.mark.parametrize(("settings", "epochs"), [({}, 2), ({"epochs": "7"}, 7), ({"classifier_start": "fresh"}, 5)])
def test_the_drawn_flowers_take_fewer_epochs_from_a_probe(
    tmp_path: Path, settings: dict[str, str], epochs: int
) -> None:
    small = {"data.species": "3", "data.train": "5", "data.val": "2", "data.test": "2"}
    request = Request(["deformable/stages2-4"], "petals", tmp_path, 1, settings={**small, **settings})
    (item,) = plan(discover(only_built_in=True), request, [])
    assert (item.trial.recipe.epochs, item.trial.recipe.warmup_epochs) == (epochs, 0)


def test_it_is_fitted_on_stored_activations_where_there_are_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What frozen layers give is stored; the features are those of the images."""
    fitted: list[Tensor] = []

    def kept(points: Tensor, *rest: object) -> LogisticRegression:
        fitted.append(points)
        return fit_logistic(points, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("flowers_bench.training.probe.fit_logistic", kept)
    folder = live(tmp_path, "transfer/k2", **{**PROBE, "augmentation": "none", "image_size": "32"})
    assert folder.result().cost.prefix_cache["bytes"] > 0  # type: ignore[index]
    training = training_of(folder)  # starts at the images
    start_from_probe(training.parts.model, training.parts.evaluator, training.train, ALONE)
    first, second = fitted
    torch.testing.assert_close(first, second)
