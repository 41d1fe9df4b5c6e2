"""From decoded images to batches that a model takes: evaluation crops, and normalisation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torchvision.transforms import v2

from flowers_bench.data.dataset import Images

#: The share of the stored image's shortest side that the centre crop keeps: 224 of 256, as ImageNet evaluation does.
CROP_RATIO = 224 / 256


def stored_side(image_size: int) -> int:
    """Shortest side, in pixels, at which decoded images are kept for a model input of `image_size`."""
    return round(image_size / CROP_RATIO)


def evaluation_transform(image_size: int) -> Callable[[Tensor], Tensor]:
    """uint8 (3, H, W) to uint8 (3, S, S): resize the shortest side, crop the centre.

    A square image no larger than the input is resized whole: small crops have no margin to cut away.
    """
    resize = v2.Resize(stored_side(image_size), antialias=True)
    whole = v2.Resize((image_size, image_size), antialias=True)
    crop = v2.CenterCrop(image_size)

    def transform(image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        if height == width and height <= image_size:
            return image if height == image_size else whole(image)
        return crop(resize(image))

    return transform


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
        images = images.to(self.device, memory_format=torch.channels_last)
        return (images.float() - self.mean) * self.scale


def evaluation_batches(images: Images, image_size: int, normalize: Normalizer, batch_size: int) -> Iterator[Tensor]:
    """All images in order, ready for the model."""
    transform = evaluation_transform(image_size)
    for start in range(0, len(images), batch_size):
        stop = min(start + batch_size, len(images))
        yield normalize(torch.stack([transform(images[i]) for i in range(start, stop)]))
