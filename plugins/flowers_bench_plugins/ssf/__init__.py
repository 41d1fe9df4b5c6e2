"""Scaling and shifting features: the transformer stays, and what each of its layers gives is scaled and shifted.

Paper: Lian et al. 2022, "Scaling & shifting your features: a new baseline for efficient model tuning" (arXiv:2210.08823),
section 3.2. Behind each operation of the network, with one value for each channel,

    y = g * x + b        g starts at 1, b at 0; only they and the classifier are trained

Operations are the patch embedding, in each block both norms, the projection to query, key and value, the attention's output
projection and both layers of the MLP, and the last norm. Afterwards g and b can be written into the layer before them
(`ScaleShift.merged` in `layers.py`): the trained network costs nothing extra.

What differs from the paper: there g is drawn from a normal distribution around 1 and b from one around 0, of deviation 0.02; here they are exact, so that
the first step is the plain network. The rate is the authors' for Flowers102 of VTAB-1k, 5e-3, their batch of 64 in two halves, their epochs and warm-up;
the augmentation is that of every technique here, where they have none on that data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Recipe, Technique, Variant, hookimpl
from flowers_bench_plugins.common import baselines

if TYPE_CHECKING:
    from torch import nn


def build_scaled(context: ModelContext) -> nn.Module:
    """Build a frozen VisionTransformer with a scale and a shift behind each operation and a trainable classifier. Raises
    `UsageError` for any other kind of backbone."""
    from flowers_bench.backbones import train_only_classifier, vision_transformer
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.ssf.layers import scale_and_shift

    backbone = vision_transformer(context.backbone.create())
    train_only_classifier(backbone)
    scale_and_shift(backbone)
    return Classifier(backbone)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "scaled",
            "a frozen vision transformer with a scale and a shift behind each operation",
            needs=frozenset({"tokens"}),
            build=build_scaled,
            provides=frozenset({"logits", "embedding", "tokens"}),
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="ssf",
            summary="a frozen vision transformer whose features are scaled and shifted",
            papers=(
                "Lian et al. 2022, Scaling & shifting your features: a new baseline for efficient model tuning, arXiv:2210.08823",
            ),
            model="scaled",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=5e-3, weight_decay=5e-5, warmup_epochs=10, epochs=100, batch_size=64),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={"ssf": Variant("behind every operation", baseline="frozen"), **baselines()},
            default="ssf",
        )
    ]
