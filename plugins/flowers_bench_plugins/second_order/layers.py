"""Pooling by products of features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench import UsageError
from flowers_bench.nn import Output

#: Newton-Schulz steps, and what is added under the root of a product.
STEPS, UNDER_ROOT = 5, 1e-5


def average(features: Tensor) -> Tensor:
    """Compute the mean over the image: (N, D, H, W) to (N, D)."""
    return features.mean((2, 3))


def bilinear(features: Tensor) -> Tensor:
    """Compute the mean outer product, its signed root, scaled to length 1: (N, D, H, W) to (N, D * D) (Lin et al. 2015)."""
    x = features.flatten(2)
    products = (x @ x.mT / x.shape[2]).flatten(1)
    return F.normalize(products.sign() * (products.abs() + UNDER_ROOT).sqrt(), dim=1)


def isqrt(features: Tensor) -> Tensor:
    """Compute the upper triangle of the covariance's root: (N, D, H, W) to (N, D (D + 1) / 2) (Li et al. 2018)."""
    x = features.flatten(2)
    x = x - x.mean(2, keepdim=True)
    root = square_root(x @ x.mT / x.shape[2], STEPS)
    rows, columns = torch.triu_indices(root.shape[1], root.shape[1], device=root.device)
    return root[:, rows, columns]


def square_root(matrix: Tensor, steps: int) -> Tensor:
    """Compute about the square root of positive semidefinite matrices (N, D, D) by coupled Newton-Schulz steps."""
    # A feature map without any spread has a trace of zero, and a root of zero.
    trace = matrix.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(matrix.dtype).tiny)[:, None, None]
    identity = torch.eye(matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
    y, z = matrix / trace, identity.expand_as(matrix)
    for _ in range(steps):
        change = 0.5 * (3 * identity - z @ y)
        y, z = y @ change, change @ z
    return y * trace.sqrt()


def keep_resolution(backbone: nn.Module) -> None:
    """Take the last reduction by strides out of a CNN, in place, so that its feature map has twice the height and width.

    Raises:
        UsageError: there is none.
    """
    strided = [name for name, module in backbone.named_modules() if _stride(module) > 1]
    if not strided:
        raise UsageError(f"{type(backbone).__name__} has no strides, so no feature map that could be made finer.")
    stage = _up_to_number(strided[-1])
    for name in strided:
        if _up_to_number(name) == stage:
            layer = backbone.get_submodule(name)
            if isinstance(layer, nn.Conv2d):
                layer.stride = (1, 1)
            else:  # a pooling of its own, or that of a shortcut, which then has the size of what it is added to
                backbone.set_submodule(name, nn.Identity())


def _stride(module: nn.Module) -> int:
    stride = module.stride if isinstance(module, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)) else 1
    return int(stride if isinstance(stride, int) else max(stride))


def _up_to_number(name: str) -> str:
    """Give a module's name up to its first part with a number, which names the stage: `layer4`, `blocks.5`, `features.30`."""
    parts = name.split(".")
    ends = [index for index, part in enumerate(parts) if any(character.isdigit() for character in part)]
    return ".".join(parts[: ends[0] + 1]) if ends else name


POOLINGS: Mapping[str, Callable[[Tensor], Tensor]] = {"average": average, "bilinear": bilinear, "isqrt": isqrt}


class SecondOrder(nn.Module):
    """A backbone's features, reduced, pooled and classified: images (N, 3, S, S) to `Output`.

    Args:
        backbone: gives a feature map, and nothing more.
        found: its channels.
        channels: D.
        pooling: a name of `POOLINGS`.
        num_classes: C.
    """

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, found: int, channels: int, pooling: str, num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.reduce = nn.Sequential(nn.Conv2d(found, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
        self.pooling = pooling
        width = {"average": channels, "bilinear": channels**2, "isqrt": channels * (channels + 1) // 2}[pooling]
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Output:
        """Compute features, reduction, pooling and classifier."""
        features = self.reduce(self.backbone.forward_features(images))  # type: ignore[operator]
        # Products and roots need more digits than autocast leaves.
        with torch.autocast(images.device.type, enabled=False):
            embedding = POOLINGS[self.pooling](features.float() if features.dtype != torch.float64 else features)
        return Output(self.classifier(embedding), embedding)

    def extra_repr(self) -> str:
        """Describe the pooling, for `print`."""
        return self.pooling
