"""Building blocks that techniques compose, so that a technique's own file can stay short."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Output:
    """What every model returns.

    Attributes:
        logits: (N, C).
        embedding: (N, D), the features that the classifier sees.
    """

    logits: Tensor
    embedding: Tensor


class Classifier(nn.Module):
    """A timm backbone with its classifier, as images (N, 3, H, W) to `Output`.

    Args:
        backbone: a timm model with `forward_features`, `forward_head` and `get_classifier`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Output:
        """Features once, then pooled (the embedding), then classified."""
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        embedding = self.backbone.forward_head(features, pre_logits=True)  # type: ignore[operator]
        return Output(self.backbone.get_classifier()(embedding), embedding)  # type: ignore[operator]


class L2Normalize(nn.Module):
    """Scales vectors to unit length along the last dimension."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return F.normalize(vectors, dim=-1)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that `inner` keeps."""
        return x + self.inner(x)


class Parallel(nn.Module):
    """The same input through several branches, concatenated over channels (dimension 1)."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, sum of the branches' channels, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def freeze(module: nn.Module) -> None:
    """No gradient for anything inside `module`. `train_mode` then keeps it in evaluation mode as well."""
    module.requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Training mode, except that a module whose parameters are all frozen stays in evaluation mode.

    A frozen batch norm that went on updating its running statistics would not be frozen, and a frozen layer with
    dropout would not be deterministic.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
