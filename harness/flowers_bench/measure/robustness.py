"""Test images changed ever more: nine kinds of change at five levels, and a dataset's own factors where it knows them.

A change is drawn from its kind and the image's key alone: every technique and every seed meets the same images, and
from level to level an image is changed in the same way, only more. It happens to the stored uint8 image, before the
evaluation crop. What geometry brings in from outside is the image mirrored at its edges, not black. Whoever alters a change raises `store.STRESS_REVISION`.

The kinds and their way of having levels follow Hendrycks & Dietterich 2019 (arXiv:1903.12261), which has no geometry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from flowers_bench.contract.dataset import Dataset, Images, Split
from flowers_bench.store.identity import derive_seed

#: Of `elastic`: knots of the random field along twice the image's side. Few, so that nothing folds over.
KNOTS = 9


@dataclass(frozen=True)
class Change:
    """One kind of change.

    Attributes:
        levels: five strengths, weakest first.
        label: how a strength is written.
        apply: an image uint8 (3, H, W), a strength and the image's own random numbers to an image of the same shape.
    """

    levels: tuple[float, ...]
    label: str
    apply: Callable[[Tensor, float, np.random.Generator], Tensor]


def _mirrored(image: Tensor, warp: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply `warp` to the image with half an image of its reflection on every side, and cut it back to its own size."""
    height, width = image.shape[-2:]
    around = [width // 2, height // 2, width - width // 2, height - height // 2]
    padded = functional.pad(
        image, [min(p, d - 1) for p, d in zip(around, [width, height] * 2, strict=True)], padding_mode="reflect"
    )
    top, left = min(height // 2, height - 1), min(width // 2, width - 1)
    changed: Tensor = functional.crop(warp(padded), top, left, height, width)
    return changed


def _rotated(image: Tensor, degrees: float, rng: np.random.Generator) -> Tensor:
    way = float(rng.choice((-1, 1)))
    return _mirrored(image, lambda p: functional.rotate(p, way * degrees, InterpolationMode.BILINEAR))


def _scaled(image: Tensor, factor: float, rng: np.random.Generator) -> Tensor:
    height, width = image.shape[-2:]
    factor = factor if rng.random() < 0.5 else 1 / factor
    size = [max(1, round(height * factor)), max(1, round(width * factor))]
    found = functional.resize(image, size, antialias=True)
    left, top = max(0, width - size[1]), max(0, height - size[0])
    around = [left // 2, top // 2, left - left // 2, top - top // 2]
    changed: Tensor = functional.center_crop(functional.pad(found, around, padding_mode="reflect"), [height, width])
    return changed


def _shifted(image: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    turn = rng.uniform(0, 2 * np.pi)
    side = min(image.shape[-2:])
    shift = [round(share * side * float(np.cos(turn))), round(share * side * float(np.sin(turn)))]
    return _mirrored(image, lambda p: functional.affine(p, 0.0, shift, 1.0, [0.0, 0.0]))


def _tilted(image: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    right, bottom = image.shape[-1] - 1, image.shape[-2] - 1
    start = [[0, 0], [right, 0], [right, bottom], [0, bottom]]
    # Each corner goes outward, by its own share: the image still covers its whole frame.
    ways = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    end = np.round(start + ways * rng.uniform(0, share / 2, (4, 2)) * (right, bottom)).astype(int)
    changed: Tensor = functional.perspective(image, start, end.tolist(), InterpolationMode.BILINEAR)
    return changed


def _elastic(image: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    knots = torch.from_numpy(rng.standard_normal((1, 2, KNOTS, KNOTS), np.float32))

    def warp(padded: Tensor) -> Tensor:
        field = torch.nn.functional.interpolate(knots, padded.shape[-2:], mode="bicubic", align_corners=True)
        # Half of the padded image is 1 in these coordinates, and is as long as the image itself.
        field = field / field.square().sum(1).mean().sqrt() * share
        changed: Tensor = functional.elastic(padded, field.permute(0, 2, 3, 1), InterpolationMode.BILINEAR)
        return changed

    return _mirrored(image, warp)


def _blurred(image: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    sigma = share * min(image.shape[-2:])
    changed: Tensor = functional.gaussian_blur(image, [2 * int(np.ceil(3 * sigma)) + 1] * 2, [sigma, sigma])
    return changed


def _noisy(image: Tensor, deviation: float, rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), np.float32))
    return (image + 255 * deviation * noise).round().clamp(0, 255).to(torch.uint8)


def _occluded(image: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    height, width = image.shape[-2:]
    h, w = round(height * share**0.5), round(width * share**0.5)
    # Where the square lies within its room is the same at all levels.
    top, left = (round(float(place) * room) for place, room in zip(rng.random(2), (height - h, width - w), strict=True))
    changed: Tensor = functional.erase(image, top, left, h, w, torch.full((3, 1, 1), 128, dtype=torch.uint8))
    return changed


def _compressed(image: Tensor, quality: float, rng: np.random.Generator) -> Tensor:
    changed: Tensor = functional.jpeg(image.contiguous(), int(quality))
    return changed


CHANGES: Mapping[str, Change] = {
    "rotation": Change((10, 20, 40, 60, 90), "{:g}°", _rotated),
    "scale": Change((1.1, 1.25, 1.5, 1.75, 2.0), "×{:g}", _scaled),
    "translation": Change((0.05, 0.1, 0.15, 0.2, 0.3), "{:.0%}", _shifted),
    "perspective": Change((0.1, 0.2, 0.3, 0.4, 0.5), "{:.0%}", _tilted),
    "elastic": Change((0.01, 0.02, 0.03, 0.04, 0.055), "{:.1%}", _elastic),
    "blur": Change((0.005, 0.01, 0.015, 0.02, 0.03), "{:.1%}", _blurred),
    "noise": Change((0.04, 0.08, 0.12, 0.18, 0.26), "{:.0%}", _noisy),
    "occlusion": Change((0.05, 0.1, 0.2, 0.3, 0.4), "{:.0%}", _occluded),
    "jpeg": Change((50, 25, 15, 10, 5), "quality {:g}", _compressed),
}


def changed(image: Tensor, kind: str, strength: float, key: str) -> Tensor:
    """Change one image, uint8 (3, H, W), as `kind` changes the image of that key. The given image is not written to."""
    return CHANGES[kind].apply(image, strength, np.random.default_rng(derive_seed(0, "stress", kind, key)))


@dataclass(frozen=True)
class _Changed:
    """The images of a split, changed: `Images`."""

    split: Split
    kind: str
    strength: float

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Tensor:
        return changed(self.split.images[index], self.kind, self.strength, self.split.keys[index])


@dataclass(frozen=True)
class Condition:
    """One kind of change at one level.

    Attributes:
        kind: a key of `CHANGES`, or `factor NAME` of a dataset that draws its images again with a factor set.
        level: from 1, weakest first.
        value: the strength, in the kind's unit.
        label: the same as people read it.
        split: the images.
    """

    kind: str
    level: int
    value: float
    label: str
    split: Split


def conditions(dataset: Dataset) -> Iterator[Condition]:
    """List every kind and level of changes to a dataset's test images. Images are made when they are read."""
    for kind, change in CHANGES.items():
        for level, value in enumerate(change.levels, 1):
            images: Images = _Changed(dataset.test, kind, value)
            yield Condition(kind, level, value, change.label.format(value), replace(dataset.test, images=images))
    for factor, splits in dataset.factor_sweeps.items():
        for level, (value, split) in enumerate(splits.items(), 1):
            yield Condition(f"factor {factor}", level, value, f"{value:.3g}", split)
