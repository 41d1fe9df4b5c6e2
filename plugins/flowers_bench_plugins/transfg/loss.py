"""The contrast between a batch's embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def contrast(embedding: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Compute the second term of the loss: embeddings (N, D), labels (N,) to a scalar."""
    unit = F.normalize(embedding, dim=1)
    alike = unit @ unit.T
    same = labels[:, None] == labels
    return torch.where(same, 1 - alike, (alike - margin).clamp_min(0)).sum() / len(labels) ** 2
