"""AdaptFormer: the transformer stays, and a small network beside each MLP is trained.

Paper: Chen et al. 2022, "AdaptFormer: adapting vision transformers for scalable visual recognition" (arXiv:2205.13535),
section 3.2. With x' what attention gives and LN the norm before the MLP, a block computes

    x = MLP(LN(x')) + s W_up ReLU(W_down LN(x') + b_down) + s b_up + x'        W_down is m x D, W_up is D x m

W_up and the biases start at zero, so that the first step is the plain network. s is 0.1, m is 64. The classifier, which is
new, is trained in full; everything else is frozen.

What differs from the paper: the authors' code gives x' to the small network, without the norm that the equation has, and drops
a tenth of the values between its layers; here the equation holds, and nothing is dropped. They put a batch norm without parameters before the classifier, which no other
technique here has. They train by SGD at 0.1 for 256 images in batches of 1,024, with 20 of 100 epochs as warm-up and no weight decay; here the batch is 64 at the
same rate for an image, the momentum is Nesterov's, and the gradient is clipped, as it has no batch norm to keep it small. Where a network scales what its MLP
gives (DINOv2's), the sum of both is scaled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, UsageError, Variant, hookimpl
from flowers_bench_plugins.common import baselines

if TYPE_CHECKING:
    from torch import nn


def build_adaptformer(context: ModelContext) -> nn.Module:
    """Build a frozen VisionTransformer with a small network beside every MLP and a trainable classifier. Raises `UsageError`
    for any other kind of backbone."""
    from torch.nn import ReLU

    from flowers_bench.backbones import train_only_classifier, vision_transformer
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.adapter.layers import Beside, Bottleneck

    width, scale = context.options.integer("bottleneck"), context.options.number("branch_scale")
    backbone = vision_transformer(context.backbone.create())
    train_only_classifier(backbone)
    for name, block in backbone.blocks.named_children():
        if not hasattr(block, "mlp"):
            raise UsageError(f"block {name} ({type(block).__name__}) has no MLP.")
        bottleneck = Bottleneck(backbone.embed_dim, width, ReLU())
        block.mlp = Beside(block.get_submodule("mlp"), bottleneck, scale)
    return Classifier(backbone)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "adaptformer",
            "a frozen vision transformer with a small network beside every MLP",
            needs=frozenset({"tokens"}),
            options={
                "bottleneck": Option(64, "m, the width of each network", minimum=1, maximum=65536, search=(8, 256)),
                "branch_scale": Option(
                    0.1, "s, the factor of what it gives", minimum=0, maximum=100, search=(0.01, 1.0)
                ),
            },
            build=build_adaptformer,
            provides=frozenset({"logits", "embedding", "tokens"}),
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="adaptformer",
            summary="small trained networks beside the MLPs of a frozen vision transformer",
            papers=(
                "Chen et al. 2022, AdaptFormer: adapting vision transformers for scalable visual recognition, arXiv:2205.13535",
            ),
            model="adaptformer",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(
                optimizer="sgd", lr=0.025, weight_decay=0.0, warmup_epochs=20, epochs=100, batch_size=64, clip_norm=1.0
            ),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={
                "m64": Variant("of width 64, as in the paper", baseline="frozen"),
                **{
                    f"m{width}": Variant(f"of width {width}", options={"bottleneck": width}, baseline="frozen")
                    for width in (8, 256)
                },
                **baselines(),
            },
            default="m64",
        )
    ]
