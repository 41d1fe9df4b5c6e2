"""FixMatch: what the network is sure of in images without labels is what it has to say of them when they are hard to see.

Paper: Sohn et al. 2020, "FixMatch: simplifying semi-supervised learning with consistency and confidence" (arXiv:2001.07685), equations
3 and 4, algorithm 1. With B labelled images (x, y) and mu B images u without labels, a weak augmentation a(.) and a strong one A(.), p the
network's probabilities and q = p(a(u)),

    loss = 1/B sum of H(y, p(a(x)))  +  lambda / (mu B) sum of  1[max q >= tau]  H(argmax q, p(A(u)))

H is cross-entropy. q gives no gradient: it is a label. The images without labels are those that the data have, or that `--shots` leaves out.

    a(x)    flipped or not, moved by up to an eighth of the image
    A(x)    a(x), two random operations of random strength (of RandAugment's), and a grey square of up to half the side at a random place

What differs from the paper: it trains a Wide ResNet from random weights for 2^20 steps by SGD at a constant batch of 64 labelled images; here a
pretrained network is fine-tuned for 60 epochs of the labelled images by AdamW, with the paper's tau, mu and lambda and its average of the weights. Labelled, weak and strong
images pass the network one after the other, so that batch norm has statistics of each, where the authors' code has one batch of all. Operations and their strengths are
torchvision's RandAugment, without its inversion and the authors' blur-like ones; the first term is the trial's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import (
    Augmentation,
    AugmentationContext,
    Batch,
    Option,
    Recipe,
    Step,
    StepContext,
    Technique,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor

#: Strengths of torchvision's RandAugment, how many operations an image gets, and the grey of the square.
STRENGTHS, OPERATIONS, GREY = 31, 2, 127


def weak(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Build a(.): the evaluation crop, flipped or not, moved by up to an eighth; uint8 (3, H, W) to (3, S, S)."""
    from torchvision.transforms import v2

    from flowers_bench.nn import evaluation_transform

    side = context.image_size
    moved = v2.RandomCrop(side, padding=side // 8, padding_mode="reflect")
    compose: Callable[[Tensor], Tensor] = v2.Compose([evaluation_transform(side), v2.RandomHorizontalFlip(), moved])
    return compose


def strong(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Build A(.): a(.), two random operations of random strength, and a grey square; uint8 (3, H, W) to (3, S, S)."""
    import torch
    from torchvision.transforms import v2

    first = weak(context)
    operations = [v2.RandAugment(1, strength) for strength in range(STRENGTHS)]

    def transform(image: Tensor) -> Tensor:
        found = first(image)
        for strength in torch.randint(STRENGTHS, (OPERATIONS,)).tolist():
            found = operations[strength](found)
        return covered(found)

    return transform


def covered(image: Tensor) -> Tensor:
    """Put a grey square on uint8 (3, S, S), of a side from 0 to S / 2, around a random place."""
    import torch

    side = image.shape[-1]
    half = float(torch.rand(())) * side / 4
    y, x = (torch.rand(2) * side).tolist()
    made = image.clone()
    made[:, max(0, round(y - half)) : round(y + half), max(0, round(x - half)) : round(x + half)] = GREY
    return made


def build_fixmatch(context: StepContext) -> Callable[[Batch], Tensor]:
    """Build the step of algorithm 1."""
    import torch
    import torch.nn.functional as F

    threshold, weight = context.options.number("sure_from"), context.options.number("unlabelled_weight")

    def step(batch: Batch) -> Tensor:
        with torch.no_grad():
            sure, guessed = batch.output(batch.unlabelled).logits.softmax(1).max(1)
        strong = batch.output(batch.unlabelled_second).logits
        each = F.cross_entropy(strong, guessed, reduction="none")
        loss = batch.loss() + weight * (each * (sure >= threshold)).mean()
        batch.backward(loss)
        batch.update()
        return loss

    return step


@hookimpl
def register_augmentations() -> list[Augmentation]:
    return [
        Augmentation(
            "weak-strong",
            "flipped and moved a little; as second view also changed in colour and shape, and partly covered",
            image=weak,
            second=strong,
        )
    ]


@hookimpl
def register_steps() -> list[Step]:
    return [
        Step(
            "fixmatch",
            "sure predictions of images without labels teach their strongly augmented view",
            needs=frozenset({"logits", "second_view"}),
            options={
                "sure_from": Option(
                    0.95, "tau, how probable a class must be to teach", minimum=0, maximum=1, search=(0.6, 0.98)
                ),
                "unlabelled_ratio": Option(
                    7, "mu, how many images without label a batch has for each labelled one", minimum=1, maximum=100
                ),
                "unlabelled_weight": Option(
                    1.0, "lambda, the weight of images without labels", minimum=0, maximum=100, search=(0.3, 3.0)
                ),
            },
            build=build_fixmatch,
            unlabelled="unlabelled_ratio",
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="fixmatch",
            summary="images without labels teach what the network is sure of; with --shots K the training images beyond K",
            papers=(
                "Sohn et al. 2020, FixMatch: simplifying semi-supervised learning with consistency and confidence, "
                "arXiv:2001.07685",
            ),
            model="classifier",
            loss="cross-entropy",
            augmentation="weak-strong",
            step="fixmatch",
            recipe=Recipe(
                optimizer="adamw",
                lr=3e-4,
                lr_scale={"classifier.*": 10.0},
                epochs=60,
                warmup_epochs=2,
                ema_decay=0.999,
            ),
            weights="pretrained",
            variants={
                "fixmatch": Variant("tau 0.95, mu 7, lambda 1", baseline="labelled"),
                "labelled": Variant("the twin that sees the labelled images alone", step="usual"),
            },
            default="fixmatch",
        )
    ]
