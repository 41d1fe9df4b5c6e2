"""The nearest class mean: prediction among all classes, each known by the mean of its training images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowers_bench import Features, PredictorContext, UsageError
from flowers_bench.nn import Output, distance_scores


def fit_nearest_mean(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Compute the training images' mean embedding of each class. The function's scores are minus the `distance` to a mean over
    the `temperature`; a training image is left out of the mean of its own class."""
    labels, classes = features.labels, context.num_classes
    means = class_means(features.output.embedding, labels, classes)
    distance, temperature = context.options.text("distance"), context.options.number("temperature")

    def score(output: Output, rows: Tensor | None) -> Tensor:
        queries = output.embedding
        scores = distance_scores(queries, means, distance)
        if rows is not None:
            own = labels[rows]
            count = torch.bincount(labels, minlength=classes)[own, None]
            # The mean of the others; an image that is alone in its class is compared with itself.
            left = torch.where(count > 1, (means[own] * count - queries) / (count - 1).clamp_min(1), means[own])
            scores[torch.arange(len(own)), own] = distance_scores(queries, left, distance).diagonal()
        return scores / temperature

    return score


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Compute the mean embedding of each class: (N, D), (N,) to (C, D). Raises `UsageError` for a class without images."""
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise UsageError(
            f"nearest-mean prediction needs a training image of every class; class {int(counts.argmin())} has none."
        )
    sums = embeddings.new_zeros(num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / counts[:, None]
