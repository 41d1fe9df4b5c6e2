"""Decoded images on a GPU: copied there once, where they fit, so that drawing them there copies nothing more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowers_bench.contract.dataset import Images

#: How much of a device's free memory images may take: the rest is for models, and for other trials.
SHARE = 0.25


@dataclass(frozen=True)
class OnDevice:
    """Images in a device's memory: `images[i]` is a uint8 tensor (3, H, W) there, a view; channels lie beside each other.

    Attributes:
        pixels: of one image after the other, uint8 (bytes,).
        index: offset, height and width of each image, int64 (N, 3).
    """

    pixels: Tensor
    index: np.ndarray

    @classmethod
    def copied(cls, images: Images, device: torch.device) -> OnDevice:
        """Copy all images to a device."""
        sizes = np.array([images[i].shape[1:] for i in range(len(images))], np.int64).reshape(-1, 2)
        ends = np.cumsum(3 * sizes.prod(1))
        index = np.column_stack([ends - 3 * sizes.prod(1), sizes])
        pixels = torch.empty(int(ends[-1]) if len(ends) else 0, dtype=torch.uint8, device=device)
        copy = cls(pixels, index)
        for i in range(len(images)):
            copy[i].copy_(images[i])
        return copy

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: int) -> Tensor:
        offset, height, width = self.index[index].tolist()
        return self.pixels[offset : offset + 3 * height * width].view(height, width, 3).permute(2, 0, 1)


def fit_on(device: torch.device, splits: Iterable[Images]) -> bool:
    """Say whether the images of all splits take at most `SHARE` of a GPU's free memory."""
    room = SHARE * free_bytes(device)
    return sum(images[i].numel() for images in splits for i in range(len(images))) <= room


def free_bytes(device: torch.device) -> int:
    """Say how much of a GPU's memory nobody has, in bytes."""
    free, _ = torch.cuda.mem_get_info(device)
    return free
