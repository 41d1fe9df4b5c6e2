"""The multi-scale block, a network that is extended by it, and the part of a backbone that gives it features."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from flowers_bench import UsageError
from flowers_bench.nn import Output


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Compute x + f(x), of any shape that `inner` keeps."""
        found: Tensor = x + self.inner(x)
        return found


class Parallel(nn.Module):
    """The same input through several branches, concatenated over channels (dimension 1)."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """Compute and concatenate the branches: (N, C, H, W) to (N, sum of the branches' channels, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def multiscale_block(channels: int) -> nn.Module:
    """Build M above, (N, C, H, W) to the same, which starts as the identity."""
    width = max(1, channels // 4)
    branches = [
        nn.Sequential(nn.Conv2d(channels, width, size, padding=size // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        for size in (1, 3, 5)
    ]
    last = nn.BatchNorm2d(channels)
    nn.init.zeros_(last.weight)
    return Residual(nn.Sequential(Parallel(*branches), nn.Conv2d(3 * width, channels, 1, bias=False), last))


class Extended(nn.Module):
    """A convolutional backbone with modules of its own after its features, and a head: images to `Output`.

    Args:
        backbone: gives features (N, C, H, W) by `forward_features`; its own head is not used.
        extension: (N, C, H, W) to the same.
        neck: pooled features (N, C) to the embedding (N, D).
        classifier: (N, D) to logits.
    """

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, extension: nn.Module, neck: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.extension = extension
        self.neck = neck
        self.classifier = classifier

    def forward(self, images: Tensor) -> Output:
        """Compute features, extension, average over the image and head: images (N, 3, S, S) to `Output`."""
        features = self.extension(self.backbone.forward_features(images))  # type: ignore[operator]
        embedding = self.neck(features.mean((2, 3)))
        return Output(self.classifier(embedding), embedding)


def features(backbone: nn.Module, image_size: int) -> tuple[int, list[str]]:
    """Find how many channels `forward_features` gives, and the names of the modules with parameters that it does not
    use, which follow the features.

    Raises:
        UsageError: it does not give features (N, C, H, W).
    """
    used: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: used.add(name)) for name, module in backbone.named_modules()
    ]
    blank = next(backbone.parameters()).new_zeros(1, 3, image_size, image_size)
    with torch.no_grad():
        found = backbone.eval().forward_features(blank)  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    if not isinstance(found, torch.Tensor) or found.ndim != 4 or found.shape[2] != found.shape[3]:
        raise UsageError(
            f"{type(backbone).__name__} gives no feature map (channels, height, width) to extend. Choose a CNN such as "
            "--backbone vgg16, resnet18 or efficientnet_b0."
        )
    owners = [n for n, m in backbone.named_modules() if next(m.parameters(recurse=False), None) is not None]
    return int(found.shape[1]), [name for name in owners if name and name not in used]


def keep_features(backbone: nn.Module, image_size: int) -> int:
    """Remove, in place, what `forward_features` does not use; give the number of its channels. Raises `UsageError` as
    `features` does."""
    channels, after = features(backbone, image_size)
    for name in after:
        backbone.set_submodule(name, nn.Identity())
    return channels
