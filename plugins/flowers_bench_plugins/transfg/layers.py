"""A transformer's blocks of which the last sees chosen patches alone."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn


def attends_as_usual(block: Any) -> bool:
    """Tell whether a block normalises, and then attends by timm's `Attention`."""
    return hasattr(block, "norm1") and type(getattr(block, "attn", None)) is Attention


def attention_of(block: Any, tokens: Tensor) -> Tensor:
    """Compute the attention of a block that is given tokens (N, T, D): (N, heads, T, T), without dropout."""
    attention = block.attn
    n, count, _ = tokens.shape
    parts = attention.qkv(block.norm1(tokens)).reshape(n, count, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys = attention.q_norm(parts[0]), attention.k_norm(parts[1])
    weights: Tensor = (attention.scale * queries @ keys.mT).softmax(-1)
    return weights


class SelectedParts(nn.Sequential):
    """A transformer's blocks, of which the last sees a patch for each head (He et al. 2022, arXiv:2103.07976).

    Takes the place of a timm VisionTransformer's `blocks`: tokens (N, prefix + patches, D) to (N, prefix + heads, D).

    Args:
        blocks: the transformer's blocks, at least two; they keep their names (`0`, `1`, ...).
        prefix: how many tokens stand before the patches, the class token first.
    """

    def __init__(self, blocks: nn.Sequential, prefix: int) -> None:
        super().__init__(*blocks)
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        """Run all blocks but the last, choose patches, and run the last one."""
        *before, last = self
        looked: Tensor | None = None
        for block in before:
            with torch.no_grad():
                attention = attention_of(block, tokens)
                looked = attention if looked is None else attention @ looked
            tokens = block(tokens)
        assert looked is not None
        chosen = self.prefix + looked[:, :, 0, self.prefix :].argmax(2)
        parts = tokens.gather(1, chosen[:, :, None].expand(-1, -1, tokens.shape[2]))
        found: Tensor = last(torch.cat([tokens[:, : self.prefix], parts], dim=1))
        return found
