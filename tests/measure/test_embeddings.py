"""What is measured on embeddings and mixed images, each against a naive loop or another library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from flowers_bench import OptionValue, PredictorContext, Split, UsageError
from flowers_bench.contract.host import discover
from flowers_bench.data.pixels import Normalizer
from flowers_bench.data.samplers import held_out_classes
from flowers_bench.measure import retrieval as module
from flowers_bench.measure.episodic import episodic_accuracy, queries_per_class
from flowers_bench.measure.quality import mixed_quality
from flowers_bench.measure.retrieval import Retrieval, retrieval
from flowers_bench.measure.statistics import image_mean
from flowers_bench.models import logistic
from flowers_bench.nn import Output, distance_scores
from flowers_bench.store.records import Mixed, RetrievalMetrics
from flowers_bench.training.evaluation import Evaluator
from flowers_bench_plugins.linear_probe.predictor import fit_logistic

torch.set_num_threads(1)  # waking other threads costs more than they save


def _retrieval_by_hand(points: np.ndarray, labels: np.ndarray) -> tuple[float, float] | None:
    """In float64, by distances between unit vectors, which do not round a nearly collapsed embedding away."""
    points = points.astype(np.float64)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    firsts, averages = [], []
    for i, label in enumerate(labels):
        others = [j for j in range(len(labels)) if j != i]
        r = sum(labels[j] == label for j in others)
        if r == 0:
            continue
        ranked = sorted(others, key=lambda j: float(np.square(unit[i] - unit[j]).sum()))
        right = [labels[j] == label for j in ranked]
        firsts.append(right[0])
        averages.append(sum(sum(right[: n + 1]) / (n + 1) for n in range(r) if right[n]) / r)
    return (float(np.mean(firsts)), float(np.mean(averages))) if firsts else None


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
    expected = _retrieval_by_hand(points.astype(np.float32), labels)
    assert (found.recall_at_1, found.map_at_r) == pytest.approx(expected, abs=1e-12)


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
    assert found.recall_at_1 == pytest.approx(expected["precision_at_1"])
    assert found.map_at_r == pytest.approx(expected["mean_average_precision_at_r"])


@pytest.mark.parametrize("shift", [0.0, 1.0, 30.0, 1e3, 1e5])
def test_retrieval_is_exact_however_nearly_the_embedding_has_collapsed(shift: float) -> None:
    """Float32 cosines and a penalty of 1e-6 for ties were up to 4.6e-4 off, and 0 instead of 1."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10), 30)
    points = (rng.normal(size=(300, 16)) + 2 * rng.normal(size=(10, 16))[labels] + shift).astype(np.float32)
    found = retrieval(points, labels)
    expected = _retrieval_by_hand(points, labels)
    assert (found.recall_at_1, found.map_at_r) == pytest.approx(expected, abs=1e-12)


def test_classes_that_are_a_millionth_apart_are_found() -> None:
    labels = np.repeat(np.arange(4), 5)
    points = np.ones((20, 8)) + 1e-6 * np.eye(4, 8)[labels] + 1e-9 * np.random.default_rng(0).normal(size=(20, 8))
    assert retrieval(points, labels) == RetrievalMetrics(recall_at_1=1, map_at_r=1)


@pytest.mark.parametrize("size", [1.0, 3.0, 0.0, 1e-30])
def test_a_collapsed_embedding_retrieves_nothing(size: float) -> None:
    labels = np.repeat(np.arange(4), 5)
    one_point = np.full((20, 3), size, np.float32)
    one_way = one_point * np.random.default_rng(0).uniform(0.5, 2, (20, 1)).astype(np.float32)  # cosines are all 1
    for points in (one_point, one_way):
        assert retrieval(points, labels) == RetrievalMetrics(recall_at_1=0, map_at_r=0)


def test_an_embedding_of_zero_is_as_far_from_all() -> None:
    points = np.array([[1.0, 0], [0, 0], [-1, 0], [1, 0.1]], np.float32)
    # Cosines of the first: 0 with the second, -1, almost 1; the second's are ties, which count against.
    assert retrieval(points, np.array([0, 0, 1, 1])).recall_at_1 == 0
    assert retrieval(points, np.array([0, 1, 1, 0])).recall_at_1 == 0.75


@pytest.mark.parametrize("count", [1, 3])
def test_retrieval_without_a_pair_is_not_measured(count: int) -> None:
    assert retrieval(np.ones((count, 2), np.float32), np.arange(count)) is None


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), classes=st.integers(1, 5), n=st.integers(2, 12))
def test_shares_of_retrieval_are_the_jackknifes(seed: int, classes: int, n: int) -> None:
    """Against the figure without each image in turn."""
    rng = np.random.default_rng(seed)
    points, labels = rng.normal(size=(n, 4)), rng.integers(0, classes, n)
    found, whole = Retrieval.of(points, labels), _retrieval_by_hand(points, labels)
    if found is None:
        assert whole is None
        return
    rest = [_retrieval_by_hand(np.delete(points, i, 0), np.delete(labels, i)) or whole for i in range(n)]
    expected = n * np.array(whole) - (n - 1) * np.array(rest)
    expected += np.array(whole) - expected.mean(0)
    assert found.images["recall_at_1"] == pytest.approx(expected[:, 0], abs=1e-9)
    assert found.images["map_at_r"] == pytest.approx(expected[:, 1], abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3, 8])
