"""Features made of a vision transformer's tokens."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class OfTokens(nn.Module):
    """A vision transformer that gives class tokens of its last blocks (Oquab et al. 2024, arXiv:2304.07193).

    Args:
        transformer: timm's, with a class token.
        blocks: of how many blocks, the last one included.
        mean: whether the mean of the last block's patch tokens joins them.
    """

    def __init__(self, transformer: VisionTransformer, blocks: int, mean: bool) -> None:
        super().__init__()
        self.transformer = transformer
        self.blocks = blocks
        self.mean = mean

    def forward(self, images: Tensor) -> Tensor:
        """Compute the features, after the last norm: (N, 3, H, W) to (N, F)."""
        found = self.transformer.forward_intermediates(
            images, indices=self.blocks, norm=True, return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
        )
        taken = [prefix[:, 0] for patches, prefix in found]
        return torch.cat([*taken, found[-1][0].mean(1)] if self.mean else taken, dim=1)

    def get_classifier(self) -> nn.Module:
        """Give the classifier, as timm's networks do: there is none."""
        return nn.Identity()
