"""Ridge regression on features, in closed form."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_bench import Features, PredictorContext
from flowers_bench.nn import Output


def fit_ridge(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the regression, of penalty `ridge_l2`, to the training images' embeddings (N, D), in float64."""
    x = features.output.embedding.double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-8)
    x = (x - mean) / deviation
    aims = 2 * F.one_hot(features.labels, context.num_classes).double() - 1
    bias = aims.mean(0)
    penalty = len(x) * context.options.number("ridge_l2")
    # Without a penalty there may be many solutions: the shortest one, as the limit of small penalties.
    inverse = torch.linalg.pinv(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), hermitian=True)
    weight = inverse @ (x.T @ (aims - bias))
    return lambda output, rows: (((output.embedding.double() - mean) / deviation) @ weight + bias).float()
