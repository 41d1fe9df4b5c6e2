"""Parts that many techniques share: a plain classifier, cross-entropy, the usual augmentation, the one-cycle schedule; and the
baselines of those that train few parameters."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flowers_bench import (
    Augmentation,
    AugmentationContext,
    ImageParameters,
    Loss,
    LossContext,
    Model,
    ModelContext,
    Option,
    Recipe,
    Schedule,
    UsageError,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from flowers_bench.nn import Output


def build_classifier(context: ModelContext) -> nn.Module:
    """Build the backbone with a fresh linear classifier, its first `freeze` stages frozen (-1: all but the
    classifier)."""
    from flowers_bench.backbones import freeze_stages, stages
    from flowers_bench.nn import Classifier

    backbone = context.backbone.create()
    count = context.options.integer("freeze")
    freeze_stages(backbone, len(stages(backbone)) if count == -1 else count)
    return Classifier(backbone)


def build_cross_entropy(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build cross-entropy with hard (N,) or soft (N, C) targets, which are smoothed by `label_smoothing` (Szegedy et
    al. 2016, arXiv:1512.00567, section 7)."""
    import torch.nn.functional as F

    smoothing = context.options.number("label_smoothing")

    def cross_entropy(output: Output, target: Tensor) -> Tensor:
        return F.cross_entropy(output.logits, target, label_smoothing=smoothing)

    return cross_entropy


