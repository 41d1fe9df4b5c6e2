"""PMG: a network's stages learn one after the other, each from pieces as large as what it should look at.

Paper: Du et al. 2020, "Fine-grained visual classification via progressive multi-granularity training of jigsaw patches" (ECCV,
arXiv:2003.03836), sections 3.1 to 3.4. With F_l the feature map of stage l, for each of the last S stages

    V_l = max over the image of  conv3x3(conv1x1(F_l))              each convolution with batch norm and ReLU
    y_l = h_l(V_l)                 y = h([V_L-S+1, ..., V_L])       each h two linear layers, with batch norms and ELU

P(x, n) is the image x, cut into n x n pieces that are put together in another order, by chance, one order for a batch. Each batch
is S + 1 updates, from fine to coarse; those of stage l reach the layers up to stage l:

    for l = L-S+1 ... L:    cross-entropy(y_l(P(x, n)), target),    n = 2^(L-l+1)                        with S = 3: 8, 4, 2
    at last:                cross-entropy(y(x), target)

Prediction is by the sum of all y_l and y (the paper's "combined accuracy"); here their mean, which has the same order and is no surer than they are.

What differs from the paper: it trains 300 epochs of batches of 16 by SGD at 448 px, here 20 by AdamW; what is new learns at five times the rest's
rate, not at ten times. V_l has 1024 values in the paper, half as many as a ResNet-50's last stage has channels, and here half of those of whatever
network it is. Where n does not divide the image's side, a
border narrower than n pixels stays where it is. The authors' code has twice the last loss, the paper does not. A layer that an update does not reach stays as it is, where in the authors' code,
of 2020, momentum and decay moved it. The last loss is the trial's (`--loss`), the others are cross-entropy. The plain twin takes one update for a batch and not four: `no-jigsaw`, which does
as many, tells what the pieces are worth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import (
    Batch,
    Model,
    ModelContext,
    Option,
    Recipe,
    Step,
    StepContext,
    Technique,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

STAGES = Option(3, "S, how many of the last stages learn by themselves", minimum=1, maximum=4)


def build_stage_heads(context: ModelContext) -> nn.Module:
    """Build the backbone with a head for each of its last S stages. Raises `UsageError` if it gives no feature maps, or fewer."""
    from flowers_bench_plugins.multiscale_vgg.layers import keep_features
    from flowers_bench_plugins.pmg.layers import StageHeads, stage_channels

    backbone = context.backbone.create()
    keep_features(backbone, context.image_size)
    channels = stage_channels(backbone, context.options.integer("head_stages"), context.image_size)
    return StageHeads(backbone, channels, context.num_classes, context.options.flag("combined"))


def build_progressive(context: StepContext) -> Callable[[Batch], Tensor]:
    """Build the S + 1 updates for a batch."""
    from flowers_bench_plugins.pmg.layers import progressive_step

    count, jigsaw = context.options.integer("head_stages"), context.options.flag("jigsaw")
    return progressive_step([2 ** (count - place) if jigsaw else 1 for place in range(count)])


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "stage-heads",
            "any CNN with a classifier for each of its last stages, and one for all of them",
            needs=frozenset({"stages"}),
            options={
                "head_stages": STAGES,
                "combined": Option(True, "predict by the mean of all classifiers; else by that of all stages"),
            },
            build=build_stage_heads,
            provides=frozenset({"logits", "embedding", "stage_logits"}),
        )
    ]


@hookimpl
def register_steps() -> list[Step]:
    return [
        Step(
            "progressive",
            "an update for each stage, on pieces as large as it should look at, and one for all on whole images",
            needs=frozenset({"stage_logits"}),
            options={"head_stages": STAGES, "jigsaw": Option(True, "put pieces of the images in another order")},
            build=build_progressive,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="pmg",
            summary="a CNN's stages learn one after the other, from small pieces of the images to whole ones",
            papers=(
                "Du et al. 2020, Fine-grained visual classification via progressive multi-granularity training of jigsaw "
                "patches, arXiv:2003.03836",
            ),
            model="stage-heads",
            loss="cross-entropy",
            augmentation="standard",
            step="progressive",
            recipe=Recipe(
                optimizer="adamw",
                lr=3e-4,
                lr_scale={"classifier.*": 5.0, "stage_blocks.*": 5.0, "stage_heads.*": 5.0, "whole_head.*": 5.0},
                epochs=20,
                warmup_epochs=1,
            ),
            weights="pretrained",
            variants={
                "pmg": Variant("three stages, pieces of 8 x 8, 4 x 4, 2 x 2, whole images", baseline="plain"),
                "no-jigsaw": Variant("four updates on whole images", options={"jigsaw": False}, baseline="plain"),
                "plain": Variant(
                    "the twin with one classifier and one update for a batch", model="classifier", step="usual"
                ),
            },
            default="pmg",
        )
    ]
