"""TransFG: a vision transformer's last block sees the patches that its other blocks looked at most, and nothing else.

Paper: He et al. 2022, "TransFG: a transformer architecture for fine-grained recognition" (AAAI, arXiv:2103.07976), equations 5 to 9. With a_l
the attention of block l of L, K heads of (tokens x tokens) each, and z the tokens behind block L - 1,

    a = a_L-1 a_L-2 ... a_1                                for each head, by matrix product
    p_k = the patch to which head k of a gives most of the class token's attention
    the last block sees [z_class, z_p1, ..., z_pK];        its class token is classified

    loss = cross-entropy  +  1/N^2 sum over images i of [ sum over j of i's class of (1 - s_ij)  +  sum over other j of max(s_ij - 0.4, 0) ]

with s_ij the cosine of two class tokens of the batch's N images.

What differs from the paper: patches do not overlap, since that would change a network's position embedding; images are those of the recipe, not 448 px; training is by
`focal-margin`'s recipe of full fine-tuning (AdamW), not by SGD. Attention is computed a second time to choose patches, without gradient, as choosing has none. Tokens that are neither
class nor patch (registers) are kept. Two heads may choose one patch, as in the authors' code, which divides the second term by N where the paper, and this, has N^2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import (
    Loss,
    LossContext,
    Model,
    ModelContext,
    Option,
    Recipe,
    Technique,
    UsageError,
    Variant,
    hookimpl,
)
from flowers_bench_plugins.common import FULL

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output


def build_selected_parts(context: ModelContext) -> nn.Module:
    """Build the transformer whose last block sees chosen patches. Raises `UsageError` for any other kind of backbone, and for one
    that lacks a class token, or a second block."""
    from flowers_bench.backbones import vision_transformer
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.transfg.layers import SelectedParts, attends_as_usual

    backbone = vision_transformer(context.backbone.create())
    if backbone.cls_token is None or len(backbone.blocks) < 2 or not all(map(attends_as_usual, backbone.blocks)):
        raise UsageError(
            f"backbone {context.backbone.name} has no class token, or no second block, or attention of another kind than "
            "timm's usual one. Choose one such as --backbone vit_base_patch16_224."
        )
    backbone.blocks = SelectedParts(backbone.blocks, backbone.num_prefix_tokens)
    return Classifier(backbone)


def build_contrast(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build cross-entropy with the contrast of embeddings; targets are hard (N,)."""
    import torch.nn.functional as F

    from flowers_bench_plugins.transfg.loss import contrast

    margin, weight = context.options.number("other_margin"), context.options.number("contrast_weight")

    def loss(output: Output, target: Tensor) -> Tensor:
        return F.cross_entropy(output.logits, target) + weight * contrast(output.embedding, target, margin)

    return loss


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "selected-parts",
            "a vision transformer whose last block sees the patches that were attended to most",
            needs=frozenset({"tokens"}),
            build=build_selected_parts,
            provides=frozenset({"logits", "embedding", "tokens"}),
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "contrast",
            "cross-entropy, and embeddings that are alike within a class and not too alike between classes",
            needs=frozenset({"logits", "embedding", "hard_targets"}),
            options={
                "other_margin": Option(
                    0.4, "how alike images of other classes may be", minimum=-1, maximum=1, search=(0.1, 0.7)
                ),
                "contrast_weight": Option(1.0, "the contrast's weight", minimum=0, maximum=1000, search=(0.1, 10.0)),
            },
            build=build_contrast,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="transfg",
            summary="a vision transformer decides by the patches that it looked at most",
            papers=(
                "He et al. 2022, TransFG: a transformer architecture for fine-grained recognition, arXiv:2103.07976",
            ),
            model="selected-parts",
            loss="contrast",
            augmentation="standard",
            recipe=Recipe().changed(**FULL),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={
                "transfg": Variant("chosen patches, and the contrast", baseline="plain"),
                "no-contrast": Variant("chosen patches alone", loss="cross-entropy", baseline="plain"),
                "contrast": Variant("the contrast alone", model="classifier", baseline="plain"),
                "plain": Variant("full fine-tuning", model="classifier", loss="cross-entropy"),
            },
            default="transfg",
        )
    ]
