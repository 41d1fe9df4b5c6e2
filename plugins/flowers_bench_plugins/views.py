"""Test-time averaging: the network sees several views of a test image, and what it says of them is averaged.

Papers: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural networks" (doi:10.1145/3065386), section 4.1,
whose ten crops are still called by that name; Simonyan & Zisserman 2014 (arXiv:1409.1556), section 3.2, for the mirror image alone;
Shanmugam et al. 2021, "Better aggregation in test-time augmentation" (arXiv:2011.11156) for what averaging changes. With views
v_1(x) .. v_V(x) of an image and p the network's probabilities,

    P(c | x) = 1/V sum over i of  p(c | v_i(x))

    flips         V = 2    the evaluation crop and its mirror image
    five-crops    V = 5    of the square R x R, R = 8/7 S, its four corners and its middle, S x S each
    ten-crops     V = 10   these, and those of the mirror image

Probabilities are averaged, and not logits, as in the paper: then a view of which the network is unsure counts little, however large
its logits are. `average=logits` averages these, which is the geometric mean of the probabilities, scaled to sum to 1. The scores are
the logarithm of P, so that their softmax is P.

A view is a pass through the network: predicting costs V times as much, which the counted operations and the measured times of a
result include. Nothing of it is in training, so that with one seed all variants train the same weights; validation, which chooses
the epoch, predicts as the test does.

What differs from the paper: it resizes the shortest side to 256, cuts out the middle square and crops 224, as here at that size; here
R follows the recipe's `image_size`. An image that is smaller than R, such as a drawn flower of 64 pixels, is enlarged to it, so that
crops show it larger than one view does, which takes small square images whole. Networks are fine-tuned, by the recipe of `lp-ft`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flowers_bench import (
    Features,
    Option,
    Predictor,
    PredictorContext,
    Recipe,
    Technique,
    Variant,
    ViewsContext,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.nn import Output

PROBABILITIES, LOGITS = "probabilities", "logits"


def flips(context: ViewsContext) -> Callable[[Tensor], Sequence[Tensor]]:
    """Build the two views of images (N, 3, S, S): as they are, and mirrored."""
    return lambda images: [images, images.flip(-1)]


def five_crops(context: ViewsContext) -> Callable[[Tensor], Sequence[Tensor]]:
    """Build the five views of images (N, 3, R, R), each (N, 3, S, S): corners and middle."""
    from torchvision.transforms.v2 import functional

    size = [context.image_size, context.image_size]
    return lambda images: functional.five_crop(images, size)


def ten_crops(context: ViewsContext) -> Callable[[Tensor], Sequence[Tensor]]:
    """Build the ten views of images (N, 3, R, R), each (N, 3, S, S): the five crops, and those of the mirror image."""
    five = five_crops(context)
    return lambda images: [*five(images), *five(images.flip(-1))]


def fit_average(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Build the function from logits (Q, V, C) to log-probabilities (Q, C), averaged over the V views."""
    if context.options.text("average") == LOGITS:
        return lambda output, rows: output.logits.mean(1).log_softmax(1)
    # The mean's divisor V is left to the second softmax, which scales to a sum of 1.
    return lambda output, rows: output.logits.log_softmax(2).logsumexp(1).log_softmax(1)


@hookimpl
def register_predictors() -> list[Predictor]:
    average = Option(PROBABILITIES, "what is averaged over the views", choices=(PROBABILITIES, LOGITS))

    def of_views(
        name: str, summary: str, views: Callable[[ViewsContext], Callable[[Tensor], Sequence[Tensor]]], margin: bool
    ) -> Predictor:
        return Predictor(
            name,
            summary,
            needs=frozenset({"logits"}),
            options={"average": average},
            fit=fit_average,
            needs_features=False,
            views=views,
            margin=margin,
        )

    return [
        of_views("flips", "the classifier's mean over the image and its mirror image", flips, False),
        of_views("five-crops", "the classifier's mean over four corners and the middle", five_crops, True),
        of_views("ten-crops", "the classifier's mean over five crops and their mirror images", ten_crops, True),
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="test-time",
            summary="predictions averaged over several views of each test image",
            papers=(
                "Krizhevsky et al. 2012, ImageNet classification with deep convolutional neural networks, doi:10.1145/3065386",
                "Simonyan & Zisserman 2014, Very deep convolutional networks for large-scale image recognition, arXiv:1409.1556",
                "Shanmugam et al. 2021, Better aggregation in test-time augmentation, arXiv:2011.11156",
            ),
            model="classifier",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-3, lr_scale={"classifier.*": 10.0}, epochs=20, warmup_epochs=1),
            weights="pretrained",
            variants={
                "flips": Variant("the image and its mirror image", predictor="flips", baseline="one-view"),
                "five-crops": Variant("four corners and the middle", predictor="five-crops", baseline="one-view"),
                "ten-crops": Variant("these and their mirror images", predictor="ten-crops", baseline="one-view"),
                "one-view": Variant("the twin that sees each image once", predictor="classifier"),
            },
            default="ten-crops",
        )
    ]
