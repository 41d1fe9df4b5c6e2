"""gaussian-head: its covariances are scikit-learn's and the papers', written out; and each predicts by them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from built import build, host
from lives import live
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

from flowers_bench import Features, PredictorContext
from flowers_bench.nn import Output
from flowers_bench_plugins.gaussian_head import predictor
from flowers_bench_plugins.gaussian_head.predictor import ledoit_wolf, shrunk

CLASSES = 5


def drawn(
    dim: int, counts: tuple[int, ...] = (4, 7, 3, 5, 9), seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of a correlated Gaussian around a mean for each class (N, D), their labels, and other images' (Q, D)."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), counts)
    shape = rng.normal(size=(dim, dim))
    means = rng.normal(size=(CLASSES, dim))
    return means[labels] + rng.normal(size=(len(labels), dim)) @ shape, labels, 2 * rng.normal(size=(11, dim)) @ shape


def fitted(name: str, x: np.ndarray, labels: np.ndarray, **options: float) -> Callable[[np.ndarray], np.ndarray]:
    """The built-in predictor, from features (Q, D) to scores (Q, C)."""
    part = host().predictors[name].value
    context = PredictorContext([str(c) for c in range(CLASSES)], part.option_values(options))
    score = part.fit(context, Features(_output(x), torch.from_numpy(labels)))
    return lambda queries: score(_output(queries), None).double().numpy()


def _output(x: np.ndarray) -> Output:
    embedding: Tensor = torch.from_numpy(x).float()
    return Output(embedding[:, :0], embedding)


@pytest.mark.parametrize("dim", [3, 12, 40])
@pytest.mark.parametrize("share", [0.05, 0.4, 1.0])
def test_lda_of_a_given_shrinkage_is_scikit_learns(dim: int, share: float) -> None:
    x, labels, queries = drawn(dim)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(x, labels)
    scores = fitted("lda", x, labels, shrinkage=share)(queries)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    assert shares / shares.sum(1, keepdims=True) == pytest.approx(peer.predict_proba(queries), abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"shrinkage": 0.0}])
def test_lda_of_one_image_a_class_finds_the_nearest(options: dict[str, float]) -> None:
    x, labels, queries = drawn(12, counts=(1,) * CLASSES)
    found, nearest = fitted("lda", x, labels, **options)(queries), fitted("nearest-mean", x, labels)(queries)
    assert found.argmax(1).tolist() == nearest.argmax(1).tolist()
    assert np.ptp(found, 1).min() > 0


@pytest.mark.parametrize("dim", [3, 12, 40])
def test_the_estimated_shrinkage_is_scikit_learns(dim: int) -> None:
    x, labels, queries = drawn(dim)
    centred = x - np.stack([x[labels == c].mean(0) for c in range(CLASSES)])[labels]
    share = ledoit_wolf_shrinkage(centred, assume_centered=True)
    assert 0 < share < 1
    assert ledoit_wolf(torch.from_numpy(centred)) == pytest.approx(share, rel=1e-9)
    peer = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=share).fit(x, labels)
    scores = fitted("lda", x, labels)(queries)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    assert shares / shares.sum(1, keepdims=True) == pytest.approx(peer.predict_proba(queries), abs=1e-4)


def test_nothing_is_estimated_of_equal_images() -> None:
    """Not a number would be the share of nothing."""
    assert ledoit_wolf(torch.zeros(4, 3, dtype=torch.float64)) == 1.0
    assert shrunk(torch.zeros(4, 3, dtype=torch.float64), 1.0).abs().max() == 0


@pytest.mark.parametrize("dim", [3, 12, 40])
@pytest.mark.parametrize("ridge", [1.0, 0.1, 25.0])
def test_mahalanobis_is_the_papers_equation(dim: int, ridge: float) -> None:
    x, labels, queries = drawn(dim)
    x = x.astype(np.float32).astype(np.float64)
    everything = np.cov(x.T)
    expected = np.empty((len(queries), CLASSES))
    for c in range(CLASSES):
        own = x[labels == c]
        share = len(own) / (len(own) + 1)
        q = share * np.cov(own.T) + (1 - share) * everything + ridge * np.trace(everything) / dim * np.eye(dim)
        apart = queries.astype(np.float32) - own.mean(0)
        expected[:, c] = -0.5 * np.einsum("qd,de,qe->q", apart, np.linalg.inv(q), apart)
    assert fitted("mahalanobis", x, labels, covariance_ridge=ridge)(queries) == pytest.approx(expected, rel=1e-4)


def test_queries_taken_some_at_a_time_have_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels, queries = drawn(12)
    score = fitted("mahalanobis", x, labels)
    expected = score(queries)
    monkeypatch.setattr(predictor, "VALUES", 150)
    assert score(queries) == pytest.approx(expected, rel=1e-6)


def test_a_class_of_one_image_has_the_covariance_of_all() -> None:
    x, labels, queries = drawn(6, (1, 7, 3, 1, 9))
    scores = fitted("mahalanobis", x, labels)(queries)
    everything = np.cov(x.T)
    q = 0.5 * everything + np.trace(everything) / 6 * np.eye(6)
    apart = queries - x[0]
    assert scores[:, 0] == pytest.approx(-0.5 * np.einsum("qd,de,qe->q", apart, np.linalg.inv(q), apart), rel=1e-3)


@pytest.mark.parametrize("predictor", ["lda", "mahalanobis"])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_scale_of_the_features_changes_nothing(predictor: str, scale: float) -> None:
    x, labels, queries = drawn(8)
    expected = fitted(predictor, x, labels)(queries)
    assert fitted(predictor, scale * x, labels)(scale * queries) == pytest.approx(expected, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize(
    ("predictor", "options"), [("lda", {"shrinkage": 1.0}), ("mahalanobis", {"covariance_ridge": 1e6})]
)
def test_without_a_covariance_it_is_the_nearest_mean(predictor: str, options: dict[str, float]) -> None:
    x, labels, queries = drawn(8, (5,) * CLASSES)
    expected = fitted("nearest-mean", x, labels)(queries).argmax(1)
    assert (fitted(predictor, x, labels, **options)(queries).argmax(1) == expected).all()


@pytest.mark.parametrize("variant", ["lda", "mahalanobis", "nearest-mean"])
def test_nothing_is_trained(variant: str) -> None:
    built = build("gaussian-head", variant)
    assert built.trainable() == set()
    assert built.recipe.epochs == 0


@pytest.mark.parametrize("variant", ["lda", "mahalanobis"])
def test_a_trial_knows_easy_patterns(tmp_path: Path, variant: str) -> None:
    result = live(tmp_path, f"gaussian-head/{variant}").result()
    assert result.cost.trainable_parameters == 0
    assert result.test.top1 > 0.5  # random features; chance is 0.25
