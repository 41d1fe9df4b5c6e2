"""The losses of an epoch: each must be finite, and those that steps report add up to the training loss.

Reading a number from a GPU waits until it has computed everything before it, and meanwhile nobody gives it more to do. So
there each loss is copied as soon as it is computed, and read a step later, when it has long arrived.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from flowers_bench.util.errors import TrialFailed


@dataclass(frozen=True)
class At:
    """Where in the training a loss was computed: epoch, from 1; step, from 0; steps of the epoch."""

    epoch: int
    step: int
    steps: int


class Noted:
    """A loss that is on its way to be read.

    Args:
        loss: a scalar; from CUDA it is copied without waiting for it to be computed.
        at: where it was computed.
    """

    def __init__(self, loss: Tensor, at: At) -> None:
        self.at = at
        self._value: Tensor | float = loss.detach()
        self._arrived: torch.cuda.Event | None = None
        if loss.is_cuda:
            self._value = torch.empty_like(self._value, device="cpu", pin_memory=True)
            self._value.copy_(loss.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def read(self) -> float:
        """Read the number. Raises `TrialFailed` if it is not finite."""
        if self._arrived is not None:
            self._arrived.synchronize()
        value, at = float(self._value), self.at
        self._value, self._arrived = value, None
        if not math.isfinite(value):
            raise TrialFailed(
                f"the loss is {value} at epoch {at.epoch}, step {at.step + 1} of {at.steps}. The last good checkpoint is "
                "kept; a lower learning rate usually helps:  --set lr=..."
            )
        return value


class Losses:
    """The losses of a training.

    Args:
        late: whether each is read at the next step, and not at once.
    """

    def __init__(self, *, late: bool) -> None:
        self._late = late
        self._unread: deque[Noted] = deque()
        self._reported: list[tuple[Noted, int]] = []

    def note(self, loss: Tensor, at: At) -> Noted:
        """Note a scalar, and read those whose turn it is. Raises `TrialFailed` if it is no scalar, or one of these not finite."""
        if loss.numel() != 1:
            raise TrialFailed(f"the loss has shape {tuple(loss.shape)}: average it to a scalar.")
        noted = Noted(loss, at)
        self._unread.append(noted)
        while self._unread and not (self._late and self._unread[0].at == at):
            self._unread.popleft().read()
        return noted

    def report(self, noted: Noted, images: int) -> None:
        """Count a noted loss as that of so many images."""
        self._reported.append((noted, images))

    def mean(self) -> float:
        """Compute the mean over the images reported since it was last asked for, after every noted loss was read. Raises
        `TrialFailed` if one is not finite."""
        while self._unread:
            self._unread.popleft().read()
        total, images = 0.0, 0
        for noted, count in self._reported:  # one by one: `sum` rounds otherwise in other versions of Python
            total += noted.read() * count
            images += count
        self._reported.clear()
        return total / images
