"""What is measured on embeddings and mixed images, each against a naive loop or another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from flowers_bench import Split, UsageError
from flowers_bench.data.pixels import Normalizer
from flowers_bench.data.samplers import held_out_classes
from flowers_bench.measure import retrieval as module
from flowers_bench.measure.episodic import episodic_accuracy, queries_per_class
from flowers_bench.measure.quality import mixed_quality
from flowers_bench.measure.retrieval import retrieval
from flowers_bench.nn import Output
from flowers_bench.training.prediction import Evaluator, fit_logistic, mean_logits

torch.set_num_threads(1)  # waking other threads costs more than they save


def _retrieval_by_hand(points: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    firsts, averages = [], []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        r = sum(labels[j] == label for j in others)
        if r == 0:
            continue
        ranked = sorted(others, key=lambda j: -float(unit[i] @ unit[j]))
        right = [labels[j] == label for j in ranked]
        firsts.append(right[0])
        averages.append(sum(sum(right[: n + 1]) / (n + 1) for n in range(r) if right[n]) / r)
    return float(np.mean(firsts)), float(np.mean(averages))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 6), n=st.integers(4, 30), queries=st.integers(1, 40))
def test_retrieval_is_its_definition_in_any_chunks(seed: int, classes: int, n: int, queries: int) -> None:
    rng = np.random.default_rng(seed)
    points, labels = rng.normal(size=(n, 5)), rng.integers(0, classes, n)
    if np.bincount(labels).max() < 2:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "QUERIES", queries)
        found = retrieval(points.astype(np.float32), labels)
    assert (found["recall_at_1"], found["map_at_r"]) == pytest.approx(_retrieval_by_hand(points, labels))


def test_retrieval_agrees_with_pytorch_metric_learning() -> None:
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    knn = pytest.importorskip("pytorch_metric_learning.utils.inference")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 7)
    points = (rng.normal(size=(42, 8)) + 0.7 * rng.normal(size=(6, 8))[labels]).astype(np.float32)
    judge = calculator.AccuracyCalculator(
        include=("precision_at_1", "mean_average_precision_at_r"),
        knn_func=knn.CustomKNN(distances.CosineSimilarity()),
        device=torch.device("cpu"),
    )
    expected = judge.get_accuracy(torch.from_numpy(points), torch.from_numpy(labels))
    found = retrieval(points, labels)
    assert found["recall_at_1"] == pytest.approx(expected["precision_at_1"])
    assert found["map_at_r"] == pytest.approx(expected["mean_average_precision_at_r"])


def test_a_collapsed_embedding_retrieves_nothing() -> None:
    assert retrieval(np.ones((20, 3), np.float32), np.repeat(np.arange(4), 5)) == {"recall_at_1": 0, "map_at_r": 0}


def test_retrieval_without_a_pair_is_not_measured() -> None:
    assert retrieval(np.ones((3, 2), np.float32), np.arange(3)) == {}


def test_episodes_of_separated_classes_are_right_and_of_noise_at_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 12)
    corners = np.eye(8, dtype=np.float32)[labels]
    right = episodic_accuracy(corners, labels, 5, 1, "euclidean", np.random.default_rng(1), 600)
    assert right["accuracy"] == 1.0
    assert (right["n_query"], right["episodes"]) == (11, 600)
    noise = rng.normal(size=(96, 4)).astype(np.float32)
    chance = episodic_accuracy(noise, labels, 5, 2, "cosine", np.random.default_rng(1), 600)
    assert abs(chance["accuracy"] - 0.2) < 0.03
    assert chance["low"] < chance["accuracy"] < chance["high"]
    assert chance == episodic_accuracy(noise, labels, 5, 2, "cosine", np.random.default_rng(1), 600)


@pytest.mark.parametrize(("n_way", "k_shot"), [(9, 1), (5, 12)])
def test_episodes_that_do_not_fit_are_refused(n_way: int, k_shot: int) -> None:
    with pytest.raises(UsageError, match="eval_way or eval_shot"):
        queries_per_class(np.repeat(np.arange(8), 12), n_way, k_shot, "the test split")


@given(classes=st.integers(2, 40), share=st.floats(0, 0.95))
def test_held_out_classes_are_the_same_for_everyone_and_never_all(classes: int, share: float) -> None:
    found = held_out_classes(np.arange(classes), share)
    assert len(found) == min(round(share * classes), classes - 1)
    assert found.tolist() == held_out_classes(np.arange(classes), share).tolist()


def test_mixed_quality_counts_the_classes_among_the_largest() -> None:
    logits = np.array([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 3, 2, 1], [1, 1, 1, 1]])
    targets = np.array([[0.5, 0.45, 0.05, 0], [0.9, 0, 0, 0.1], [0, 1, 0, 0], [0.5, 0.5, 0, 0]])
    assert mixed_quality(logits, targets) == {"top_m": (1 + 0.5 + 0 + 0) / 4, "all_m": 0.25, "m": 1.75}


def test_logistic_regression_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 15)
    points = (rng.normal(size=(60, 6)) * rng.uniform(0.1, 9, 6) + labels[:, None]).astype(np.float32)
    queries = rng.normal(size=(25, 6)).astype(np.float32) * 3
    exact = points.astype(np.float64)
    scaler = StandardScaler().fit(exact)
    peer = LogisticRegression(C=1 / (0.05 * 60), tol=1e-9, max_iter=5000).fit(scaler.transform(exact), labels)
    found = fit_logistic(torch.from_numpy(points), torch.from_numpy(labels), 4, 0.05)(torch.from_numpy(queries))
    expected = peer.predict_proba(scaler.transform(queries))
    assert torch.softmax(found, 1).numpy() == pytest.approx(expected, abs=1e-5)


def test_cosine_scores_are_cosines() -> None:
    queries, means = torch.randn(5, 3), torch.randn(4, 3)
    expected = torch.cosine_similarity(queries[:, None], means[None], dim=-1)
    assert torch.allclose(mean_logits(queries, means, "cosine"), expected, atol=1e-6)


@pytest.mark.parametrize("predictor", ["nearest-mean", "knn"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_training_images_are_predicted_from_the_others(predictor: str, distance: str) -> None:
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8) for _ in range(12)]
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    options = {"distance": distance, "temperature": 0.5, "k": 3}
    normalize = Normalizer((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), torch.device("cpu"))
    evaluator = Evaluator(predictor, options, 3, 4, normalize)
    rows = np.array([10, 0, 5])
    found = evaluator.fit(_Flat(), _split(images, labels))([images[i] for i in rows], rows)
    for row, scores in zip(rows, found.logits, strict=True):
        others = [i for i in range(12) if i != row]
        rest = _split([images[i] for i in others], labels[others])
        expected = evaluator.fit(_Flat(), rest)([images[row]]).logits[0]
        assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("predictor", "distance"),
    [("classifier", ""), ("nearest-mean", "euclidean"), ("nearest-mean", "cosine"), ("knn", ""), ("logistic", "")],
)
def test_every_predictor_can_be_timed_under_autocast(predictor: str, distance: str) -> None:
    """On a processor that multiplies in bfloat16, inference is measured so too."""
    images = [torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8) for _ in range(9)]
    normalize = Normalizer((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), torch.device("cpu"))
    evaluator = Evaluator(predictor, {"distance": distance, "k": 3}, 3, 4, normalize)
    fitted = evaluator.fit(_Flat().eval(), _split(images, np.repeat(np.arange(3), 3)))
    batch = normalize(torch.stack(images))
    exact = fitted.scores(batch)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rough = fitted.scores(batch)
    assert rough.shape == exact.shape == (9, 0 if predictor == "classifier" else 3)
    assert rough.isfinite().all()


class _Flat(torch.nn.Module):
    """Pixels are the embedding."""

    def forward(self, images: torch.Tensor) -> Output:
        return Output(images.flatten(1)[:, :0], images.flatten(1))


def _split(images: list[torch.Tensor], labels: np.ndarray) -> Split:
    return Split(images, labels, [str(i) for i in range(len(images))])
