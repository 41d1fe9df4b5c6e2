"""Focal loss with a margin: hard images count more, and a class must win by a distance.

Papers: Lin et al. 2017, "Focal loss for dense object detection" (arXiv:1708.02002), equation 4; Wang et al. 2018,
"CosFace: large margin cosine loss for deep face recognition" (arXiv:1801.09414), equation 4; Chen 2023, "Optimized
hybrid focal margin loss for crack segmentation" (arXiv:2302.04395); Abraham & Khan 2019, "A novel focal Tversky loss
function with improved attention U-Net for lesion segmentation" (arXiv:1810.07842).

With p = softmax(z) over the C classes and y the true one:

    focal               F(z) = -(1 - p_y)^gamma log p_y

An image that is right already (p_y near 1) hardly counts any more; gamma = 0 is cross-entropy.

    focal-margin        F(z') with z'_y = s (cos(x, w_y) - m) and z'_c = s cos(x, w_c) for the others

The cosine head has neither norms nor biases to hide behind, so the embedding must point closer to its own class
vector than to any other by m. Training only: predictions use the plain cosines.

    hybrid-focal-margin lambda FM(z) + (1 - lambda) FT(p)

        FM(z) = -(1 - p_y)^gamma log p'_y       p' = softmax(z'), z'_y = z_y - m, z'_c = z_c for the others
        FT(p) = mean over classes c of (1 - TI_c)^0.75
        TI_c  = (tp_c + 1) / (tp_c + 0.7 fn_c + 0.3 fp_c + 1)

Chen's focal margin loss FM (equation 12 there) asks the true class for a lead of m in logits, while the factor in front
looks at the plain p: m = 0 leaves focal loss, gamma = 0 the large-margin loss, both 0 cross-entropy. FT is the focal
Tversky loss (Abraham & Khan 2019), with tp, fn and fp the probabilities that the batch's images of c give to c,
withhold from it, and that the other images give to c. The hybrid (equation 13) weighs the two by lambda; the paper then
takes their plain sum (equation 14), which is lambda = 1/2 but for a factor. Constants are the paper's; its gamma is 2,
and m from 0.5 to 1.5, more where a class is rarer.

What differs from the paper: Chen segments cracks, two classes a pixel, and in the experiments leaves the rare class
undiscounted (the asymmetric FM, equation 11). Here no class is the rare one, so it is the symmetric FM, with images for
pixels, and FT is a mean over the C classes instead of a sum over one. The additive cosine margin is CosFace's, with
Lin's factor in front; in Lin's paper the loss is a sigmoid's, here (as usual for classification) a softmax's, without
his weight alpha for the rare class and his prior for the bias. CosFace has s = 64 and m = 0.35 (and bounds s from below
by the number of classes); 30 and 0.2 are ours, for a hundredth of its classes, and the sweeps vary m. The recipe is
BEiT's kind, without its drop path, MixUp and CutMix, and with a layer decay of 0.75 where it has 0.65 for a network of
this size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from flowers_bench import (
    Loss,
    LossContext,
    Model,
    ModelContext,
    Option,
    Recipe,
    Technique,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output

# For training a linear classifier alone: nothing pretrained can be spoilt, so that the rate may be larger.
PROBE = {"lr": 3e-3, "layer_decay": 1.0, "weight_decay": 0.0}


def build_cosine_classifier(context: ModelContext) -> nn.Module:
    """Build the backbone with a cosine classifier, its first `freeze` stages frozen (-1: all but the classifier)."""
    from flowers_bench.backbones import freeze_stages, replace_classifier, stages
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.focal_margin.layers import CosineLinear

    backbone = context.backbone.create()
    count, scale = context.options.integer("freeze"), context.options.number("cosine_scale")
    freeze_stages(backbone, len(stages(backbone)) if count == -1 else count)
    replace_classifier(backbone, lambda dim, classes: CosineLinear(dim, classes, scale))
    return Classifier(backbone)


def build_focal(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build F(z); targets are hard (N,) or soft (N, C)."""
    from flowers_bench_plugins.focal_margin.loss import focal

    gamma = context.options.number("gamma")
    return lambda output, target: focal(output.logits, target, gamma)


