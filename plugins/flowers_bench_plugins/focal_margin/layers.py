"""A classifier whose logits are scaled cosines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CosineLinear(nn.Module):
    """A classifier without biases or norms: scale * cos(x, w_c) (Wang et al. 2018, arXiv:1801.09414, equation 3).

    Args:
        embedding_dim: D.
        num_classes: C.
        scale: s; the logits lie in [-s, s].
    """

    def __init__(self, embedding_dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        self.scale = scale
        nn.init.normal_(self.weight)  # only the directions count, which are uniform on the sphere

    def forward(self, embedding: Tensor) -> Tensor:
        """Compute scaled cosines (N, C) of embeddings (N, D)."""
        return self.scale * F.linear(F.normalize(embedding, dim=-1), F.normalize(self.weight, dim=-1))

    def extra_repr(self) -> str:
        """Describe shape and scale, for `print`."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, scale={self.scale:g}"
