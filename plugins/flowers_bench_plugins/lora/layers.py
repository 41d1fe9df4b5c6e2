"""The low-rank update of a linear layer, and where a transformer gets one."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flowers_bench import UsageError


class LowRank(nn.Module):
    """A linear layer plus a learned low-rank update: W x + (alpha / r) B A x (Hu et al. 2021, arXiv:2106.09685).

    B starts at zero, so that the layer begins as the plain one. A layer that computes several projections at once
    (timm's fused query, key and value) is updated by chunks of its output, each with an A and a B of its own.

    Args:
        linear: W, frozen here.
        rank: r.
        alpha: the update's scale, before it is divided by the rank.
        chunks: into how many equal chunks the output is divided.
        adapted: which of them get an update.
    """

    chosen: Tensor

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, chunks: int, adapted: Sequence[int]) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        self.chunks = chunks
        self.a = nn.Parameter(torch.empty(len(adapted), rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(len(adapted), linear.out_features // chunks, rank))
        self.register_buffer("chosen", torch.tensor(list(adapted)), persistent=False)
        bound = linear.in_features**-0.5  # the same as in torch's own linear layer, and in loralib
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the updated layer's output: (..., in) to (..., out)."""
        low = torch.einsum("...i,kri->...kr", x, self.a)
        update = self.scale * torch.einsum("...kr,kor->...ko", low, self.b)
        plain = self.linear(x).unflatten(-1, (self.chunks, -1))
        adapted: Tensor = plain.index_add(-2, self.chosen, update.to(plain.dtype)).flatten(-2)
        return adapted

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Build one plain linear layer that computes the same: the technique costs nothing once it is trained."""
        merged = copy.deepcopy(self.linear)
        merged.weight.unflatten(0, (self.chunks, -1)).index_add_(0, self.chosen, self.scale * self.b @ self.a)
        return merged


def adapt_attention(blocks: nn.Module, rank: int, alpha: float, thirds: Sequence[int], output: bool) -> None:
    """Put a `LowRank` in place of each block's `attn.qkv`, and with `output` of its `attn.proj`.

    Args:
        blocks: those of a vision transformer.
        thirds: which of query (0), key (1) and value (2) get an update.

    Raises:
        UsageError: a block has no attention that computes the three by one linear layer.
    """
    for name, block in blocks.named_children():
        attention: Any = getattr(block, "attn", None)
        if not isinstance(getattr(attention, "qkv", None), nn.Linear):
            raise UsageError(f"block {name} ({type(block).__name__}) has no attention with a linear layer `qkv`.")
        attention.qkv = LowRank(attention.qkv, rank, alpha, chunks=3, adapted=thirds)
        if output:
            attention.proj = LowRank(attention.proj, rank, alpha, chunks=1, adapted=(0,))
