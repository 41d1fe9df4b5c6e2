"""Models without memory: their shapes and what they refuse, in a hundredth of a second."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: What initialisation draws with. On the meta device each decomposes into many Python calls, and changes nothing.
_DRAWING = frozenset({Tensor.normal_, Tensor.uniform_, Tensor.erfinv_, Tensor.clamp_})


class _DrawingNothing(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if func in _DRAWING and args[0].is_meta else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Make tensors on the meta device while active, and skip drawing their values."""
    with torch.device("meta"), _DrawingNothing():
        yield