def no_augmentation(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Build the evaluation crop, uint8 (3, H, W) to (3, S, S): what a deterministic, cacheable training needs."""
    from flowers_bench.nn import evaluation_transform

    return evaluation_transform(context.image_size)


#: Options of `standard_augmentation`.
STANDARD = {
    "min_scale": Option(
        0.35, "smallest share of the image's area in a crop", minimum=0.01, maximum=1, search=(0.1, 0.8)
    ),
    "jitter": Option(
        0.3,
        "strength of brightness, contrast and saturation jitter; 0: none",
        minimum=0,
        maximum=1,
        search=(0.0, 0.5),
    ),
}


#: Aspects of a random crop, width over height, and how many boxes are tried until one lies in the image: as torchvision's.
CROP_ASPECTS, CROP_TRIES = (3 / 4, 4 / 3), 10


def standard_augmentation(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Build random resized crop, horizontal flip and colour jitter, uint8 (3, H, W) to (3, S, S): the usual recipe
    since AlexNet and Inception."""
    from torchvision.transforms import v2

    jitter = context.options.number("jitter")
    scale = (context.options.number("min_scale"), 1.0)
    steps: list[Callable[[Tensor], Tensor]] = [
        v2.RandomResizedCrop(context.image_size, scale=scale, ratio=CROP_ASPECTS, antialias=True),
        v2.RandomHorizontalFlip(),
    ]
    if jitter:
        steps.append(lambda image: jitter_colours(image, jitter))
    compose: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return compose


@dataclass(frozen=True)
class StandardParameters:
    """`standard_augmentation` as parameters: the distributions are those of torchvision's RandomResizedCrop and
    RandomHorizontalFlip, and of `jitter_colours`."""

    min_scale: float
    jitter: float

    @property
    def numbers(self) -> int:
        """Two numbers for each box that is tried, two for its place, one for flipping, three for colours."""
        return 2 * CROP_TRIES + 6

    def __call__(self, sizes: np.ndarray, numbers: np.ndarray) -> ImageParameters:
        """Make the parameters of images of these sizes (N, 2) from numbers (N, K)."""
        boxes, others = random_boxes(sizes, numbers[:, :-4], self.min_scale), numbers[:, -4:]
        if not self.jitter:
            return ImageParameters(boxes, others[:, 0] < 0.5)
        brightness, contrast, saturation = (1 + self.jitter * (2 * others[:, 1:] - 1)).T
        return ImageParameters(
            boxes,
            others[:, 0] < 0.5,
            (brightness * contrast)[:, None, None] * saturations(saturation),
            of_mean=(1 - contrast) * brightness,
        )


def standard_parameters(context: AugmentationContext) -> StandardParameters:
    """Build `standard_augmentation` as parameters."""
    return StandardParameters(context.options.number("min_scale"), context.options.number("jitter"))


def random_boxes(sizes: np.ndarray, numbers: np.ndarray, min_scale: float) -> np.ndarray:
    """Make boxes, top, left, height and width (N, 4), in images of these sizes (N, 2), as torchvision's RandomResizedCrop draws them:
    the first of CROP_TRIES that lies in the image or, where none does, the largest in its middle whose aspect is allowed.

    Args:
        numbers: in [0, 1) (N, 2 * CROP_TRIES + 2): shares of the area, aspects, and the place.
    """
    import numpy as np

    height, width = sizes[:, :1], sizes[:, 1:]
    areas, aspects, places = np.split(numbers, [CROP_TRIES, 2 * CROP_TRIES], axis=1)
    low, high = np.log(CROP_ASPECTS)
    area, aspect = height * width * (min_scale + (1 - min_scale) * areas), np.exp(low + (high - low) * aspects)
    heights, widths = np.rint(np.sqrt(area / aspect)), np.rint(np.sqrt(area * aspect))
    fits = (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    first = fits.argmax(1)[:, None]
    # The middle's sides are rounded, and have a pixel at least.
    largest = (
        np.minimum(height, np.maximum(1, np.rint(width / CROP_ASPECTS[0]))),
        np.minimum(width, np.maximum(1, np.rint(height * CROP_ASPECTS[1]))),
    )
    found = np.any(fits, axis=1, keepdims=True)
    extent = np.hstack(
        [
            np.where(found, np.take_along_axis(tried, first, 1), middle)
            for tried, middle in zip((heights, widths), largest, strict=True)
        ]
    )
    room = sizes - extent
    corner = np.where(found, np.floor(places * (room + 1)), room // 2)
    return np.hstack([corner, extent]).astype(np.int64)


def saturations(factors: np.ndarray) -> np.ndarray:
    """Make matrices (N, 3, 3) that scale the saturation of a colour by factors (N,): 0 makes it grey."""
    import numpy as np

    factor, grey = factors[:, None, None], np.broadcast_to(GREY, (3, 3))
    matrices: np.ndarray = factor * np.eye(3) + (1 - factor) * grey
    return matrices


#: Shares of red, green and blue in a grey.
GREY = (0.299, 0.587, 0.114)


def jitter_colours(image: Tensor, strength: float) -> Tensor:
    """Scale brightness, contrast and saturation of uint8 (3, H, W), each by a factor from [1 - strength, 1 + strength].

    The result is that of torchvision's ColorJitter in this order; but each of the three is affine in RGB, so that one pass
    does all of them.
    """
    import torch

    brightness, contrast, saturation = (1 + strength * (2 * torch.rand(3) - 1)).tolist()
    pixels = image.float()
    # A matmul would wake threads, for which this is too little work.
    red, green, blue = GREY
    grey = red * pixels[0] + green * pixels[1] + blue * pixels[2]
    offset = (1 - contrast) * brightness * float(grey.mean())
    pixels.mul_(saturation).add_(grey, alpha=1 - saturation).mul_(brightness * contrast).add_(offset)
    return pixels.clamp_(0, 255).to(torch.uint8)


#: Full fine-tuning's recipe: that of `lora`, `prompt-tuning` and `focal-margin`.
FULL = {
    "optimizer": "adamw",
    "lr": 2e-4,
    "layer_decay": 0.75,
    "weight_decay": 0.05,
    "warmup_epochs": 3,
    "epochs": 30,
    "batch_size": 32,
    "clip_norm": 1.0,
}


def baselines() -> dict[str, Variant]:
    """Make the variants that train least and most: the classifier alone, by the technique's recipe, and everything."""
    return {
        "frozen": Variant("linear probe: only the classifier is trained", model="classifier", options={"freeze": -1}),
        "full": Variant("full fine-tuning", model="classifier", options={"freeze": 0}, recipe=FULL),
    }


def train_classifier_and(backbone: nn.Module, chosen: Iterable[nn.Parameter], what: str) -> None:
    """Freeze the backbone but for its classifier and the chosen parameters.

    Raises:
        UsageError: none is chosen; `what` says what they would have been.
    """
    from flowers_bench.backbones import train_only_classifier

    found = list(chosen)
    train_only_classifier(backbone)
    before = sum(parameter.requires_grad for parameter in backbone.parameters())
    for parameter in found:
        parameter.requires_grad_(True)
    if sum(parameter.requires_grad for parameter in backbone.parameters()) == before:
        raise UsageError(
            f"{type(backbone).__name__} has no {what} outside of its classifier. Choose another --backbone."
        )


def one_cycle(progress: float, recipe: Recipe) -> float:
    """Compute the factor of one cycle (Smith & Topin 2018, arXiv:1708.07120), with the halves of cosines and the numbers of
    `torch.optim.lr_scheduler.OneCycleLR`: from 1/25 to 1 in the first 30 %, then to 1/250000. Momentum stays as it is."""
    first, last, share = 1 / 25, 1 / 25 / 1e4, 0.3
    begin, end, done = (
        (first, 1.0, progress / share) if progress < share else (1.0, last, (progress - share) / (1 - share))
    )
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * done))


@hookimpl
def register_schedules() -> list[Schedule]:
    return [Schedule("onecycle", "up for 30 % of the steps, then down to nearly zero", one_cycle, warms_up=True)]


@hookimpl
def register_models() -> list[Model]:
    freeze = Option(0, "how many of the backbone's first stages are frozen; -1: all", minimum=-1, maximum=100)
    return [
        Model(
            "classifier",
            "any timm backbone with a linear classifier",
            options={"freeze": freeze},
            build=build_classifier,
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    smoothing = Option(
        0.0, "share of the target given to all classes alike", minimum=0, maximum=0.99, search=(0.0, 0.2)
    )
    return [
        Loss(
            "cross-entropy",
            "cross-entropy of the logits, hard or soft targets",
            needs=frozenset({"logits"}),
            options={"label_smoothing": smoothing},
            build=build_cross_entropy,
        )
    ]


@hookimpl
def register_augmentations() -> list[Augmentation]:
    return [
        Augmentation("none", "the evaluation crop, nothing random", image=no_augmentation, views=lambda context: 1),
        Augmentation(
            "standard",
            "random resized crop, flip, colour jitter",
            options=STANDARD,
            image=standard_augmentation,
            parameters=standard_parameters,
            revision=2,
        ),
        Augmentation(
            "fixed-views",
            "a fixed number of standard augmentations of each image, so that frozen layers are computed once",
            options={**STANDARD, "views": Option(4, "how many of each image", minimum=1, maximum=1000)},
            image=standard_augmentation,
            parameters=standard_parameters,
            revision=2,
            views=lambda context: context.options.integer("views"),
        ),
    ]
