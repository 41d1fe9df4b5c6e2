"""What a technique's own pictures are drawn from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class FigureContext:
    """A trained model and a few test images.

    Attributes:
        model: in evaluation mode, best weights loaded.
        images: uint8 (N, 3, S, S), the first test images of different classes, cropped as for evaluation.
        labels: N class indices.
        class_names: index = label.
        normalize: uint8 batch to what the model takes.
    """

    model: nn.Module
    images: Tensor
    labels: Sequence[int]
    class_names: Sequence[str]
    normalize: Callable[[Tensor], Tensor]
