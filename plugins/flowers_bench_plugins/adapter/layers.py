"""A bottleneck, behind a layer or beside it, and where a transformer gets adapters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from flowers_bench import UsageError


class Bottleneck(nn.Sequential):
    """Two linear layers with few values between them: W_up s(W_down h + b_down) + b_up, which starts as zero.

    Args:
        dim: D, of its input and output.
        width: m, of what is between.
        activation: s.
    """

    def __init__(self, dim: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.down = nn.Linear(dim, width)
        self.activation = activation
        self.up = nn.Linear(width, dim)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)


class Adapted(nn.Module):
    """A layer with an adapter behind it: h + bottleneck(h), with h = layer(x) (Houlsby et al. 2019, arXiv:1902.00751)."""

    def __init__(self, layer: nn.Module, bottleneck: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.bottleneck = bottleneck

    def forward(self, x: Tensor) -> Tensor:
        """Compute h + bottleneck(h): (..., D)."""
        h = self.layer(x)
        adapted: Tensor = h + self.bottleneck(h)
        return adapted


class Beside(nn.Module):
    """A layer with a bottleneck beside it: layer(x) + scale * bottleneck(x) (Chen et al. 2022, arXiv:2205.13535)."""

    def __init__(self, layer: nn.Module, bottleneck: nn.Module, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.bottleneck = bottleneck
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Compute layer(x) + scale * bottleneck(x): (..., D)."""
        both: Tensor = self.layer(x) + self.scale * self.bottleneck(x)
        return both


def add_adapters(backbone: Any, places: Sequence[str], width: int) -> None:
    """Put an adapter behind what each block's sublayers add to its input.

    Args:
        backbone: a timm VisionTransformer.
        places: timm's names of the layer scales, which are the last layers of the sublayers: `ls1`, `ls2`.
        width: m.

    Raises:
        UsageError: a block has no such place.
    """
    for name, block in backbone.blocks.named_children():
        for place in places:
            if not hasattr(block, place):
                raise UsageError(f"block {name} ({type(block).__name__}) has no place {place} for an adapter.")
            bottleneck = Bottleneck(backbone.embed_dim, width, nn.GELU())
            setattr(block, place, Adapted(getattr(block, place), bottleneck))
