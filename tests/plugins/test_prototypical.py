"""prototypical: the loss against a loop, episodes, and the two evaluations that are kept apart."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import live, planned
from torch import Tensor

from flowers_bench import LossContext, UsageError
from flowers_bench.nn import Output, distance_scores
from flowers_bench_plugins.prototypical import build_prototypical
from flowers_bench_plugins.prototypical.loss import prototypical_loss, scores

CNN = "test_resnet"
EPISODE = {"k_shot": 1, "n_query": 1, "n_way": 4}


def _by_hand(points: Tensor, n_way: int, k_shot: int, per_class: int, distance: str, temperature: float) -> float:
    """Algorithm 1 of the paper, image by image."""

    def d(a: Tensor, b: Tensor) -> float:
        if distance == "cosine":
            return -float(a @ b / (a.norm() * b.norm()))
        return float((a - b).square().sum())

    rows = [points[c * per_class : (c + 1) * per_class] for c in range(n_way)]
    prototypes = [sum(row[1:k_shot], row[0]) / k_shot for row in rows]
    total, queries = 0.0, 0
    for c, row in enumerate(rows):
        for query in row[k_shot:]:
            shares = [math.exp(-d(query, p) / temperature) for p in prototypes]
            total -= math.log(shares[c] / sum(shares))
            queries += 1
    return total / queries


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n_way=st.integers(2, 4),
    k_shot=st.integers(1, 3),
    n_query=st.integers(1, 3),
    distance=st.sampled_from(["euclidean", "cosine"]),
    temperature=st.sampled_from([0.5, 1.0, 4.0]),
)
def test_loss_is_the_algorithm(
    seed: int, n_way: int, k_shot: int, n_query: int, distance: str, temperature: float
) -> None:
    per_class = k_shot + n_query
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(n_way * per_class, 3, dtype=torch.float64, generator=generator)
    options = {"k_shot": k_shot, "n_query": n_query, "distance": distance, "temperature": temperature}
    # Class indices are the data set's, in any order.
    labels = torch.randperm(50, generator=generator)[:n_way].repeat_interleave(per_class)
    found = build_prototypical(LossContext(50, 3, options))(Output(points, points), labels)
    expected = _by_hand(points, n_way, k_shot, per_class, distance, temperature)
    assert found.item() == pytest.approx(expected)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_training_and_prediction_measure_alike(distance: str) -> None:
    queries, prototypes = torch.randn(5, 4), torch.randn(3, 4)
    torch.testing.assert_close(scores(queries, prototypes, distance), distance_scores(queries, prototypes, distance))


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_gradient(distance: str) -> None:
    points = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prototypical_loss(x, 2, 3, distance, 0.5), points)


def test_what_is_no_episode_is_refused() -> None:
    options = {"k_shot": 1, "n_query": 2, "distance": "euclidean", "temperature": 1.0}
    loss = build_prototypical(LossContext(4, 3, options))
    points = torch.randn(6, 3)
    for labels in ([0, 0, 1, 1, 1, 0], [0, 1, 0, 1, 0, 1], [0, 0, 0, 1]):
        with pytest.raises(UsageError, match="in order of their class"):
            loss(Output(points[: len(labels)], points[: len(labels)]), torch.tensor(labels))


SMALL = {"n_way": "2", "eval_way": "3", "episodes_per_epoch": "3"}


def test_a_trial_keeps_its_two_accuracies_apart(tmp_path: Path) -> None:
    settings = {**SMALL, "epochs": "3", "warmup_epochs": "0", "lr": "3e-3", "held_out": "0.5", "eval_way": "2"}
    folder = live(tmp_path, "prototypical/held-out", **settings)
    result = folder.result().json()
    assert result["test"].keys() >= {"n", "top1", "top5", "mean_per_class", "nll"}
    assert not result["test"].keys() & {"accuracy", "episodes", "n_way", "k_shot"}
    for found in result["episodic"].values():
        assert found["low"] <= found["accuracy"] <= found["high"]
        assert (found["n_way"], found["k_shot"], found["n_query"], found["episodes"]) == (2, 5, 5, 1000)
    assert set(result["episodic"]) == {"test", "held_out_classes"}
    assert result["episodic"]["test"]["accuracy"] > 0.6
    assert set(result["retrieval"]) == {"recall_at_1", "map_at_r"}
    again = live(tmp_path, "prototypical/held-out", store="again", **settings).result().json()
    assert {k: again[k] for k in ("episodic", "test")} == {k: result[k] for k in ("episodic", "test")}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "10-way episodes of 5 support"),
        ({"n_way": "3", "k_shot": "12"}, "the smallest with 12 images"),
        ({"n_way": "3", "held_out": "0.5"}, "2 classes"),
        ({"n_way": "3", "eval_way": "9"}, "9-way 5-shot evaluation does not fit the test split"),
        ({"n_way": "3", "eval_way": "3", "eval_shot": "10"}, "the smallest with 10 images"),
    ],
)
def test_episodes_that_the_data_cannot_give_are_refused_when_planning(
    tmp_path: Path, settings: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        planned(tmp_path, "prototypical/euclidean", **settings)


def test_more_classes_in_a_batch_than_there_are_is_refused_when_planning(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="P x K batches of 64 with 4 images per class need 16 classes"):
        planned(tmp_path, "triplet/batch-hard")
