"""ArcFace: an image must be nearer to its class, by an angle; and a class may have several centres.

Papers: Deng et al. 2019, "ArcFace: additive angular margin loss for deep face recognition" (arXiv:1801.07698), equation 3; Deng et al.
2020, "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces" (ECCV, doi:10.1007/978-3-030-58621-8_43), equation 2.
With f(x) the embedding, y its class, and K centres w_c1 ... w_cK for each class, all of length 1:

    cos a_c = max over k of  w_ck . f(x)
    loss    = cross-entropy of  z,      z_y = s cos(a_y + m),      z_c = s cos a_c  for the others

K = 1 is ArcFace. With more, an image need only be near to one of its class's centres, so that a class may have several
looks, and odd images need not pull at the others. Training only: predictions use the plain cosines.

What differs from the paper: faces come in tens of thousands of classes, with s = 64, m = 0.5, K = 3, in networks from random weights by SGD;
here a pretrained network is fine-tuned, with s = 30 as in `focal-margin`, m = 0.2 and K = 2, for tens of images of a class, by AdamW. There is no batch norm behind
the features, no dropout and no separate embedding layer. Where a_y + m would pass pi, and the cosine rise again, z_y is s (cos a_y - m sin m), as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Loss, LossContext, Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl
from flowers_bench_plugins.focal_margin import SCALE

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output


def build_centers(context: ModelContext) -> nn.Module:
    """Build the backbone with K centres for each class in place of its classifier, its first `freeze` stages frozen (-1: all
    of it)."""
    from flowers_bench.backbones import freeze_stages, replace_classifier, stages
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.arcface.layers import SubCenters

    backbone, options = context.backbone.create(), context.options
    count, centers, scale = options.integer("freeze"), options.integer("centers"), options.number("cosine_scale")
    freeze_stages(backbone, len(stages(backbone)) if count == -1 else count)
    replace_classifier(backbone, lambda dim, classes: SubCenters(dim, classes, centers, scale))
    return Classifier(backbone)


def build_arcface(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build the loss of scaled cosines; targets are hard (N,). `cosine_scale` is the model's option too, so that both have
    one value."""
    from flowers_bench_plugins.arcface.loss import arcface

    scale, margin = context.options.number("cosine_scale"), context.options.number("angle")
    return lambda output, target: arcface(output.logits, target, scale, margin)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "sub-centers",
            "any timm backbone with several centres for each class, and the largest cosine of them for logits",
            options={
                "freeze": Option(
                    0, "how many of the backbone's first stages are frozen; -1: all", minimum=-1, maximum=100
                ),
                "centers": Option(2, "K, how many centres a class has", minimum=1, maximum=100, search=(1, 5)),
                "cosine_scale": SCALE,
            },
            build=build_centers,
            provides=frozenset({"logits", "embedding", "cosines"}),
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "arcface",
            "cross-entropy of scaled cosines, the true class's at a larger angle",
            needs=frozenset({"cosines", "hard_targets"}),
            options={
                "angle": Option(
                    0.2,
                    "m, what is added to the true class's angle, in radians",
                    minimum=0,
                    maximum=1.5,
                    search=(0.05, 0.5),
                ),
                "cosine_scale": SCALE,
            },
            build=build_arcface,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="arcface",
            summary="an angular margin between classes, each with several centres",
            papers=(
                "Deng et al. 2019, ArcFace: additive angular margin loss for deep face recognition, arXiv:1801.07698",
                "Deng et al. 2020, Sub-center ArcFace: boosting face recognition by large-scale noisy web faces, "
                "doi:10.1007/978-3-030-58621-8_43",
            ),
            model="sub-centers",
            loss="arcface",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-3, epochs=30, warmup_epochs=2),
            weights="pretrained",
            variants={
                "sub-centers": Variant("two centres for each class", baseline="cross-entropy"),
                "one-center": Variant("ArcFace: one centre", options={"centers": 1}, baseline="cross-entropy"),
                "no-margin": Variant(
                    "one centre and no margin: cross-entropy of the scaled cosines",
                    options={"centers": 1, "angle": 0.0},
                    baseline="cross-entropy",
                ),
                "cross-entropy": Variant("the twin with a linear classifier", model="classifier", loss="cross-entropy"),
            },
            default="sub-centers",
        )
    ]
