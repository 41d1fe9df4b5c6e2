"""Logistic regression on features, solved exactly."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flowers_bench import Features, PredictorContext
from flowers_bench.nn import Output, fit_logistic


def fit_probe(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the regression, of penalty `l2`, to the training images' embeddings."""
    support, l2 = features.output.embedding, context.options.number("l2")
    head = fit_logistic(support, features.labels, context.num_classes, l2)
    return lambda output, rows: head(output.embedding)
