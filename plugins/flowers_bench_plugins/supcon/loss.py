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
        return supcon(self.projected(output), target, self.temperature)

    def projected(self, output: Output) -> Tensor:
        """Compute z, of length 1: (N, projection_dim)."""
        return F.normalize(self.projection(output.embedding), dim=1)


class WithMemory(SupervisedContrastive):
    """The same, which also compares a batch with the last `memory` images before it, as they were projected then.

    They are buffers, so that a trial that was interrupted continues with them.
    """

    kept: Tensor
    kept_labels: Tensor
    place: Tensor

    def __init__(self, embedding_dim: int, projection_dim: int, temperature: float, memory: int) -> None:
        super().__init__(embedding_dim, projection_dim, temperature)
        self.register_buffer("kept", torch.zeros(memory, projection_dim))
        self.register_buffer("kept_labels", torch.full((memory,), NOBODY))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def forward(self, output: Output, target: Tensor) -> Tensor:
        """Compute the loss of a batch, and keep the batch in place of the oldest images."""
        z = self.projected(output)
        # Of a copy, since autograd reads it again after it has changed.
        loss = supcon(z, target, self.temperature, self.kept.clone(), self.kept_labels)
        size = len(self.kept)
        newest, labels = z.detach()[-size:], target[-size:]
        places = (self.place + torch.arange(len(labels), device=z.device)) % size
        self.kept[places] = newest.to(self.kept.dtype)
        self.kept_labels[places] = labels
        self.place.add_(len(labels)).remainder_(size)
        return loss


#: The label of a place of the memory that nothing was kept in yet.
NOBODY = -1


def supcon(
    z: Tensor, labels: Tensor, temperature: float, memory: Tensor | None = None, memory_labels: Tensor | None = None
) -> Tensor:
    """Compute the mean over images that have a positive, in the batch or in memory; zero where none has.

    Args:
        z: unit vectors (N, D).
        labels: (N,).
        temperature: T.
        memory: further unit vectors (Q, D) that images are compared with.
        memory_labels: theirs (Q,), `NOBODY` where there is none.
    """
    others, theirs = z, labels
    if memory is not None and memory_labels is not None:
        others, theirs = torch.cat([z, memory]), torch.cat([labels, memory_labels])
    itself = torch.eye(len(z), len(others), dtype=torch.bool, device=z.device)
    positive = (labels[:, None] == theirs) & ~itself
    similarity = (z @ others.T / temperature).masked_fill(itself | (theirs == NOBODY), -torch.inf)
    log_share = (similarity - similarity.logsumexp(1, keepdim=True)).masked_fill(~positive, 0.0)
    count = positive.sum(1)
    losses = -log_share.sum(1) / count.clamp_min(1)
    return losses.sum() / (count > 0).sum().clamp_min(1)
