"""The loss of an episode."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def scores(queries: Tensor, prototypes: Tensor, distance: str) -> Tensor:
    """Compute -d of queries (Q, D) and prototypes (n, D): (Q, n)."""
    if distance == "cosine":
        return F.normalize(queries, dim=1) @ F.normalize(prototypes, dim=1).T
    return -(queries[:, None] - prototypes[None]).square().sum(-1)


def prototypical_loss(embedding: Tensor, k_shot: int, per_class: int, distance: str, temperature: float) -> Tensor:
    """Compute the loss of one episode: embedding (n * per_class, D), class by class, of each class first its `k_shot`
    support images."""
    points = embedding.view(-1, per_class, embedding.shape[1])
    prototypes = points[:, :k_shot].mean(1)
    queries = points[:, k_shot:].flatten(0, 1)
    truth = torch.arange(len(points), device=points.device).repeat_interleave(per_class - k_shot)
    return F.cross_entropy(scores(queries, prototypes, distance) / temperature, truth)
