"""knn and linear-probe: nothing is trained but the probe, and each predicts as another library does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from built import build
from lives import live, planned
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.build import Places, build_parts


def _features(folder: TrialFolder) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training embeddings and labels, test embeddings, from the stored weights."""
    place, places, trial = DataPlace.of(folder.run()), Places.of(folder.run()), folder.trial()
    host = discover(places.plugins)
    dataset = load_dataset(host, trial, place)
    parts, _ = build_parts(host, trial, places, dataset.class_names, torch.device("cpu"))
    parts.model.load_state_dict(load_file(folder.path / "model.safetensors"))
    train = parts.evaluator.forward(parts.model, dataset.train.images).embedding.numpy().astype(np.float64)
    test = parts.evaluator.forward(parts.model, dataset.test.images).embedding.numpy().astype(np.float64)
    return train, np.asarray(dataset.train.labels), test


def _predicted(folder: TrialFolder) -> np.ndarray:
    table = folder.predictions()
    return np.stack(list(table[table["split"] == "test"]["logits"]))


def test_a_trial_of_knn_trains_nothing_and_votes_as_scikit_learn(tmp_path: Path) -> None:
    folder = live(tmp_path, "knn/k5", k="7")
    result = folder.result()
    assert result.cost.trainable_parameters == 0
    assert (result.cost.epochs, result.best_epoch, result.stopped_early) == (0, 0, False)
    assert folder.history() == []
    assert folder.config().options["k"] == 7
    train, labels, test = _features(folder)

    def weigh(distance: np.ndarray) -> np.ndarray:
        shares: np.ndarray = np.exp((1 - distance) / 0.07)
        return shares

    peer = KNeighborsClassifier(7, metric="cosine", weights=weigh).fit(train, labels)
    scores = _predicted(folder)
    assert np.exp(scores) == pytest.approx(peer.predict_proba(test), abs=1e-3)
    assert result.test.top1 > 0.4  # random features of easy patterns; chance is 0.25
    assert set(result.retrieval.json()) == {"recall_at_1", "map_at_r"}
    # Votes are no probabilities, until temperature scaling makes some of them.
    assert not {"nll", "brier", "ece"} & set(result.test.json())
    errors = {"ece", "ece_adaptive"}
    found = set(result.test.calibrated.json())
    assert found == {"nll", "brier", *errors, *(f"{name}_if_calibrated" for name in errors)}
    assert result.cost.flops_uncounted == []


def test_a_trial_of_the_logistic_probe_is_scikit_learns(tmp_path: Path) -> None:
    folder = live(tmp_path, "linear-probe/logistic", l2="0.1")
    train, labels, test = _features(folder)
    scaler = StandardScaler().fit(train)
    peer = LogisticRegression(C=1 / (0.1 * len(labels)), tol=1e-8, max_iter=5000).fit(scaler.transform(train), labels)
    scores = _predicted(folder).astype(np.float64)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    assert shares / shares.sum(1, keepdims=True) == pytest.approx(peer.predict_proba(scaler.transform(test)), abs=1e-3)


def test_untrained_is_from_random_weights_and_trials_without_training_differ_by_seed_only_there(tmp_path: Path) -> None:
    assert planned(tmp_path, "knn/untrained").trial.weights == {"name": "none", "sha256": None}


def test_only_the_probe_is_trained() -> None:
    built = build("linear-probe", backbone="test_resnet")
    assert built.trainable() == {"backbone.fc.weight", "backbone.fc.bias"}


@pytest.mark.parametrize(
    ("technique", "variant"), [("knn", "k5"), ("linear-probe", "logistic"), ("prototypical", "frozen")]
)
def test_nothing_is_trained(technique: str, variant: str) -> None:
    built = build(technique, variant, backbone="test_vit")
    assert built.trainable() == set()
    assert built.recipe.epochs == 0
