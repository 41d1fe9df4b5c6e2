"""BitFit: only the biases of a pretrained network are trained.

Paper: Ben Zaken et al. 2022, "BitFit: simple parameter-efficient fine-tuning for transformer-based masked language-models"
(arXiv:2106.10199), section 3. Of each layer

    h = W x + b        W stays, b is trained

Biases are those of query, key, value and output projection, of the two layers of each MLP, of the layer norms, and of the patch
embedding: a thousandth of the parameters. The classifier, which is new, is trained in full. Nothing is added, so that the first
step is the plain network, and the trained one costs what it cost.

What differs from the paper: its models are of language, trained by AdamW in batches of 16 at a constant rate between 1e-4 and
1e-3, which it chooses on validation; here a warm-up, a cosine and the largest of these rates. Its smaller variant, which trains the biases of the query and of the
MLP's first layer, is left out, as timm has one bias for query, key and value. A convolutional network fits too, which the
paper does not have: with batch norm, its biases are those of the batch norms, whose statistics then follow the new images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Recipe, Technique, Variant, hookimpl
from flowers_bench_plugins.common import baselines, train_classifier_and

if TYPE_CHECKING:
    from torch import nn


def build_biases(context: ModelContext) -> nn.Module:
    """Build the backbone with its biases and its classifier to be trained. Raises `UsageError` if it has no biases."""
    from flowers_bench.nn import Classifier

    backbone = context.backbone.create()
    biases = [parameter for name, parameter in backbone.named_parameters() if name.split(".")[-1] == "bias"]
    train_classifier_and(backbone, biases, "bias")
    return Classifier(backbone)


@hookimpl
def register_models() -> list[Model]:
    return [Model("biases", "any timm backbone with its biases and its classifier trained", build=build_biases)]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="bitfit",
            summary="only the biases and the classifier are trained",
            papers=(
                "Ben Zaken et al. 2022, BitFit: simple parameter-efficient fine-tuning for transformer-based masked "
                "language-models, arXiv:2106.10199",
            ),
            model="biases",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.01, warmup_epochs=2, epochs=30, batch_size=32),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={"biases": Variant("all biases", baseline="frozen"), **baselines()},
            default="biases",
        )
    ]