def test_intervals_of_retrieval_cover_other_images_and_seeds(seeds: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(10, 16))

    def shares(count: int) -> dict[str, np.ndarray]:
        labels = rng.integers(0, 10, 150)
        common = rng.normal(size=(150, 16))
        found = []
        for _ in range(count):
            skill = 0.8 + 0.05 * rng.normal() * (count > 1)
            retrieved = Retrieval.of(skill * centres[labels] + common + 0.5 * rng.normal(size=(150, 16)), labels)
            assert retrieved is not None
            found.append(retrieved.images)
        return {name: np.stack([images[name] for images in found]) for name in found[0]}

    many = [shares(1) for _ in range(1000)]
    for name in ("recall_at_1", "map_at_r"):
        truth = np.mean([images[name].mean() for images in many])
        hits = 0
        for _ in range(200):
            interval = image_mean(shares(seeds)[name], 1.0)
            hits += interval.low <= truth <= interval.high
        assert hits / 200 >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200)


def test_episodes_that_are_all_right_have_an_interval_too() -> None:
    labels = np.repeat(np.arange(8), 12)
    found = episodic_accuracy(
        np.eye(8, dtype=np.float32)[labels], labels, 5, 1, "euclidean", np.random.default_rng(1), 600
    )
    assert (found.accuracy, found.high, found.n) == (1, 1, 96)
    assert found.low == pytest.approx(600 / (600 + 1.959964**2))


def test_episodes_of_separated_classes_are_right_and_of_noise_at_chance() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(8), 12)
    corners = np.eye(8, dtype=np.float32)[labels]
    right = episodic_accuracy(corners, labels, 5, 1, "euclidean", np.random.default_rng(1), 600)
    assert right.accuracy == 1.0
    assert (right.n_query, right.episodes) == (11, 600)
    noise = rng.normal(size=(96, 4)).astype(np.float32)
    chance = episodic_accuracy(noise, labels, 5, 2, "cosine", np.random.default_rng(1), 600)
    assert abs(chance.accuracy - 0.2) < 0.03
    assert chance.low < chance.accuracy < chance.high
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
    assert mixed_quality(logits, targets) == Mixed(n=4, top_m=(1 + 0.5 + 0 + 0) / 4, all_m=0.25, m=1.75)


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


def test_logistic_regression_is_the_same_computed_for_some_images_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    points, labels = torch.randn(60, 6), torch.arange(60) % 4
    whole = fit_logistic(points, labels, 4, 0.05)
    monkeypatch.setattr(logistic, "_AT_ONCE", 4 * 7)  # 60 images are eight times seven, and four
    some = fit_logistic(points, labels, 4, 0.05)
    assert torch.allclose(some.weight, whole.weight, atol=1e-6)
    assert torch.allclose(some.bias, whole.bias, atol=1e-6)


def test_cosine_scores_are_cosines() -> None:
    queries, means = torch.randn(5, 3), torch.randn(4, 3)
    expected = torch.cosine_similarity(queries[:, None], means[None], dim=-1)
    assert torch.allclose(distance_scores(queries, means, "cosine"), expected, atol=1e-6)


@pytest.mark.parametrize("predictor", ["nearest-mean", "knn"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_training_images_are_predicted_from_the_others(predictor: str, distance: str) -> None:
    torch.manual_seed(0)
    images = [torch.randint(0, 256, (3, 4, 4), dtype=torch.uint8) for _ in range(12)]
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2])
    evaluator = _evaluator(predictor, distance=distance, temperature=0.5, k=3)
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
    evaluator = _evaluator(predictor, **({"distance": distance} if distance else {}), k=3)
    fitted = evaluator.fit(_Flat().eval(), _split(images, np.repeat(np.arange(3), 3)))
    batch = evaluator.normalize(torch.stack(images))
    exact = fitted.scores(batch)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rough = fitted.scores(batch)
    assert rough.shape == exact.shape == (9, 0 if predictor == "classifier" else 3)
    assert rough.isfinite().all()


def _evaluator(name: str, **options: OptionValue) -> Evaluator:
    """Of three classes, 4 px, by the registered predictor of that name."""
    predictor = discover(only_built_in=True).predictors[name].value
    context = PredictorContext(["a", "b", "c"], predictor.option_values(options))
    return Evaluator(predictor, context, 4, Normalizer((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), torch.device("cpu")))


class _Flat(torch.nn.Module):
    """Pixels are the embedding."""

    def forward(self, images: torch.Tensor) -> Output:
        return Output(images.flatten(1)[:, :0], images.flatten(1))


def _split(images: list[torch.Tensor], labels: np.ndarray) -> Split:
    return Split(images, labels, [str(i) for i in range(len(images))])
