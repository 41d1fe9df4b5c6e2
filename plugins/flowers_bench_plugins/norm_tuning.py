"""Norm tuning: only the scales and shifts of a pretrained network's normalisations are trained.

Papers: Basu et al. 2023, "Strong baselines for parameter efficient few-shot fine-tuning" (arXiv:2304.01917), who train the layer
norms of vision transformers; Frankle et al. 2021, "Training BatchNorm and only BatchNorm" (arXiv:2003.00152), and Kanavati &
Tsuneki 2021, "Partial transfusion: on the expressive influence of trainable batch norm parameters for transfer learning"
(arXiv:2102.05543), who train batch norms. Of each normalisation, with mean m and standard deviation s,

    y = w (x - m) / s + b        w and b are trained

All else stays, but for the classifier, which is new. Nothing is added, so that the first step is the plain network, and the
trained one costs what it cost.

What differs from the paper: Basu adds a scale per attention head in a variant, which is left out, and learns from episodes'
support sets; Frankle trains from random weights. Batch norms that are trained take their statistics from the batch, and keep an average for
evaluation, as in both papers on them. The rate is ours, for AdamW.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Recipe, Technique, Variant, hookimpl
from flowers_bench_plugins.common import baselines, train_classifier_and

if TYPE_CHECKING:
    from torch import nn


def build_norms(context: ModelContext) -> nn.Module:
    """Build the backbone with its normalisations and its classifier to be trained. Raises `UsageError` if it has none."""
    from flowers_bench.nn import Classifier

    backbone = context.backbone.create()
    train_classifier_and(backbone, norm_parameters(backbone), "normalisation with a scale")
    return Classifier(backbone)


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """List the scales and shifts of all batch, layer, group and root-mean-square norms in a network, timm's own included."""
    from timm.layers import RmsNorm
    from torch import nn
    from torch.nn.modules.batchnorm import _NormBase

    kinds = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, RmsNorm)
    return [parameter for module in network.modules() if isinstance(module, kinds) for parameter in module.parameters()]


@hookimpl
def register_models() -> list[Model]:
    return [Model("norms", "any timm backbone with its normalisations and its classifier trained", build=build_norms)]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="norm-tuning",
            summary="only the normalisations' scales and shifts and the classifier are trained",
            papers=(
                "Basu et al. 2023, Strong baselines for parameter efficient few-shot fine-tuning, arXiv:2304.01917",
                "Frankle et al. 2021, Training BatchNorm and only BatchNorm, arXiv:2003.00152",
                "Kanavati & Tsuneki 2021, Partial transfusion: on the expressive influence of trainable batch norm parameters "
                "for transfer learning, arXiv:2102.05543",
            ),
            model="norms",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup_epochs=2, epochs=30, batch_size=32),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={"norms": Variant("all normalisations", baseline="frozen"), **baselines()},
            default="norms",
        )
    ]
