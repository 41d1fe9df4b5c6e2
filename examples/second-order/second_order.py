"""Second-order pooling, and a loss that confuses pairs.

Papers: Lin et al. 2015, "Bilinear CNN models for fine-grained visual recognition" (arXiv:1504.07889), section 3;
Li et al. 2018, "Towards faster training of global covariance pooling networks by iterative matrix square root
normalization" (arXiv:1712.01034), equations 3 to 7; Dubey et al. 2018, "Pairwise confusion for fine-grained visual
classification" (arXiv:1705.08016), section 3.1.

What differs: one network instead of Lin's two; a 1x1 convolution reduces its channels first, in every variant, as Li
does it; confusion pairs the first half of a batch with its second half, as Dubey, and counts pairs of two classes only.
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

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output

FLOWERS_BENCH_API = 1


def average(features: Tensor) -> Tensor:
    """(N, D, H, W) to (N, D): the mean over the image."""
    return features.mean((2, 3))


def bilinear(features: Tensor) -> Tensor:
    """(N, D, H, W) to (N, D * D): the mean outer product, its signed square root, scaled to unit length (Lin, 3)."""
    import torch.nn.functional as F

    x = features.flatten(2)
    products = (x @ x.mT / x.shape[2]).flatten(1)
    return F.normalize(products.sign() * (products.abs() + 1e-5).sqrt(), dim=1)  # the root's slope at 0 is infinite


def isqrt(features: Tensor) -> Tensor:
    """(N, D, H, W) to (N, D * (D + 1) / 2): the upper triangle of the covariance's matrix square root (Li, 3 to 7)."""
    import torch

    x = features.flatten(2)
    dim = x.shape[1]
    x = x - x.mean(2, keepdim=True)
    identity = torch.eye(dim, dtype=x.dtype, device=x.device)
    covariance = x @ x.mT / x.shape[2] + 1e-4 * identity
    root = square_root(covariance)
    rows, columns = torch.triu_indices(dim, dim, device=x.device)
    return root[:, rows, columns]


def square_root(matrix: Tensor, iterations: int = 8) -> Tensor:
    """The square root of symmetric positive definite matrices (N, D, D), by coupled Newton-Schulz iteration (Li, 4 to 6)."""
    import torch

    trace = matrix.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    y, z = matrix / trace, identity.expand_as(matrix)
    for _ in range(iterations):
        step = 0.5 * (3 * identity - z @ y)
        y, z = y @ step, step @ z
    return y * trace.sqrt()


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {"average": average, "bilinear": bilinear, "isqrt": isqrt}


def build_model(context: ModelContext) -> nn.Module:
    """The backbone's features, reduced by a 1x1 convolution, pooled, and a linear classifier."""
    import torch
    from torch import nn

    from flowers_bench.nn import Output

    pool, channels = POOLINGS[context.options["pooling"]], context.options["channels"]

    class SecondOrder(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone = backbone
            self.reduce = nn.Sequential(
                nn.Conv2d(backbone.num_features, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
            )
            width = pool(torch.zeros(1, channels, 2, 2)).shape[1]
            self.classifier = nn.Linear(width, context.num_classes)

        def forward(self, images: Tensor) -> Output:
            features = self.reduce(self.backbone.forward_features(images))
            # Products and roots need float32, whatever autocast made of the features.
            with torch.autocast(images.device.type, enabled=False):
                embedding = pool(features.float())
            return Output(self.classifier(embedding), embedding)

    backbone = context.backbone.create()
    if not any(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in backbone.modules()):
        raise UsageError("second-order pools the feature maps of a convolutional backbone, such as resnet18.")
    backbone.reset_classifier(0)
    return SecondOrder(backbone)


def build_loss(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Cross-entropy plus `confusion` times the mean squared distance between predictions of pairs of different classes.

    The pairs are image i of the batch's first half and image i of its second half (Dubey, 3.1).
    """
    import torch.nn.functional as F

    weight = context.options["confusion"]

    def loss(output: Output, target: Tensor) -> Tensor:
        half = len(target) // 2
        p = output.logits.softmax(1)
        distance = (p[:half] - p[half : 2 * half]).square().sum(1)
        different = target[:half] != target[half : 2 * half]
        confusion = (distance * different).sum() / max(half, 1)
        return F.cross_entropy(output.logits, target) + weight * confusion

    return loss


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "second-order",
            "products of all pairs of channels, averaged over the image",
            needs=frozenset({"conv3x3"}),
            options={
                "pooling": Option("bilinear", "how feature maps become a vector", choices=tuple(POOLINGS)),
                "channels": Option(64, "channels left before they are multiplied", minimum=2, maximum=1024),
            },
            build=build_model,
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "pairwise-confusion",
            "cross-entropy, and predictions for different classes pulled towards each other",
            needs=frozenset({"logits", "hard_targets"}),
            options={"confusion": Option(1.0, "weight of the confusion", minimum=0, maximum=100)},
            build=build_loss,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="second-order",
            summary="bilinear pooling with pairwise confusion",
            papers=(
                "Lin et al. 2015, Bilinear CNN models for fine-grained visual recognition, arXiv:1504.07889",
                "Li et al. 2018, Iterative matrix square root normalization, arXiv:1712.01034",
                "Dubey et al. 2018, Pairwise confusion for fine-grained visual classification, arXiv:1705.08016",
            ),
            model="second-order",
            loss="pairwise-confusion",
            augmentation="standard",
            recipe=Recipe(lr=1e-3, epochs=20, warmup_epochs=1),
            variants={
                "bilinear": Variant("bilinear pooling, with confusion", baseline="average"),
                "isqrt": Variant("the covariance's square root", options={"pooling": "isqrt"}, baseline="average"),
                "no-confusion": Variant("cross-entropy alone", loss="cross-entropy", baseline="bilinear"),
                "average": Variant("average pooling", options={"pooling": "average"}, loss="cross-entropy"),
            },
            default="bilinear",
        )
    ]
