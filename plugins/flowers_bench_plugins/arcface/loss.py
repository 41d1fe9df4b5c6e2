"""The angular margin."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def arcface(logits: Tensor, target: Tensor, scale: float, margin: float) -> Tensor:
    """Compute cross-entropy of scaled cosines (N, C), the true class's at an angle larger by `margin`; hard targets (N,)."""
    cosine = (logits / scale).gather(1, target[:, None])
    # Kept from 1 and -1, where the sine's slope is infinite.
    sine = (1 - cosine.square()).clamp_min(torch.finfo(cosine.dtype).eps).sqrt()
    farther = cosine * math.cos(margin) - sine * math.sin(margin)
    beyond = cosine <= math.cos(math.pi - margin)
    moved = torch.where(beyond, cosine - margin * math.sin(margin), farther)
    return F.cross_entropy(logits.scatter(1, target[:, None], scale * moved), target)
