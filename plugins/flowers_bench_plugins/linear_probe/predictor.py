"""Logistic regression on features, solved exactly."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_bench import Features, PredictorContext
from flowers_bench.nn import Output


def fit_probe(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the regression, of penalty `l2`, to the training images' embeddings."""
    support, l2 = features.output.embedding, context.options.number("l2")
    head = fit_logistic(support, features.labels, context.num_classes, l2)
    return lambda output, rows: head(output.embedding)


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int, l2: float) -> Callable[[Tensor], Tensor]:
    """Fit a multinomial logistic regression on standardised features, by L-BFGS: (N, D), (N,) to a function from (Q, D)
    to (Q, C).

    It minimises the mean cross-entropy plus l2 / 2 times the sum of the squared coefficients.
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-8)
    x = (x - mean) / deviation
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    fitted_weight, fitted_bias = weight.detach(), bias.detach()
    return lambda queries: (((queries.double() - mean) / deviation) @ fitted_weight.T + fitted_bias).float()
