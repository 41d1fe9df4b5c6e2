"""What changes with the epoch: the optional method `begin_epoch` of whatever a plugin builds."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from flowers_bench.store.identity import derive_seed


def begin_epoch(parts: Iterable[object], epoch: int, epochs: int, seed: int) -> None:
    """Call `begin_epoch` of every part that has it. What one draws there follows from the seed and the epoch, and leaves torch's
    generator as it was."""
    for part in filter(has_begin_epoch, parts):
        with torch.random.fork_rng(devices=()):
            torch.default_generator.manual_seed(derive_seed(seed, "begin epoch", epoch))
            part.begin_epoch(epoch, epochs)  # type: ignore[attr-defined]


def has_begin_epoch(part: object) -> bool:
    """Tell whether a built part changes with the epoch."""
    return callable(getattr(part, "begin_epoch", None))
