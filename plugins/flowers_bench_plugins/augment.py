"""Stronger augmentation: a random operation of random strength for each image, or several of one strength, or a part erased.

Papers: Müller & Hutter 2021, "TrivialAugment: tuning-free yet state-of-the-art data augmentation" (arXiv:2103.10158), algorithm 1
with the wide space of its table 1; Cubuk et al. 2020, "RandAugment: practical automated data augmentation with a reduced search space"
(arXiv:1909.13719), section 3; Zhong et al. 2020, "Random erasing data augmentation" (arXiv:1708.04896), algorithm 1. After crop and flip:

    trivial-augment    a of 14 operations and m of 31 strengths, each by chance:  x <- a(x, m)
    rand-augment       `num_ops` times:  a by chance, x <- a(x, `magnitude`)
    random-erasing     with probability p:  a box of area s and aspect r, both by chance, at a place by chance, gets random values

The operations are torchvision's: identity, shear and translation along both axes, rotation, brightness, colour, contrast, sharpness,
posterisation, solarisation, automatic contrast, equalisation. They stand in place of the usual colour jitter; erasing comes behind it.

What differs from the paper: TrivialAugment and RandAugment train from random weights, here a pretrained network is fine-tuned,
by the recipe of `mixing`. RandAugment chooses both its numbers by a grid on validation; here they are options, with torchvision's defaults. What an
operation moves in from outside is black, as in torchvision; translations are of up to 32 pixels, whatever the image's size, as in the paper.
Erasing has the paper's p, areas (0.02 to 0.4 of the image) and aspects (0.3 to 3.3), and its random values for each pixel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Augmentation, AugmentationContext, Option, Recipe, Technique, Variant, hookimpl
from flowers_bench_plugins.common import STANDARD, standard_augmentation

if TYPE_CHECKING:
    from torch import Tensor

#: Aspects of the erased box, height over width.
ASPECTS = (0.3, 3.3)


def trivial_augment(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Build crop, flip and one random operation, uint8 (3, H, W) to (3, S, S)."""
    from torchvision.transforms import v2

    return _cropped_then(context, v2.TrivialAugmentWide())


def rand_augment(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Build crop, flip and `num_ops` random operations of one strength, uint8 (3, H, W) to (3, S, S)."""
    from torchvision.transforms import v2

    options = context.options
    return _cropped_then(context, v2.RandAugment(options.integer("num_ops"), options.integer("magnitude")))


def _cropped_then(context: AugmentationContext, operation: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    from torchvision.transforms import v2

    scale = (context.options.number("min_scale"), 1.0)
    steps = [
        v2.RandomResizedCrop(context.image_size, scale=scale, antialias=True),
        v2.RandomHorizontalFlip(),
        operation,
    ]
    compose: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return compose


def random_erasing(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Build the usual augmentation with a box of random values in some images, uint8 (3, H, W) to (3, S, S)."""
    import torch
    from torchvision.transforms import v2

    usual, options = standard_augmentation(context), context.options
    areas = (0.02, max(0.02, options.number("erase_area")))
    erase = v2.RandomErasing(options.number("erase_probability"), scale=areas, ratio=ASPECTS, value=0)

    def transform(image: Tensor) -> Tensor:
        view = usual(image)
        # torchvision's own random values are meant for normalised images; here they are pixels, anything from 0 to 255.
        kept = erase(torch.ones(1, *view.shape[1:], dtype=torch.bool))
        if kept.all():
            return view
        return torch.where(kept, view, torch.randint(256, view.shape, dtype=torch.uint8))

    return transform


@hookimpl
def register_augmentations() -> list[Augmentation]:
    crop = {"min_scale": STANDARD["min_scale"]}
    return [
        Augmentation(
            "trivial-augment",
            "random resized crop, flip, one random operation of random strength",
            options=crop,
            image=trivial_augment,
        ),
        Augmentation(
            "rand-augment",
            "random resized crop, flip, some random operations of one strength",
            options={
                **crop,
                "num_ops": Option(2, "how many operations", minimum=0, maximum=20, search=(1, 3)),
                "magnitude": Option(9, "their strength, of 31", minimum=0, maximum=30, search=(3, 15)),
            },
            image=rand_augment,
        ),
        Augmentation(
            "random-erasing",
            "the usual augmentation, and a box of random values in some images",
            options={
                **STANDARD,
                "erase_probability": Option(
                    0.5, "share of the images with a box", minimum=0, maximum=1, search=(0.1, 0.9)
                ),
                "erase_area": Option(0.4, "the box's largest share of the image", minimum=0.02, maximum=0.9),
            },
            image=random_erasing,
        ),
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="augment",
            summary="stronger augmentation: random operations on each image, or a part of it erased",
            papers=(
                "Müller & Hutter 2021, TrivialAugment: tuning-free yet state-of-the-art data augmentation, arXiv:2103.10158",
                "Cubuk et al. 2020, RandAugment: practical automated data augmentation with a reduced search space, arXiv:1909.13719",
                "Zhong et al. 2020, Random erasing data augmentation, arXiv:1708.04896",
            ),
            model="classifier",
            loss="cross-entropy",
            augmentation="trivial-augment",
            recipe=Recipe(optimizer="adamw", lr=1e-3, epochs=40, warmup_epochs=2),
            weights="pretrained",
            variants={
                "trivial": Variant("TrivialAugment", baseline="standard"),
                "rand": Variant("RandAugment", augmentation="rand-augment", baseline="standard"),
                "erasing": Variant("random erasing", augmentation="random-erasing", baseline="standard"),
                "standard": Variant("the twin with the usual crop, flip and colour jitter", augmentation="standard"),
            },
            default="trivial",
        )
    ]
