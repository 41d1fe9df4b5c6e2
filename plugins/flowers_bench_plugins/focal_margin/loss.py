"""Focal loss: plain, with a margin, and combined with the focal Tversky loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Constants of the focal Tversky loss in Chen 2023: delta, the weight of what is missed, and the exponent.
TVERSKY, TVERSKY_FOCUS = 0.7, 0.75


def focal(logits: Tensor, target: Tensor, gamma: float, margin: float = 0.0) -> Tensor:
    """Compute the mean over the batch of -(1 - p_y)^gamma log p'_y. p is the softmax of logits (N, C), p' that of
    logits with the true one lower by `margin`.

    Targets are hard (N,) or soft (N, C). Soft ones weigh the same term of every class, and allow no margin.
    """
    log_p = F.log_softmax(logits, dim=1)
    # The factor is kept above zero: for gamma below 1 the slope of (1 - p)^gamma at p = 1 is infinite.
    factor = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).eps) ** gamma
    if target.ndim == 2:
        return -(target * factor * log_p).sum(1).mean()
    if margin:
        log_p = F.log_softmax(logits - margin * F.one_hot(target, logits.shape[1]), dim=1)
    return -(factor * log_p).gather(1, target[:, None]).mean()


def focal_tversky(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the mean over the classes of (1 - TI)^0.75, with TI from the batch's probabilities; logits (N, C), hard
    targets (N,)."""
    p, true = logits.softmax(1), F.one_hot(target, logits.shape[1])
    hit, missed, wrong = (p * true).sum(0), ((1 - p) * true).sum(0), (p * (1 - true)).sum(0)
    index = (hit + 1) / (hit + TVERSKY * missed + (1 - TVERSKY) * wrong + 1)
    # Kept above zero as in `focal`: the slope of x^0.75 at 0 is infinite.
    return ((1 - index).clamp_min(torch.finfo(p.dtype).eps) ** TVERSKY_FOCUS).mean()


def focal_margin(logits: Tensor, target: Tensor, gamma: float, shift: float) -> Tensor:
    """Compute F(z'): the focal loss of scaled cosines (N, C), the true class's lower by `shift` = s m; hard targets
    (N,)."""
    return focal(logits - shift * F.one_hot(target, logits.shape[1]), target, gamma)


def hybrid(logits: Tensor, target: Tensor, gamma: float, margin: float, weight: float) -> Tensor:
    """Compute lambda FM(z) + (1 - lambda) FT(p), where lambda is `weight`; logits (N, C), hard targets (N,)."""
    return weight * focal(logits, target, gamma, margin) + (1 - weight) * focal_tversky(logits, target)
