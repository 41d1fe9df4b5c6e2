"""The supervised contrastive loss, with the projection that only training sees."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench.nn import Output


class SupervisedContrastive(nn.Module):
    """The loss of embeddings (N, D) and hard targets (N,), whose projection is trained with the network.

    Args:
        embedding_dim: D.
        projection_dim: how many values the projection gives.
        temperature: T.
    """

    def __init__(self, embedding_dim: int, projection_dim: int, temperature: float) -> None:
        super().__init__()
        self.projection = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim), nn.ReLU(), nn.Linear(embedding_dim, projection_dim)
        )
        self.temperature = temperature

    def forward(self, output: Output, target: Tensor) -> Tensor:
        """Compute the loss of a batch."""
        return supcon(F.normalize(self.projection(output.embedding), dim=1), target, self.temperature)


def supcon(z: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Compute the mean over images that have a positive: unit vectors (N, D), labels (N,) to a scalar; zero where none has."""
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == labels) & ~itself
    similarity = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    log_share = (similarity - similarity.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    count = positive.sum(1)
    losses = -log_share.sum(1) / count.clamp_min(1)
    return losses.sum() / (count > 0).sum().clamp_min(1)
