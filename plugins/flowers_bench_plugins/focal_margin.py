"""Focal loss with a margin: hard images count more, and a class must win by a distance.

Papers: Lin et al. 2017, "Focal loss for dense object detection" (arXiv:1708.02002), equation 4; Wang et al. 2018,
"CosFace: large margin cosine loss for deep face recognition" (arXiv:1801.09414), equation 4; Chen 2023, "Optimized
hybrid focal margin loss for crack segmentation" (arXiv:2302.04395); Kobayashi 2019, "Large margin in softmax
cross-entropy loss" (BMVC).

With p = softmax(z) over the C classes and y the true one:

    focal               F(z) = -(1 - p_y)^gamma log p_y

An image that is right already (p_y near 1) hardly counts any more; gamma = 0 is cross-entropy.

    focal-margin        F(z') with z'_y = s (cos(x, w_y) - m) and z'_c = s cos(x, w_c) for the others

The cosine head has neither norms nor biases to hide behind, so the embedding must point closer to its own class
vector than to any other by m. Training only: predictions use the plain cosines.

    hybrid-focal-margin F(z) + lambda R(z),   R(z) = 1/2 sum over c != y of  (q_c - 1/(C - 1)) log q_c

where q is the softmax over the wrong classes alone. R >= 0, and 0 where they are all alike: no wrong class may come
forward, which is what keeps the margin large.

What differs, and what we could not check: Chen 2023 segments cracks (two classes a pixel) and describes its loss as a
hybrid of an entropy term with a margin regulariser ("large-margin softmax") and a focal one. We had the abstract and
not the equations: `hybrid-focal-margin` is our reading of it, with Kobayashi's regulariser, for C classes an image.
The paper's weighting, and whatever it adds for segmentation, may differ. The additive margin is CosFace's, with
Lin's factor in front; in Lin's paper the loss is a sigmoid's, here (as usual for classification) a softmax's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

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

# The study's recipe. It states early stopping; optimiser, batch and patience are its other rows', the learning rate
# its other large network's (its 1e-3 for ResNets makes a fully trained ViT collapse).
STUDY = {
    "optimizer": "adam",
    "lr": 1e-4,
    "layer_decay": 1.0,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup_epochs": 0,
    "batch_size": 32,
    "epochs": 100,
    "patience": 5,
    "clip_norm": 0.0,
}
# Training a linear classifier alone: nothing pretrained can be spoilt, so a larger rate.
PROBE = {"lr": 3e-3, "layer_decay": 1.0, "weight_decay": 0.0}


def build_cosine_classifier(context: ModelContext) -> nn.Module:
    """The backbone with a cosine classifier, its first `freeze` stages frozen (-1: all but the classifier)."""
    from flowers_bench.backbone import freeze_stages, replace_classifier, stages
    from flowers_bench.nn import Classifier, CosineLinear

    backbone = context.backbone.create()
    count, scale = context.options["freeze"], context.options["cosine_scale"]
    freeze_stages(backbone, len(stages(backbone)) if count == -1 else count)
    replace_classifier(backbone, lambda dim, classes: CosineLinear(dim, classes, scale))
    return Classifier(backbone)


def focal(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Mean over the batch of -(1 - p_y)^gamma log p_y. Soft targets (N, C) weigh the same term of every class."""
    import torch
    import torch.nn.functional as F

    log_p = F.log_softmax(logits, dim=1)
    # Not quite zero: for gamma below 1 the slope of (1 - p)^gamma at p = 1 is infinite.
    miss = (1 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).eps)
    terms = -(miss**gamma) * log_p
    if target.ndim == 1:
        return terms.gather(1, target[:, None]).mean()
    return (target * terms).sum(1).mean()


def large_margin(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch of R (above): how far the wrong classes are from being equally likely. Zero for C = 2."""
    import torch
    import torch.nn.functional as F

    others = torch.ones_like(logits, dtype=torch.bool).scatter_(1, target[:, None], False)
    wrong = logits[others].view(len(logits), -1)
    log_q = F.log_softmax(wrong, dim=1)
    return 0.5 * ((log_q.exp() - 1 / wrong.shape[1]) * log_q).sum(1).mean()


def build_focal(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """F(z): hard or soft targets."""
    gamma = context.options["gamma"]
    return lambda output, target: focal(output.logits, target, gamma)


def build_focal_margin(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """F(z'): the true class's cosine counts `margin` less. `cosine_scale` is the model's, so that both have one value."""
    import torch.nn.functional as F

    gamma, shift = context.options["gamma"], context.options["cosine_scale"] * context.options["margin"]

    def focal_margin(output: Output, target: Tensor) -> Tensor:
        logits = output.logits - shift * F.one_hot(target, output.logits.shape[1])
        return focal(logits, target, gamma)

    return focal_margin


def build_hybrid_focal_margin(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """F(z) + lambda R(z)."""
    gamma, weight = context.options["gamma"], context.options["margin_weight"]
    return lambda output, target: focal(output.logits, target, gamma) + weight * large_margin(output.logits, target)


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
    weight = Option(0.3, "lambda, the weight of the margin term", minimum=0, maximum=100, search=(0.03, 3.0))
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
            "focal loss plus a regulariser that keeps the wrong classes alike",
            frozenset({"logits", "hard_targets"}),
            {"gamma": GAMMA, "margin_weight": weight},
            build=build_hybrid_focal_margin,
        ),
    ]


def _additive(summary: str, **options: float) -> Variant:
    return Variant(summary, options=options, baseline="full")


def _plain(summary: str, freeze: int = 0, recipe: Mapping[str, Any] = MappingProxyType({})) -> Variant:
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
                "Kobayashi 2019, Large margin in softmax cross-entropy loss, BMVC 2019",
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
                    "focal loss plus the margin regulariser, on a linear classifier",
                    model="classifier",
                    loss="hybrid-focal-margin",
                    baseline="full",
                ),
                "focal": _additive("no margin: focal loss on the cosines", margin=0.0),
                "margin": _additive("no focal factor: the cosine margin alone (CosFace)", gamma=0.0),
                "cosine": _additive("neither: cross-entropy of the scaled cosines", margin=0.0, gamma=0.0),
                "focal-linear": Variant(
                    "plain focal loss on a linear classifier", model="classifier", loss="focal", baseline="full"
                ),
                **{f"gamma{g:g}": _additive(f"gamma = {g:g}", gamma=g) for g in (0.5, 1.0, 5.0)},
                **{f"margin{m:g}": _additive(f"margin = {m:g}", margin=m) for m in (0.1, 0.35, 0.5)},
                "full": _plain("full fine-tuning: linear classifier, cross-entropy"),
                "frozen": _plain("linear probe: only the classifier is trained", -1, PROBE),
                "study": Variant(
                    "the study's row: focal loss plus a margin term, with its recipe",
                    model="classifier",
                    loss="hybrid-focal-margin",
                    recipe=STUDY,
                    baseline="study-full",
                ),
                "study-additive": Variant(
                    "the additive cosine margin with the study's recipe", recipe=STUDY, baseline="study-full"
                ),
                "study-full": _plain("the study's baseline, everything trained, with its recipe", 0, STUDY),
                "study-frozen": _plain(
                    "the study's baseline, only the classifier trained, with its recipe", -1, {**STUDY, "lr": 1e-3}
                ),
            },
            default="additive",
        )
    ]
