"""A classifier with several centres for each class, whose logits are scaled cosines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SubCenters(nn.Module):
    """A classifier with K centres for each class: scale * max over k of cos(x, w_ck) (Deng et al. 2020, equation 2).

    Args:
        embedding_dim: D.
        num_classes: C.
        centers: K.
        scale: s; the logits lie in [-s, s].
    """

    def __init__(self, embedding_dim: int, num_classes: int, centers: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, centers, embedding_dim))
        self.scale = scale
        # Only the directions count; short vectors turn faster at the same rate. As in the authors' code.
        nn.init.normal_(self.weight, std=0.01)

    def forward(self, embedding: Tensor) -> Tensor:
        """Compute scaled cosines (N, C) of embeddings (N, D)."""
        centers = F.normalize(self.weight, dim=-1).flatten(0, 1)
        cosines = F.linear(F.normalize(embedding, dim=-1), centers)
        nearest: Tensor = cosines.unflatten(1, self.weight.shape[:2]).amax(2)
        return self.scale * nearest

    def extra_repr(self) -> str:
        """Describe shape and scale, for `print`."""
        classes, centers, dim = self.weight.shape
        return f"{dim}, {classes}, centers={centers}, scale={self.scale:g}"
