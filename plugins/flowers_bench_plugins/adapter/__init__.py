"""Adapters: the transformer stays, and small networks between its layers are trained.

Papers: Houlsby et al. 2019, "Parameter-efficient transfer learning for NLP" (arXiv:1902.00751), section 2 and figure 2; Pfeiffer
et al. 2021, "AdapterFusion: non-destructive task composition for transfer learning" (arXiv:2005.00247) for one
adapter a block. With S a sublayer of a block, attention or MLP, and x its input, the block computes

    x + A(S(x))        A(h) = h + W_up s(W_down h + b_down) + b_up        W_down is m x D, W_up is D x m

    houlsby         behind the attention and behind the MLP, the norms trained too
    pfeiffer        behind the MLP only

W_up and b_up start at zero, so that the first step is the plain network. The classifier, which is new, is trained in full;
everything else is frozen. Unlike LoRA, adapters cannot be merged into the layers around them.

What differs from the paper: Houlsby draws both matrices with a deviation of 0.01, near the identity; here W_up is exactly zero, and W_down starts as a linear
layer. s is GELU, as in Houlsby's code. Both papers adapt models of language, whose norms come after the sum: there A stands before the norm, too. Houlsby trains by Adam at
3e-5 to 3e-3, chosen on validation, with a tenth of the steps as warm-up and a linear decay; here AdamW at 1e-3 and a cosine. m is 64, the middle of the
paper's sizes. Where a network scales what a sublayer gives (DINOv2's), A stands behind that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl
from flowers_bench_plugins.common import baselines

if TYPE_CHECKING:
    from torch import nn

# Behind which sublayers of a block.
PLACES = {"attention+mlp": ("ls1", "ls2"), "mlp": ("ls2",)}


def build_adapters(context: ModelContext) -> nn.Module:
    """Build a frozen VisionTransformer with adapters in every block and a trainable classifier. Raises `UsageError` for any
    other kind of backbone."""
    from flowers_bench.backbones import train_only_classifier, vision_transformer
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.adapter.layers import add_adapters
    from flowers_bench_plugins.norm_tuning import norm_parameters

    backbone = vision_transformer(context.backbone.create())
    train_only_classifier(backbone)
    if context.options.flag("train_norms"):
        for parameter in norm_parameters(backbone):
            parameter.requires_grad_(True)
    add_adapters(backbone, PLACES[context.options.text("places")], context.options.integer("bottleneck"))
    return Classifier(backbone)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "adapters",
            "a frozen vision transformer with small networks behind its sublayers",
            needs=frozenset({"tokens"}),
            options={
                "bottleneck": Option(64, "m, the width of each adapter", minimum=1, maximum=65536, search=(8, 256)),
                "places": Option("attention+mlp", "behind which sublayers of a block", choices=tuple(PLACES)),
                "train_norms": Option(True, "the network's own norms are trained too"),
            },
            build=build_adapters,
            provides=frozenset({"logits", "embedding", "tokens"}),
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="adapter",
            summary="small trained networks between the layers of a frozen vision transformer",
            papers=(
                "Houlsby et al. 2019, Parameter-efficient transfer learning for NLP, arXiv:1902.00751",
                "Pfeiffer et al. 2021, AdapterFusion: non-destructive task composition for transfer learning, arXiv:2005.00247",
            ),
            model="adapters",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup_epochs=3, epochs=30, batch_size=32),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={
                "houlsby": Variant("behind attention and MLP, norms trained too", baseline="frozen"),
                "pfeiffer": Variant(
                    "behind the MLP only", options={"places": "mlp", "train_norms": False}, baseline="frozen"
                ),
                **{
                    f"b{width}": Variant(
                        f"as houlsby, of width {width}", options={"bottleneck": width}, baseline="frozen"
                    )
                    for width in (8, 256)
                },
                **baselines(),
            },
            default="houlsby",
        )
    ]
