"""augment: each operation is one of its paper's, of a strength of its paper's, and erased boxes are as the paper draws them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from built import host
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.autoaugment import _apply_op

from flowers_bench import AugmentationContext

SIDE = 24
#: Müller & Hutter 2021, table 1 (the wide space): the strengths of each operation, and whether it has a sign.
STRENGTHS: dict[str, tuple[np.ndarray, bool]] = {
    "Identity": (np.zeros(1), False),
    "AutoContrast": (np.zeros(1), False),
    "Equalize": (np.zeros(1), False),
    "Rotate": (np.linspace(0, 135, 31), True),
    "Solarize": (np.linspace(255, 0, 31), False),
    "Color": (np.linspace(0, 0.99, 31), True),
    "Posterize": (np.round(8 - np.arange(31) / 5), False),
    "Contrast": (np.linspace(0, 0.99, 31), True),
    "Brightness": (np.linspace(0, 0.99, 31), True),
    "Sharpness": (np.linspace(0, 0.99, 31), True),
    "ShearX": (np.linspace(0, 0.99, 31), True),
    "ShearY": (np.linspace(0, 0.99, 31), True),
    "TranslateX": (np.linspace(0, 32, 31), True),
    "TranslateY": (np.linspace(0, 32, 31), True),
}
#: RandAugment's strength 9 of 30 by its narrower space: 0.3 of shears to 0.3, translations to 150 pixels of 331, turns to 30 degrees,
#: colours to 0.9, 4 bits less, and all levels.
STRENGTH_9 = {"ShearX": 0.09, "ShearY": 0.09, "TranslateX": 0.3 * 150 / 331 * SIDE, "TranslateY": 0.3 * 150 / 331 * SIDE,
              "Rotate": 9.0, "Posterize": 7.0, "Solarize": 178.5}  # fmt: skip


def built(name: str, **options: float) -> Callable[[Tensor], Tensor]:
    """An augmentation that neither crops nor changes colours before its own operation."""
    part = host().augmentations[name].value
    given = {"min_scale": 1.0, "jitter": 0.0, **options}
    return part.image(AugmentationContext(SIDE, 3, part.option_values(given)))


@functools.cache
def image() -> Tensor:
    return torch.from_numpy(np.random.RandomState(0).randint(20, 236, (3, SIDE, SIDE)).astype(np.uint8))


def candidates(space: dict[str, tuple[np.ndarray, bool]]) -> tuple[list[str], Tensor]:
    """What every operation makes of the image and of its mirror image, at every strength, by torchvision's older code: names, and
    pixels (M, 3, H, W)."""
    names, views = [], []
    for start in (image(), image().flip(2)):
        for name, (strengths, signed) in space.items():
            for strength in strengths:
                for sign in (1, -1) if signed else (1,):
                    magnitude = int(strength) if name == "Posterize" else float(sign * strength)
                    names.append(name)
                    views.append(_apply_op(start, name, magnitude, InterpolationMode.NEAREST, None))
    return names, torch.stack(views).short()


def matching(view: Tensor, names: list[str], views: Tensor) -> set[str]:
    """The operations that may have made a view: all but a hundredth of its pixels agree, to a step of rounding."""
    apart = ((views - view.short()).abs() > 1).flatten(1).double().mean(1)
    return {names[int(i)] for i in (apart < 0.01).nonzero()}


def test_trivial_augment_draws_every_operation_and_nothing_else() -> None:
    STRENGTHS["TranslateX"][0][15] = STRENGTHS["TranslateY"][0][15] = (
        15  # 15.9999... in float32, of which pixels are made
    )
    names, views = candidates(STRENGTHS)
    torch.manual_seed(0)
    transform = built("trivial-augment")
    found = [matching(transform(image()), names, views) for _ in range(560)]
    assert all(found)  # what matches nothing is an operation of no paper
    for name in STRENGTHS:
        # Forty of each are expected. Weak ones look alike: so many at least may be its own, so many at most are nobody else's.
        assert sum(name in one for one in found) > 20, name
        assert sum(one == {name} for one in found) < 64, name


def test_rand_augment_is_of_one_strength() -> None:
    names, views = candidates(
        {name: (np.array([STRENGTH_9.get(name, 0.27)]), signed) for name, (_, signed) in STRENGTHS.items()}
    )
    torch.manual_seed(0)
    transform = built("rand-augment", num_ops=1, magnitude=9)
    found = [matching(transform(image()), names, views) for _ in range(300)]
    assert all(found)
    assert set.union(*found) == set(STRENGTHS)


def test_rand_augment_applies_so_many_operations_one_after_the_other() -> None:
    one = v2.RandAugment(1, 9)
    crop = v2.RandomResizedCrop(SIDE, scale=(1.0, 1.0), antialias=True)
    for seed in range(20):
        torch.manual_seed(seed)
        expected = one(one(one(v2.RandomHorizontalFlip()(crop(image())))))
        torch.manual_seed(seed)
        assert torch.equal(built("rand-augment", num_ops=3, magnitude=9)(image()), expected)


def key(view: Tensor) -> bytes:
    return view.contiguous().numpy().tobytes()


def test_no_operation_is_crop_and_flip() -> None:
    torch.manual_seed(0)
    transform = built("rand-augment", num_ops=0)
    assert {key(transform(image())) for _ in range(40)} == {key(image()), key(image().flip(2))}


def test_a_box_of_the_papers_sizes_is_erased_in_so_many_images() -> None:
    torch.manual_seed(0)
    plain = torch.full((3, 64, 64), 255, dtype=torch.uint8)
    part = host().augmentations["random-erasing"].value
    options = part.option_values({"min_scale": 1.0, "jitter": 0.0, "erase_probability": 0.3})
    transform = part.image(AugmentationContext(64, 3, options))
    areas, aspects, places = [], [], []
    for _ in range(600):
        view = transform(plain)
        # A random pixel is white in all three channels once in 16 million.
        erased = (view != 255).any(0)
        if not erased.any():
            continue
        rows, columns = erased.any(1).nonzero().squeeze(1), erased.any(0).nonzero().squeeze(1)
        height, width = len(rows), len(columns)
        assert int(erased.sum()) == height * width == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        areas.append(height * width / 64**2)
        aspects.append(height / width)
        places.append((float(rows[0]) / (64 - height), float(columns[0]) / (64 - width)))
        if height * width > 300:
            inside = view[:, erased].double()
            assert abs(float(inside.mean()) - 127.5) < 15
            assert abs(float(inside.std()) - 255 / math.sqrt(12)) < 10
    assert len(areas) == pytest.approx(600 * 0.3, abs=4 * math.sqrt(600 * 0.3 * 0.7))
    assert 0.015 < min(areas) < 0.05
    assert 0.3 < max(areas) < 0.41
    assert 0.25 < min(aspects) < 0.5
    assert 2 < max(aspects) < 3.7
    assert np.mean(places, 0) == pytest.approx([0.5, 0.5], abs=0.1)


def test_without_a_box_it_is_the_usual_augmentation() -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        expected = built("standard")(image())
        torch.manual_seed(seed)
        assert torch.equal(built("random-erasing", erase_probability=0.0)(image()), expected)
