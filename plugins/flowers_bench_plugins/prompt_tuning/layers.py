"""Learned tokens among a transformer's input."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class PromptedBlocks(nn.Sequential):
    """A transformer's blocks with learned tokens among their input (Jia et al. 2022, arXiv:2203.12119).

    Takes the place of a timm VisionTransformer's `blocks`. The prompts stand between the prefix tokens (class,
    registers) and the patches, and are gone from the output: whatever follows, such as norm and pooling, sees the
    tokens that it saw before. With no prompts it computes exactly what the blocks computed.

    Args:
        blocks: the transformer's blocks; they keep their names (`0`, `1`, ...).
        length: p, the number of prompts.
        dim: D, the token width.
        prefix: how many tokens stand before the patches.
        deep: every block gets prompts of its own, in place of the previous block's output for its prompts; otherwise
            only the first block gets prompts, and its output for them is passed on.
        bound: prompts start uniform in [-bound, bound].
    """

    def __init__(self, blocks: nn.Sequential, length: int, dim: int, prefix: int, deep: bool, bound: float) -> None:
        super().__init__(*blocks)
        self.prompts = nn.Parameter(torch.empty(len(blocks) if deep else 1, length, dim))
        self.prefix = prefix
        nn.init.uniform_(self.prompts, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        """Run the blocks with prompts among the tokens: (N, prefix + patches, D) to the same."""
        before, after = tokens[:, : self.prefix], tokens[:, self.prefix :]
        length = self.prompts.shape[1]
        for index, block in enumerate(self):
            if index < len(self.prompts):
                # `len(tokens)` would become a constant in an exported graph.
                prompts = self.prompts[index].expand(tokens.shape[0], -1, -1)
            mixed = block(torch.cat([before, prompts, after], dim=1))
            before, prompts, after = mixed.split([self.prefix, length, after.shape[1]], dim=1)
        return torch.cat([before, after], dim=1)
