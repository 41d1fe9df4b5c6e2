"""Few-shot accuracy: n classes, k labelled images of each, which class is another image of them?

Snell et al. 2017 (arXiv:1703.05175), section 3. A number of its own kind: choosing among 5 classes is easier than
among 102, so it never shares a column with the accuracy over all classes.
"""

from __future__ import annotations

import numpy as np
import torch

from flowers_bench.measure.statistics import image_mean
from flowers_bench.models.distances import distance_scores
from flowers_bench.store.records import Episodes
from flowers_bench.util.errors import UsageError

#: Episodes that the mean is taken over, and images per class that are asked about in each.
EPISODES = 1000
QUERIES = 15


def queries_per_class(labels: np.ndarray, n_way: int, k_shot: int, where: str) -> int:
    """Choose how many images of each class an episode asks about: `QUERIES`, or what the smallest class leaves.

    Raises:
        UsageError: fewer than `n_way` classes, or a class without an image beyond its `k_shot`. `where` names the data.
    """
    _, counts = np.unique(labels, return_counts=True)
    if n_way > len(counts) or k_shot >= counts.min():
        raise UsageError(
            f"{n_way}-way {k_shot}-shot evaluation does not fit {where}: {len(counts)} classes, the smallest with "
            f"{counts.min()} images. Change eval_way or eval_shot."
        )
    return int(min(QUERIES, counts.min() - k_shot))


def episodic_accuracy(
    embeddings: np.ndarray,
    labels: np.ndarray,
    n_way: int,
    k_shot: int,
    distance: str,
    rng: np.random.Generator,
    episodes: int = EPISODES,
) -> Episodes:
    """Measure the mean accuracy over episodes, with its 95 % interval over them, for this model and these `n` images:
    embeddings (N, D), labels (N,).

    Each episode draws its classes, and its images without replacement.
    """
    n_query = queries_per_class(labels, n_way, k_shot, "this split")
    points = torch.from_numpy(embeddings)
    members = [np.flatnonzero(labels == c) for c in np.unique(labels)]
    truth = torch.arange(n_way).repeat_interleave(n_query)
    found = np.empty(episodes)
    for episode in range(episodes):
        chosen = rng.choice(len(members), n_way, replace=False)
        rows = np.stack([rng.choice(members[c], k_shot + n_query, replace=False) for c in chosen])
        support, query = points[rows[:, :k_shot]], points[rows[:, k_shot:]]
        scores = distance_scores(query.flatten(0, 1), support.mean(1), distance)
        found[episode] = (scores.argmax(1) == truth).double().mean()
    interval = image_mean(found[None], 1.0)
    return Episodes(
        n=len(labels),
        accuracy=interval.value,
        low=interval.low,
        high=interval.high,
        episodes=episodes,
        n_way=n_way,
        k_shot=k_shot,
        n_query=n_query,
    )
