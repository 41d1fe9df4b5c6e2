"""Pooling by attention maps, and by random ones in their place."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench.nn import Output

#: What is added under the root, and the length of what the classifier sees.
UNDER_ROOT, LENGTH = 1e-6, 100.0


def attention_pooling(features: Tensor, maps: Tensor) -> Tensor:
    """Compute features (N, D, H, W) pooled where maps (N, M, H, W) look: (N, M * D), with signed roots, of length 1."""
    places = features.shape[2] * features.shape[3]
    pooled = (maps.flatten(2) @ features.flatten(2).mT / places).flatten(1)
    return F.normalize(pooled.sign() * (pooled.abs() + UNDER_ROOT).sqrt(), dim=1)


class AttentionPooling(nn.Module):
    """A backbone's features, reduced, pooled by attention and classified: images (N, 3, S, S) to `Output`.

    In training `more["effect"]` (N, C) is what attention adds to the logits over random attention.

    Args:
        backbone: gives a feature map, and nothing more.
        found: its channels.
        channels: D.
        maps: M.
        num_classes: C.
    """

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, found: int, channels: int, maps: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.reduce = _convolution(found, channels)
        self.attention = _convolution(found, maps)
        self.classifier = nn.Linear(maps * channels, num_classes, bias=False)

    def forward(self, images: Tensor) -> Output:
        """Compute features, attention, pooling and classifier."""
        found = self.backbone.forward_features(images)  # type: ignore[operator]
        features, maps = self.reduce(found), self.attention(found)
        # Roots need more digits than autocast leaves.
        with torch.autocast(images.device.type, enabled=False):
            if features.dtype != torch.float64:
                features, maps = features.float(), maps.float()
            embedding = attention_pooling(features, maps)
            logits = self.classifier(LENGTH * embedding)
            if not self.training:
                return Output(logits, embedding)
            anywhere = torch.empty_like(maps).uniform_(0, 2)
            other = self.classifier(LENGTH * attention_pooling(features, anywhere))
        return Output(logits, embedding, more={"effect": logits - other})


def _convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
