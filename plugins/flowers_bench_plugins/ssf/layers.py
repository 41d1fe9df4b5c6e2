"""A scale and a shift behind a layer, and where a transformer gets them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench import UsageError


class ScaleShift(nn.Module):
    """A layer whose output is scaled and shifted: g * layer(x) + b (Lian et al. 2022, arXiv:2210.08823).

    Args:
        layer: gives (..., D).
        dim: D.
    """

    def __init__(self, layer: nn.Module, dim: int) -> None:
        super().__init__()
        self.layer = layer
        self.scale = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Compute g * layer(x) + b: (..., D)."""
        scaled: Tensor = self.layer(x) * self.scale + self.shift
        return scaled

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Build the plain layer that computes the same, of a linear layer or a layer norm with a scale."""
        merged: Any = copy.deepcopy(self.layer)
        merged.weight.mul_(self.scale if merged.weight.ndim == 1 else self.scale[:, None])
        bias = self.shift if merged.bias is None else merged.bias * self.scale + self.shift
        merged.bias = nn.Parameter(bias.clone(), requires_grad=False)
        plain: nn.Module = merged
        return plain


def scale_and_shift(backbone: Any) -> None:
    """Put a `ScaleShift` in place of the layers of a timm VisionTransformer, and one behind its patch embedding.

    Raises:
        UsageError: it lacks one of the usual layers.
    """
    last = "fc_norm" if isinstance(backbone.norm, nn.Identity) else "norm"
    inside = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    paths = [f"blocks.{name}.{path}" for name, _ in backbone.blocks.named_children() for path in inside]
    for path in ("patch_embed.norm", *paths, last):
        try:
            layer = backbone.get_submodule(path)
        except AttributeError:
            raise UsageError(f"{type(backbone).__name__} has no layer {path} to scale and shift.") from None
        backbone.set_submodule(path, ScaleShift(layer, getattr(layer, "out_features", backbone.embed_dim)))
