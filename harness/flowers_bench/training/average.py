"""The moving average of a model's weights that `ema_decay` asks for, and that is evaluated in place of the model.

Update n, from 1, keeps min(ema_decay, 1 - n^(-2/3)) of the average. So the first one keeps nothing of the initial
weights, and a training of few steps averages over few: about the last n^(2/3). The rule is that of timm's `ModelEmaV3`
with its warm-up. After 100 updates less than 0.001 % is left of the first one, whatever the decay.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn

#: 2/3 forgets the first steps sooner than a plain mean over all steps so far (1) would.
_POWER = 2 / 3


def kept_share(decay: float, update: int) -> float:
    """How much of the average stays at this update, counted from 1."""
    return min(decay, 1 - float(update**-_POWER))


class AverageState(TypedDict):
    """The averaged values by name, and the number of updates."""

    model: dict[str, Tensor]
    updates: int


class Average:
    """An exponential moving average of what a model's `state_dict` holds; integer buffers are the model's own.

    Attributes:
        model: a copy of the model that has the averaged values.
        updates: how many it has had.
    """

    def __init__(self, source: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(source).requires_grad_(False)
        self.updates = 0
        self._decay = decay
        # Places and not tensors: a module may put a new tensor in a buffer's place at every step.
        places = list(zip(_places(self.model), _places(source), strict=True))
        floats = [pair for pair in places if _held(pair[0]).is_floating_point()]
        self._averaged = [list(side) for side in zip(*floats, strict=True)]
        self._copied = [pair for pair in places if not _held(pair[0]).is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the source's present values."""
        self.updates += 1
        means, values = ([_held(place) for place in side] for side in self._averaged)
        torch._foreach_lerp_(means, values, 1 - kept_share(self._decay, self.updates))
        for mean, value in self._copied:
            _held(mean).copy_(_held(value))

    def state_dict(self) -> AverageState:
        """What a continued run needs: the averaged values, and the number of updates."""
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: AverageState) -> None:
        """Continue from a `state_dict`."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


_Place = tuple[Mapping[str, Tensor | None], str]


def _places(model: nn.Module) -> Iterator[_Place]:
    """Where each parameter and each persistent buffer is to be found, once each: weights may be tied."""
    seen: set[int] = set()
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) not in seen and name not in module._non_persistent_buffers_set:
                    seen.add(id(tensor))
                    yield table, name


def _held(place: _Place) -> Tensor:
    table, name = place
    tensor = table[name]
    assert tensor is not None
    return tensor
