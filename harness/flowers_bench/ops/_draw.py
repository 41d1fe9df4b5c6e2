"""Draws images by parameters, in whole numbers: cut out, resize with antialiasing, mirror and colour.

Every device and every number of threads gives the same bits, those of `draw_reference`. The result is torchvision's `resized_crop`
and `horizontal_flip` to within two levels of 255, and that of its three colour changes where these clamp nothing in between.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowers_bench.contract.drawing import ImageParameters
from flowers_bench.ops import _build

#: Bits behind the point, of weights of pixels, of factors of colours, and of the shares that make a grey: as csrc/draw/parameters.h.
WEIGHT_BITS, COLOUR_BITS, GREY_BITS = 14, 11, 16
#: Red, green and blue in a grey, in parts of 2^GREY_BITS: 0.299, 0.587, 0.114.
GREY = (19595, 38470, 7471)
#: Factors are 16-bit numbers; sums have 32 bits.
LARGEST_FACTOR, LARGEST_ADDED = (2**15 - 1) / 2**COLOUR_BITS, 4096


def draw(images: Sequence[Tensor], parameters: ImageParameters, side: int) -> Tensor:
    """Draw N images, uint8 (3, H, W) each, on one device, to uint8 (N, 3, side, side) there, channels-last.

    Raises:
        ValueError: an image is no such tensor, a box does not lie in its image, or a factor is too large.
    """
    rows = _packed(parameters, len(images))
    given = [_interleaved(image) for image in images]
    _check(given, rows, side)
    operators = _build.draw_operators(given[0].device.type if given else "cpu")
    if operators is None:
        return draw_reference(given, rows, side)
    drawn: Tensor = operators.draw(given, torch.from_numpy(rows), side)
    return drawn


def draws_on(device: str) -> bool:
    """Say whether compiled code draws images that lie on this device type, "cpu" or "cuda"; compile it first where it is not."""
    return _build.draw_operators(device) is not None


def _packed(parameters: ImageParameters, count: int) -> np.ndarray:
    """Write parameters as the operator takes them, int32 (N, 18): box, mirrored, matrix, what is added, share of the mean."""
    rows = np.zeros((count, 18), np.int32)
    rows[:, :4], rows[:, 4] = parameters.boxes, parameters.mirrored
    rows[:, 5:14:4] = 1 << COLOUR_BITS
    for columns, values, largest in (
        (slice(5, 14), parameters.matrix, LARGEST_FACTOR),
        (slice(14, 17), parameters.added, LARGEST_ADDED),
        (slice(17, 18), parameters.of_mean, LARGEST_FACTOR),
    ):
        if values is not None:
            if not np.all(np.abs(values) <= largest):
                raise ValueError(f"draw: what changes colours must be between -{largest} and {largest}")
            rows[:, columns] = np.rint(values * (1 << COLOUR_BITS)).reshape(count, -1)
    return rows


def _interleaved(image: Tensor) -> Tensor:
    """Give the image with its channels beside each other in memory: itself, where it lies so."""
    if image.ndim != 3 or image.shape[0] != 3 or image.dtype != torch.uint8:
        raise ValueError(f"draw: expected an image uint8 (3, H, W), not {image.dtype} {tuple(image.shape)}")
    channel, _, column = image.stride()
    if channel == 1 and (column == 3 or image.shape[2] == 1):
        return image
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1)


def _check(images: Sequence[Tensor], rows: np.ndarray, side: int) -> None:
    sizes = np.array([image.shape[1:] for image in images], np.int64).reshape(-1, 2)
    corner, extent = rows[:, :2], rows[:, 2:4]
    if not ((corner >= 0).all() and (extent > 0).all() and (corner + extent <= sizes).all()):
        raise ValueError("draw: a box does not lie in its image: top, left at least 0, height, width at least 1")
    if not 0 < side < 2**15:
        raise ValueError(f"draw: side {side} is not between 1 and {2**15 - 1}")


def draw_reference(images: Sequence[Tensor], rows: np.ndarray, side: int) -> Tensor:
    """Compute what the operator does by PyTorch's operations, to the bit: sums of whole numbers are exact in floating point."""
    drawn = [_drawn(image, row.tolist(), side) for image, row in zip(images, rows, strict=True)]
    found = torch.stack(drawn) if drawn else torch.empty(0, 3, side, side, dtype=torch.uint8)
    return found.contiguous(memory_format=torch.channels_last)


def _drawn(image: Tensor, row: list[int], side: int) -> Tensor:
    top, left, height, width, mirrored = row[:5]
    # Sums of weighted pixels are below 2^24, which float32 holds, unless its products are allowed to be less exact.
    usual = image.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest"
    exact = torch.float32 if usual else torch.float64
    down, across = (_weights(size, side).to(image.device, exact) for size in (height, width))
    pixels = image[:, top : top + height, left : left + width].to(exact)
    pixels = _rounded(down @ pixels, WEIGHT_BITS)
    pixels = _rounded(pixels @ across.T, WEIGHT_BITS).double()
    if mirrored:
        pixels = pixels.flip(2)
    channels = [int(total) for total in pixels.sum((1, 2))]
    grey = sum(share * total for share, total in zip(GREY, channels, strict=True))
    mean = (2 * grey // side**2 + 1) >> 1
    added = (mean * row[17] + (1 << (GREY_BITS - 1))) >> GREY_BITS
    matrix = pixels.new_tensor(row[5:14]).reshape(3, 3)
    offset = pixels.new_tensor([value + added for value in row[14:17]])
    coloured = (matrix @ pixels.flatten(1)).add_(offset[:, None]).reshape(3, side, side)
    return _rounded(coloured, COLOUR_BITS).clamp_(0, 255).to(torch.uint8)


def _rounded(sums: Tensor, bits: int) -> Tensor:
    return sums.add_(1 << (bits - 1)).mul_(0.5**bits).floor_()


def _weights(size: int, side: int) -> Tensor:
    """Compute the weights of `size` pixels in each of `side`, float64 (side, size): whole numbers, rows of which add up to
    2^WEIGHT_BITS. A triangle has them, as wide as a pixel of the coarser line on either side."""
    # Distances in 1 / (2 side) pixels. Rounded are sums, and weights are their differences.
    places = (2 * np.arange(size) + 1) * side
    centres = (2 * np.arange(side) + 1) * size
    raw = np.maximum(0, 2 * max(size, side) - np.abs(places - centres[:, None]))
    sums = np.cumsum(raw, 1)
    total = sums[:, -1:]
    rounded = ((sums << (WEIGHT_BITS + 1)) + total) // (2 * total)
    return torch.from_numpy(np.diff(rounded, axis=1, prepend=0).astype(np.float64))
