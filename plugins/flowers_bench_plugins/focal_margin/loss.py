"""Focal loss, with a margin, and joined with the focal Tversky loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Of the focal Tversky loss, as Chen 2023 uses it: delta, the weight of what is missed, and its exponent.
TVERSKY, TVERSKY_FOCUS = 0.7, 0.75


def focal(logits: Tensor, target: Tensor, gamma: float, margin: float = 0.0) -> Tensor:
    """Mean over the batch of -(1 - p_y)^gamma log p'_y, where p' is p of logits with the true one `margin` lower.

    Soft targets (N, C), for which there is no margin, weigh the same term of every class.
    """
    log_p = F.log_softmax(logits, dim=1)
    # Not quite zero: for gamma below 1 the slope of (1 - p)^gamma at p = 1 is infinite.
    factor = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).eps) ** gamma
    if target.ndim == 2:
        return -(target * factor * log_p).sum(1).mean()
    if margin:
        log_p = F.log_softmax(logits - margin * F.one_hot(target, logits.shape[1]), dim=1)
    return -(factor * log_p).gather(1, target[:, None]).mean()


def focal_tversky(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the classes of (1 - TI)^0.75, TI from the batch's probabilities; hard targets (N,)."""
    p, true = logits.softmax(1), F.one_hot(target, logits.shape[1])
    hit, missed, wrong = (p * true).sum(0), ((1 - p) * true).sum(0), (p * (1 - true)).sum(0)
    index = (hit + 1) / (hit + TVERSKY * missed + (1 - TVERSKY) * wrong + 1)
    # As above: the slope of x^0.75 at 0 is infinite.
    return ((1 - index).clamp_min(torch.finfo(p.dtype).eps) ** TVERSKY_FOCUS).mean()


def focal_margin(logits: Tensor, target: Tensor, gamma: float, shift: float) -> Tensor:
    """F(z'): the focal loss of scaled cosines (N, C), the true class's `shift` = s m lower; hard targets (N,)."""
    return focal(logits - shift * F.one_hot(target, logits.shape[1]), target, gamma)


def hybrid(logits: Tensor, target: Tensor, gamma: float, margin: float, weight: float) -> Tensor:
    """lambda FM(z) + (1 - lambda) FT(p), lambda being `weight`; hard targets (N,)."""
    return weight * focal(logits, target, gamma, margin) + (1 - weight) * focal_tversky(logits, target)
