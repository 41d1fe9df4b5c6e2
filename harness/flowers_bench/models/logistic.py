"""Multinomial logistic regression on features, solved exactly: the linear probe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LogisticRegression:
    """A linear classifier on standardised features, all float64.

    Attributes:
        mean, deviation: (D), those of the features that it was fitted on.
        weight, bias: (C, D) and (C).
    """

    mean: Tensor
    deviation: Tensor
    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Compute logits (Q, C) float32 of features (Q, D)."""
        return (((features.double() - self.mean) / self.deviation) @ self.weight.T + self.bias).float()

    def on_raw_features(self) -> tuple[Tensor, Tensor]:
        """Give weight (C, D) and bias (C) that say the same of features which are not standardised."""
        weight = self.weight / self.deviation
        return weight, self.bias - weight @ self.mean


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int, l2: float, steps: int = 500) -> LogisticRegression:
    """Fit a multinomial logistic regression on standardised features, by L-BFGS: features (N, D), labels int64 (N).

    It minimises the mean cross-entropy plus l2 / 2 times the sum of the squared coefficients, in at most so many `steps`.
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-8)
    x = (x - mean) / deviation
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    return LogisticRegression(mean, deviation, weight.detach(), bias.detach())
