"""From decoded images to batches that a model takes: evaluation crops, and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from flowers_bench.contract.dataset import Images
from flowers_bench.store.identity import derive_seed

if TYPE_CHECKING:
    from flowers_bench.data.drawing import ByParameters

#: The share of the stored image's shortest side that the centre crop keeps: 224 of 256, as ImageNet evaluation does.
CROP_RATIO = 224 / 256
#: Of an image longer than this many times its shortest side, only the middle is used. Resized whole, a line of 1 x 10,000
#: pixels would be one of 256 x 2,560,000.
LONGEST = 16


def stored_side(image_size: int) -> int:
    """Choose the shortest side, in pixels, at which decoded images are kept for a model input of `image_size`."""
    return round(image_size / CROP_RATIO)


def evaluation_transform(image_size: int) -> Callable[[Tensor], Tensor]:
    """Make the transform of evaluation, uint8 (3, H, W) to uint8 (3, S, S): resize the shortest side (of the `middle`),
    crop the centre.

    A square image no larger than the input is resized whole: small crops have no margin to cut away. Two of one size are
    equal.
    """
    return _EvaluationTransform(image_size)


@dataclass(frozen=True)
class _EvaluationTransform:
    image_size: int

    def __call__(self, image: Tensor) -> Tensor:
        image = middle(image)
        height, width = image.shape[-2:]
        size = [self.image_size, self.image_size]
        if height == width and height <= self.image_size:
            return image if height == self.image_size else functional.resize(image, size, antialias=True)
        resized = functional.resize(image, [stored_side(self.image_size)], antialias=True)
        cropped: Tensor = functional.center_crop(resized, size)
        return cropped


def whole_square(image_size: int) -> Callable[[Tensor], Tensor]:
    """Make the transform of evaluation with its margin left on, uint8 (3, H, W) to uint8 (3, R, R), R = `stored_side(image_size)`:
    what crops are cut from. Small images are enlarged to it."""
    return _WholeSquare(stored_side(image_size))


@dataclass(frozen=True)
class _WholeSquare:
    side: int

    def __call__(self, image: Tensor) -> Tensor:
        resized = functional.resize(middle(image), [self.side], antialias=True)
        cropped: Tensor = functional.center_crop(resized, [self.side, self.side])
        return cropped


def middle(image: Tensor) -> Tensor:
    """Give the image (3, H, W), or the middle of one that is more than `LONGEST` times as long as wide: a view."""
    limit = LONGEST * min(image.shape[-2:])
    if max(image.shape[-2:]) <= limit:
        return image
    for dimension in (-2, -1):
        cut = max(0, image.shape[dimension] - limit) // 2
        image = image.narrow(dimension, cut, image.shape[dimension] - 2 * cut)  # as much on either side
    return image


@dataclass(frozen=True)
class Augmented:
    """Training images as the model sees them: uint8 (3, S, S) each.

    Attributes:
        images: N decoded images.
        transform: draws one version of an image (of its `middle`), from torch's global generator.
        views: None: `self[i]` is a new version of image i each time. V: `self[i * V + v]` is version v of image i,
            always the same one.
        by_parameters: draws these versions, where the augmentation states parameters; None: `transform` does.
    """

    images: Images
    transform: Callable[[Tensor], Tensor]
    views: int | None = None
    by_parameters: ByParameters | None = None

    def __len__(self) -> int:
        return len(self.images) * (self.views or 1)

    def __getitem__(self, row: int) -> Tensor:
        if self.by_parameters is not None:
            return self.by_parameters.draw(np.array([row]), epoch=0)[0]
        if self.views is None:
            return self.transform(middle(self.images[row]))
        with torch.random.fork_rng(devices=()):
            # Of the CPU alone: `torch.manual_seed` would leave its mark on CUDA's generator, which dropout draws from.
            torch.default_generator.manual_seed(derive_seed(0, "view", row % self.views, row // self.views))
            return self.transform(middle(self.images[row // self.views]))

    def stacked(self, rows: Sequence[int] | np.ndarray) -> Tensor:
        """Draw rows (N,), uint8 (N, 3, S, S)."""
        if self.by_parameters is not None:
            return self.by_parameters.draw(np.asarray(rows), epoch=0)
        return torch.stack([self[int(row)] for row in rows])

    def rows(self, indices: np.ndarray, seed: int) -> np.ndarray:
        """Draw one row of each image (N,): the version that `seed` chooses."""
        if self.views is None or self.views == 1:
            return indices
        drawn = np.random.default_rng(seed).integers(0, self.views, len(self.images))
        rows: np.ndarray = indices * self.views + drawn[indices]
        return rows


class Normalizer:
    """uint8 (N, 3, H, W) to float32, scaled to [0, 1], minus mean, over standard deviation, channels-last.

    Attributes:
        mean, scale: (1, 3, 1, 1), so that (uint8 - mean) * scale is what comes out.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device) -> None:
        self.device = device
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1) * 255
        self.scale = 1 / (torch.tensor(std, device=device).view(1, 3, 1, 1) * 255)

    def __call__(self, images: Tensor) -> Tensor:
        """Normalise one batch."""
        # Of memory that is not page-locked, CUDA takes a copy before it returns. Of other devices that is not known.
        images = images.to(self.device, non_blocking=self.device.type == "cuda", memory_format=torch.channels_last)
        count, _, height, width = images.shape
        # Row by row: along three channels alone a processor's vectors have nothing to do, which takes twice as long.
        rows = images.permute(0, 2, 3, 1).reshape(count, height, 3 * width)
        mean, scale = (values.view(3).repeat(width) for values in (self.mean, self.scale))
        normalized = (rows.float() - mean).mul_(scale)
        return normalized.view(count, height, width, 3).permute(0, 3, 1, 2)

    def blank(self, image_size: int) -> Tensor:
        """Make one black image (1, 3, S, S), as the model takes them: to see what a model does with any."""
        return self(torch.zeros(1, 3, image_size, image_size, dtype=torch.uint8))


def evaluation_batches(
    images: Images, transform: Callable[[Tensor], Tensor], normalize: Normalizer, batch_size: int
) -> Iterator[Tensor]:
    """Give all images in order, in batches, ready for the model; `transform` makes each (3, S, S)."""
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        yield normalize(torch.stack([transform(images[i]) for i in range(start, stop)]))