def build_focal_margin(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build F(z') for hard targets (N,). `cosine_scale` is the model's option too, so that both have one value."""
    from flowers_bench_plugins.focal_margin.loss import focal_margin

    gamma, scale, margin = (context.options.number(name) for name in ("gamma", "cosine_scale", "margin"))
    return lambda output, target: focal_margin(output.logits, target, gamma, scale * margin)


def build_hybrid_focal_margin(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build lambda FM(z) + (1 - lambda) FT(p) for hard targets (N,)."""
    from flowers_bench_plugins.focal_margin.loss import hybrid

    gamma, margin, weight = (context.options.number(name) for name in ("gamma", "logit_margin", "focal_weight"))
    return lambda output, target: hybrid(output.logits, target, gamma, margin, weight)


GAMMA = Option(2.0, "how strongly easy images are discounted; 0: not at all", minimum=0, maximum=20, search=(0.0, 5.0))
SCALE = Option(
    30.0, "the cosines' factor s, of the model and the loss alike", minimum=0.1, maximum=1000, search=(10.0, 64.0)
)


@hookimpl
def register_models() -> list[Model]:
    freeze = Option(0, "how many of the backbone's first stages are frozen; -1: all", minimum=-1, maximum=100)
    return [
        Model(
            "cosine-classifier",
            "any timm backbone with a linear classifier, with cosines for logits",
            options={"freeze": freeze, "cosine_scale": SCALE},
            build=build_cosine_classifier,
            provides=frozenset({"logits", "embedding", "cosines"}),
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    margin = Option(0.2, "by how much the true class's cosine must lead", minimum=0, maximum=1, search=(0.05, 0.5))
    lead = Option(0.5, "m, by how much the true class's logit must lead", minimum=0, maximum=100, search=(0.1, 1.5))
    weight = Option(0.5, "lambda, the focal margin loss's share", minimum=0, maximum=1, search=(0.1, 1.0))
    return [
        Loss("focal", "focal loss of the logits", frozenset({"logits"}), {"gamma": GAMMA}, build=build_focal),
        Loss(
            "focal-margin",
            "focal loss with an additive cosine margin",
            frozenset({"cosines", "hard_targets"}),
            {"gamma": GAMMA, "margin": margin, "cosine_scale": SCALE},
            build=build_focal_margin,
        ),
        Loss(
            "hybrid-focal-margin",
            "focal loss with a margin between logits, plus the focal Tversky loss",
            frozenset({"logits", "hard_targets"}),
            {"gamma": GAMMA, "logit_margin": lead, "focal_weight": weight},
            build=build_hybrid_focal_margin,
        ),
    ]


def _additive(summary: str, **options: float) -> Variant:
    return Variant(summary, options=options, baseline="full")


def _plain(summary: str, freeze: int = 0, recipe: Mapping[str, object] = MappingProxyType({})) -> Variant:
    return Variant(summary, {"freeze": freeze}, recipe, model="classifier", loss="cross-entropy")


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="focal-margin",
            summary="a fine-tuned transformer with focal loss and a margin between classes",
            papers=(
                "Lin et al. 2017, Focal loss for dense object detection, arXiv:1708.02002",
                "Wang et al. 2018, CosFace: large margin cosine loss for deep face recognition, arXiv:1801.09414",
                "Chen 2023, Optimized hybrid focal margin loss for crack segmentation, arXiv:2302.04395",
                "Abraham & Khan 2019, A novel focal Tversky loss function, arXiv:1810.07842",
                "Dosovitskiy et al. 2021, An image is worth 16x16 words, arXiv:2010.11929",
            ),
            model="cosine-classifier",
            loss="focal-margin",
            augmentation="standard",
            # Fine-tuning a ViT with layer-wise decay, warm-up and cosine: Bao et al. 2022 (BEiT, arXiv:2106.08254).
            recipe=Recipe(
                optimizer="adamw",
                lr=2e-4,
                layer_decay=0.75,
                weight_decay=0.05,
                warmup_epochs=3,
                epochs=30,
                batch_size=32,
                clip_norm=1.0,
            ),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={
                "additive": _additive("focal loss with an additive cosine margin"),
                "hybrid": Variant(
                    "the hybrid focal margin loss of Chen 2023, on a linear classifier",
                    model="classifier",
                    loss="hybrid-focal-margin",
                    baseline="full",
                ),
                "focal": _additive("no margin: focal loss on the cosines", margin=0.0),
                "margin": _additive("no focal factor: the cosine margin alone (CosFace)", gamma=0.0),
                "cosine": _additive("neither: cross-entropy of the scaled cosines", margin=0.0, gamma=0.0),
                "focal-logit-margin": Variant(
                    "without the Tversky term: Chen's focal margin loss alone",
                    {"focal_weight": 1.0},
                    model="classifier",
                    loss="hybrid-focal-margin",
                    baseline="full",
                ),
                "focal-linear": Variant(
                    "plain focal loss on a linear classifier", model="classifier", loss="focal", baseline="full"
                ),
                **{f"gamma{g:g}": _additive(f"gamma = {g:g}", gamma=g) for g in (0.5, 1.0, 5.0)},
                **{f"margin{m:g}": _additive(f"margin = {m:g}", margin=m) for m in (0.1, 0.35, 0.5)},
                "full": _plain("full fine-tuning: linear classifier, cross-entropy"),
                "frozen": _plain("linear probe: only the classifier is trained", -1, PROBE),
            },
            default="additive",
        )
    ]
