"""Multinomial logistic regression on features, solved exactly: the linear probe."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

#: So many logits are computed at once, in float64: 90,000 images of 1,000 classes would take gigabytes together.
_AT_ONCE = 2**20


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
    Memory beyond x does not grow with N: logits are computed for some images at a time.
    """
    x = features.double()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-8)
    x = (x - mean) / deviation
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    blocks = list(zip(*(whole.split(max(1, _AT_ONCE // num_classes)) for whole in (x, labels)), strict=True))

    def objective() -> Tensor:
        optimizer.zero_grad()
        total = l2 / 2 * weight.square().sum()
        total.backward()
        for some, their_labels in blocks:
            loss = F.cross_entropy(some @ weight.T + bias, their_labels, reduction="sum") / len(x)
            loss.backward()
            total = total.detach() + loss.detach()
        return total

    optimizer.step(objective)
    return LogisticRegression(mean, deviation, weight.detach(), bias.detach())
