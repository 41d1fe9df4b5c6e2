"""CAL: attention that makes a difference: where a network looks must tell it more than looking anywhere would.

Paper: Rao et al. 2021, "Counterfactual attention learning for fine-grained visual categorization and re-identification" (ICCV,
arXiv:2108.08728), equations 1 to 6. With X the last feature map (D channels, H x W places) and M attention maps A over the same places,

    A = relu(batch norm(conv1x1(X)))         h_m = 1/HW  sum over places of  A_m X           h = [h_1, ..., h_M]        M * D values
    Y(A) = 100 W h' / |h'|,                  h' = sign(h) |h|^(1/2)

and with A* as many maps of numbers drawn evenly from 0 to 2, what looking there adds to looking anywhere is Y(A) - Y(A*):

    loss = cross-entropy(Y(A), y)  +  lambda cross-entropy(Y(A) - Y(A*), y)

A* exists in training alone; prediction is by Y(A). That pooling without the second term is bilinear attention pooling (Hu et al. 2019, WS-DAN,
arXiv:1901.09891, section 3.1): the baseline `attention`.

What differs from the paper: it builds on WS-DAN, whose crops and holes where attention is high, whose centre loss and whose second look at test
images are left out here, so that baseline and technique differ in lambda alone (its factors of the two terms are then 1/3 and 1; here 1 and 1). It has ResNet-101's 2048 channels at 448 px, SGD for 160 epochs;
here a 1x1 convolution with batch norm and ReLU reduces the channels to D = 128 first, in both, since 65,536 features would not fit where test images' features are kept, and training is by
AdamW. Under the root of |h| stands 1e-6 more, as in the authors' code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Loss, LossContext, Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output


def build_attention_pooling(context: ModelContext) -> nn.Module:
    """Build backbone, reduction, attention and classifier. Raises `UsageError` if the backbone gives no feature map."""
    from flowers_bench_plugins.cal.layers import AttentionPooling
    from flowers_bench_plugins.multiscale_vgg.layers import keep_features

    options = context.options
    backbone = context.backbone.create()
    found = keep_features(backbone, context.image_size)
    return AttentionPooling(
        backbone, found, options.integer("channels"), options.integer("attention_maps"), context.num_classes
    )


def build_counterfactual(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build the loss of prediction and effect, with hard (N,) or soft (N, C) targets."""
    import torch.nn.functional as F

    weight = context.options.number("effect_weight")

    def loss(output: Output, target: Tensor) -> Tensor:
        return F.cross_entropy(output.logits, target) + weight * F.cross_entropy(output.more["effect"], target)

    return loss


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "attention-pooling",
            "any CNN whose last features are pooled where each of several attention maps looks",
            needs=frozenset({"stages"}),
            options={
                "channels": Option(128, "D, the channels that are pooled", minimum=2, maximum=4096, search=(64, 256)),
                "attention_maps": Option(32, "M, how many attention maps", minimum=1, maximum=1024, search=(8, 64)),
            },
            build=build_attention_pooling,
            provides=frozenset({"logits", "embedding", "effect"}),
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "counterfactual",
            "cross-entropy of the prediction, and of what attention adds to it over random attention",
            needs=frozenset({"logits", "effect"}),
            options={
                "effect_weight": Option(
                    1.0, "lambda, the weight of attention's effect", minimum=0, maximum=100, search=(0.3, 3.0)
                )
            },
            build=build_counterfactual,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="cal",
            summary="a CNN learns where to look, so that looking there says more than looking anywhere",
            papers=(
                "Rao et al. 2021, Counterfactual attention learning for fine-grained visual categorization and "
                "re-identification, arXiv:2108.08728",
                "Hu et al. 2019, See better before looking closer: weakly supervised data augmentation network for "
                "fine-grained visual classification, arXiv:1901.09891",
            ),
            model="attention-pooling",
            loss="counterfactual",
            augmentation="standard",
            recipe=Recipe(
                optimizer="adamw",
                lr=3e-4,
                lr_scale={"classifier.*": 5.0, "reduce.*": 5.0, "attention.*": 5.0},
                epochs=20,
                warmup_epochs=1,
            ),
            weights="pretrained",
            variants={
                "cal": Variant("attention compared with random attention", baseline="attention"),
                "attention": Variant("the twin without the comparison", loss="cross-entropy", baseline="plain"),
                "plain": Variant("average pooling and a linear classifier", model="classifier", loss="cross-entropy"),
            },
            default="cal",
        )
    ]
