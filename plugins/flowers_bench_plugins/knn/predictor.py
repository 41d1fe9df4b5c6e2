"""The vote of the nearest training images."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_bench import Features, PredictorContext
from flowers_bench.nn import Output

#: So many similarities between queries and training images are held at a time (float32: 256 MiB).
SIMILARITIES = 2**26
#: T of the equation, and what a class without a vote gets before the logarithm.
TEMPERATURE, NO_VOTE = 0.07, 1e-6


def fit_knn(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Keep the training images' embeddings (N, D), among which the `k` nearest vote."""
    support, labels = features.output.embedding, features.labels
    k, classes = context.options.integer("k"), context.num_classes
    return lambda output, rows: knn_scores(support, labels, output.embedding, classes, k, rows)


def knn_scores(
    support: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int, rows: Tensor | None = None
) -> Tensor:
    """Compute the log of the cosine-weighted vote of the k most similar training images (Wu et al. 2018,
    arXiv:1805.01978): (N, D), (N,), (Q, D) to (Q, C).

    Training image `rows[q]` is query q itself, and does not vote on it. Queries are taken some at a time, so that memory
    does not grow with Q times N.
    """
    turn = max(1, SIMILARITIES // support.shape[0])
    if not torch.compiler.is_exporting() and len(queries) > turn:  # a graph is for any number of queries
        parts = (
            (queries[i : i + turn], None if rows is None else rows[i : i + turn]) for i in range(0, len(queries), turn)
        )
        return torch.cat([knn_scores(support, labels, part, num_classes, k, own) for part, own in parts])
    similarity = F.normalize(queries, dim=1) @ F.normalize(support, dim=1).T
    if rows is not None:
        similarity[torch.arange(len(rows)), rows] = -torch.inf
    nearest, index = similarity.topk(min(k, support.shape[0]), dim=1)
    votes = torch.zeros(queries.shape[0], num_classes)
    weights = torch.softmax(nearest.float() / TEMPERATURE, dim=1)  # under autocast, similarities are not float32
    votes.scatter_add_(1, labels[index], weights)
    return (votes + NO_VOTE).log()
