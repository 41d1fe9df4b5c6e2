"""Cosine loss: only the direction of the network's output counts. For training from scratch on few images.

Paper: Barz & Denzler 2020, "Deep learning on small datasets without pre-training using cosine loss" (WACV,
arXiv:1901.09054), section 3: the cosine loss, and its combination with cross-entropy, lambda = 0.1.

With f(x) the network's C outputs, psi(x) = f(x) / |f(x)|, y the class, e_y its one-hot vector, and g a linear
classifier on psi:

    cosine          L(x, y) = 1 - <e_y, psi(x)>
    combined        L(x, y) = 1 - <e_y, psi(x)> + lambda * cross-entropy(g(psi(x)), y)

The loss is bounded, and nothing is gained by longer outputs: an image that is hopeless cannot dominate a batch, and
training does not end up pushing logits towards infinity, as cross-entropy does on few images. `cosine` predicts by the
nearest one-hot vector, the combination by g. Class vectors other than one-hot ones (the paper's hierarchy) are left
out.

What differs from the paper: the paper trains ResNet-50 at 448 px by SGD with warm restarts, momentum without Nesterov,
and gradients clipped at norm 10; here one cosine cycle with Nesterov's momentum, the usual augmentation without its
random erasing, and any backbone. The authors searched the maximal rate for each loss and data set;
for Flowers102, in batches of 96, they name 0.5 for both cosine losses, 1 for cross-entropy and 0.1 with label
smoothing. In batches of 32 these are a third: 0.33 and 0.033, and 0.2 for the cosine losses. g starts as the identity,
so that it begins by agreeing with the cosines: at weight 0.1 it would learn that slowly. Their label smoothing is 0.1,
as here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Loss, LossContext, Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output


def build_class_embedding(context: ModelContext) -> nn.Module:
    """Build the backbone with psi as its embedding; logits are g of it, or psi itself where g would not be trained."""
    from torch import nn

    from flowers_bench.backbones import replace_classifier
    from flowers_bench.nn import Embedder, L2Normalize

    backbone = context.backbone.create()
    replace_classifier(backbone, lambda features, classes: nn.Sequential(nn.Linear(features, classes), L2Normalize()))
    if context.options.number("cross_entropy_weight") == 0:
        return Embedder(backbone, nn.Identity())
    g = nn.Linear(context.num_classes, context.num_classes)
    nn.init.eye_(g.weight)
    nn.init.zeros_(g.bias)
    return Embedder(backbone, g)


def build_cosine(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build the combined loss, which with weight 0 is the cosine loss; targets are hard (N,) or soft (N, C)."""
    import torch.nn.functional as F

    weight = context.options.number("cross_entropy_weight")

    def cosine(output: Output, target: Tensor) -> Tensor:
        aim = F.one_hot(target, context.num_classes) if target.ndim == 1 else target
        loss = (1 - F.cosine_similarity(output.embedding, aim.to(output.embedding.dtype))).mean()
        return loss + weight * F.cross_entropy(output.logits, target) if weight else loss

    return cosine


# Model and loss share this setting: the classifier exists if it is trained.
WEIGHT = Option(
    0.1, "lambda, the weight of cross-entropy; 0: no classifier", minimum=0, maximum=1000, search=(0.01, 1.0)
)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "class-embedding",
            "any timm backbone with a normalised embedding of one dimension per class, and a classifier on it",
            options={"cross_entropy_weight": WEIGHT},
            build=build_class_embedding,
            provides=frozenset({"logits", "embedding", "class_embedding"}),
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "cosine",
            "cosine between output and class vector, plus a little cross-entropy",
            needs=frozenset({"logits", "class_embedding"}),
            options={"cross_entropy_weight": WEIGHT},
            build=build_cosine,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="cosine-loss",
            summary="the direction of the output alone, for training from scratch on few images",
            papers=(
                "Barz & Denzler 2020, Deep learning on small datasets without pre-training using cosine loss, "
                "arXiv:1901.09054",
            ),
            model="class-embedding",
            loss="cosine",
            augmentation="standard",
            recipe=Recipe(
                optimizer="sgd", lr=0.2, weight_decay=5e-4, batch_size=32, epochs=100, warmup_epochs=3, clip_norm=10.0
            ),
            variants={
                "combined": Variant("cosine loss plus 0.1 cross-entropy", baseline="cross-entropy"),
                "cosine": Variant("cosine loss alone", options={"cross_entropy_weight": 0.0}, baseline="cross-entropy"),
                "cross-entropy": Variant(
                    "the twin with cross-entropy alone, at the rate that suited it in the paper",
                    model="classifier",
                    loss="cross-entropy",
                    recipe={"lr": 0.33},
                ),
                "label-smoothing": Variant(
                    "cross-entropy with smoothed targets, the paper's other baseline",
                    model="classifier",
                    loss="cross-entropy",
                    options={"label_smoothing": 0.1},
                    recipe={"lr": 0.033},
                    baseline="cross-entropy",
                ),
            },
            default="combined",
        )
    ]
