"""Heads on a CNN's stages, and the step that trains them one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench import Batch, UsageError
from flowers_bench.nn import Output


def stage_maps(backbone: Any, images: Tensor, count: int) -> list[Tensor]:
    """Compute the feature maps (N, C, H, W) of the last `count` stages; the last is what `forward_features` gives."""
    last, maps = backbone.forward_intermediates(images, indices=count)
    return [*maps[:-1], last]


def stage_channels(backbone: nn.Module, count: int, image_size: int) -> list[int]:
    """Measure how many channels the feature maps of the last `count` stages have. Raises `UsageError` where there are fewer."""
    blank = next(backbone.parameters()).new_zeros(1, 3, image_size, image_size)
    try:
        with torch.no_grad():
            return [found.shape[1] for found in stage_maps(backbone.eval(), blank, count)]
    except (AttributeError, AssertionError) as error:  # timm's, of a network that does not give them
        raise UsageError(
            f"{type(backbone).__name__} does not give feature maps of {count} stages (timm's forward_intermediates). Choose a CNN "
            "such as --backbone resnet18 or convnext_tiny."
        ) from error


class StageHeads(nn.Module):
    """A CNN with a head on each of its last S stages, and one on all: images (N, 3, H, W) to `Output`.

    The embedding is [V_L-S+1, ..., V_L], `more["stage1"]` to `more["stageS"]` (N, C) are the stages' y_l: each a tensor of its own, so
    that a loss of one gives the others no gradient, not even zero. Logits are y in training; in
    evaluation the mean of y and all y_l if `combined`.

    Args:
        backbone: gives feature maps, and nothing more.
        channels: of the last S stages' maps.
        num_classes: C.
        combined: whether all predict together.
    """

    def __init__(self, backbone: nn.Module, channels: Sequence[int], num_classes: int, combined: bool) -> None:
        super().__init__()
        self.backbone = backbone
        half = max(4, channels[-1] // 4)
        self.stage_blocks = nn.ModuleList(_block(found, half) for found in channels)
        self.stage_heads = nn.ModuleList(_head(2 * half, half, num_classes) for _ in channels)
        self.whole_head = _head(2 * half * len(channels), half, num_classes)
        self.combined = combined

    def forward(self, images: Tensor) -> Output:
        """Compute every V_l, y_l and y."""
        maps = stage_maps(self.backbone, images, len(self.stage_blocks))
        vectors = [block(found).amax((2, 3)) for block, found in zip(self.stage_blocks, maps, strict=True)]
        stages = [head(one) for head, one in zip(self.stage_heads, vectors, strict=True)]
        embedding = torch.cat(vectors, dim=1)
        logits = self.whole_head(embedding)
        if self.combined and not self.training:
            logits = torch.stack([*stages, logits]).mean(0)
        return Output(logits, embedding, more={f"stage{place}": found for place, found in enumerate(stages, 1)})


def _block(channels: int, half: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, half, 1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(),
        nn.Conv2d(half, 2 * half, 3, padding=1, bias=False),
        nn.BatchNorm2d(2 * half),
        nn.ReLU(),
    )


def _head(features: int, hidden: int, num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.BatchNorm1d(features),
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ELU(),
        nn.Linear(hidden, num_classes),
    )


def jigsaw(images: Tensor, grid: int) -> Tensor:
    """Divide images (N, C, S, S) into grid x grid pieces, and put them together in another order, by chance, the same for all images.

    Where S is no multiple of `grid`, what is left over at the right and at the bottom stays where it is.
    """
    n, channels, side = images.shape[:3]
    piece = side // grid
    if grid == 1 or piece == 0:
        return images
    whole = piece * grid
    pieces = images[:, :, :whole, :whole].reshape(n, channels, grid, piece, grid, piece).transpose(3, 4).flatten(2, 3)
    order = torch.randperm(grid * grid).to(images.device)
    turned: Tensor = pieces[:, :, order].unflatten(2, (grid, grid)).transpose(3, 4).reshape(n, channels, whole, whole)
    if whole == side:
        return turned
    made = images.clone()
    made[:, :, :whole, :whole] = turned
    return made


def progressive_step(grids: Sequence[int]) -> Callable[[Batch], Tensor]:
    """Make the step that updates for each stage on images in grids[l] x grids[l] pieces, and then for all on whole images."""

    def step(batch: Batch) -> Tensor:
        for place, grid in enumerate(grids, 1):
            logits = batch.output(jigsaw(batch.images, grid)).more[f"stage{place}"]
            batch.backward(F.cross_entropy(logits, batch.targets))
            batch.update()
        loss = batch.loss()
        batch.backward(loss)
        batch.update()
        return loss

    return step
