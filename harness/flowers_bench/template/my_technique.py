"""Dropout before the classifier, a penalty on confident predictions, random erasing.

Papers: Srivastava et al. 2014, "Dropout" (JMLR 15); Pereyra et al. 2017, "Regularizing neural networks by penalizing
confident output distributions" (arXiv:1701.06548), section 3; Zhong et al. 2017, "Random erasing data augmentation"
(arXiv:1708.04896).

Torch is imported inside the functions, so that `flowers-bench list` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import (
    Augmentation,
    AugmentationContext,
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

#: The version of the plugin contract that this was written for.
FLOWERS_BENCH_API = 2


def build_model(context: ModelContext) -> nn.Module:
    """The backbone's pooled features (the embedding), dropout, and a linear classifier."""
    from torch import nn

    from flowers_bench.nn import Embedder

    backbone = context.backbone.create()
    backbone.reset_classifier(0)
    head = nn.Linear(backbone.head_hidden_size, context.num_classes)
    return Embedder(backbone, nn.Sequential(nn.Dropout(context.options.number("dropout")), head))


def build_loss(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Cross-entropy minus `penalty` times the entropy of the prediction, the mean over the batch."""
    import torch.nn.functional as F

    penalty = context.options.number("penalty")

    def loss(output: Output, target: Tensor) -> Tensor:
        log_p = F.log_softmax(output.logits, dim=1)
        entropy = -(log_p.exp() * log_p).sum(1).mean()
        return F.cross_entropy(output.logits, target) - penalty * entropy

    return loss


def build_augmentation(context: AugmentationContext) -> Callable[[Tensor], Tensor]:
    """Random crop, flip, and a random rectangle painted grey."""
    from torchvision.transforms import v2

    transform: Callable[[Tensor], Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(context.image_size, scale=(0.35, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomErasing(context.options.number("erase"), scale=(0.02, 0.2), value=128),
        ]
    )
    return transform


@hookimpl
def register_models() -> list[Model]:
    dropout = Option(0.2, "share of the embedding that is dropped while training", minimum=0, maximum=0.9)
    return [Model("my-technique", "dropout before the classifier", options={"dropout": dropout}, build=build_model)]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "my-technique",
            "cross-entropy with a penalty on confident predictions",
            needs=frozenset({"logits"}),
            options={"penalty": Option(0.1, "weight of the entropy", minimum=0, maximum=10)},
            build=build_loss,
        )
    ]


@hookimpl
def register_augmentations() -> list[Augmentation]:
    erase = Option(0.25, "probability that a rectangle is erased", minimum=0, maximum=1)
    return [
        Augmentation("my-technique", "crop, flip, random erasing", options={"erase": erase}, image=build_augmentation)
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    off = {"dropout": 0.0, "penalty": 0.0, "erase": 0.0}
    return [
        Technique(
            name="my-technique",
            summary="dropout, a confidence penalty and random erasing",
            papers=(
                "Srivastava et al. 2014, Dropout, JMLR 15",
                "Pereyra et al. 2017, Penalizing confident output distributions, arXiv:1701.06548",
                "Zhong et al. 2017, Random erasing data augmentation, arXiv:1708.04896",
            ),
            model="my-technique",
            loss="my-technique",
            augmentation="my-technique",
            recipe=Recipe(lr=1e-3, epochs=20, warmup_epochs=1),
            variants={
                # A bare `--plugin my-technique` runs the default variant and its baseline, and compares them.
                "full": Variant("all three", baseline="plain"),
                "plain": Variant("none of them", options=off),
                "penalty": Variant("the penalty alone", options={**off, "penalty": 0.1}, baseline="plain"),
            },
            default="full",
        )
    ]
