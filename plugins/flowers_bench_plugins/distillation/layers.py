"""A student that is accompanied by its teacher while it trains."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from flowers_bench.nn import Classifier, Output


class Distilled(Classifier):
    """A backbone that is accompanied by a trained network while it trains.

    The teacher is no part of this module: it is not in the state, not among the parameters, and never run in
    evaluation, so the student is saved, counted and timed alone.

    Args:
        backbone: the student, as for `Classifier`.
        load: gives the teacher as a function from images, as the student gets them, to logits; called when training
            starts.
    """

    def __init__(self, backbone: nn.Module, load: Callable[[torch.device], Callable[[Tensor], Tensor]]) -> None:
        super().__init__(backbone)
        self._load = load
        self._teacher: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Tensor) -> Output:
        """Compute the `Output` of images (N, 3, S, S) as `Classifier` does; in training mode it has the teacher's
        logits (N, C) too."""
        output = super().forward(images)
        if self.training:
            self._teacher = self._teacher or self._load(images.device)
            with torch.no_grad():
                output.teacher = self._teacher(images)
        return output
