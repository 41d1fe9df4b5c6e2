"""A map over processes: results in order, computed ahead of whoever takes them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

B = TypeVar("B")
#: Results that may wait for each process.
_AHEAD = 2


def can_fork() -> bool:
    """Say whether this system starts a process as a copy of another."""
    return "fork" in multiprocessing.get_all_start_methods()


def in_order_by_processes(function: Callable[[int], B], count: int, workers: int, pin: bool) -> Iterator[B]:
    """Call `function` with each number below `count`, and give the results in order. It runs in copies of this process, which
    must not use a GPU, have one thread each, generators of their own, and end with this process.

    Args:
        workers: processes.
        pin: whether each result's `pin_memory` is called, by a thread of this process.

    Raises:
        whatever `function` raises, when its turn comes.
    """
    # torch's own, since it knows how a worker learns that its parent was killed, and a parent that its worker was.
    loader = DataLoader(
        _Calls(function, count),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        collate_fn=_unchanged,
        pin_memory=pin,
        multiprocessing_context="fork",
        generator=torch.Generator(),  # else it draws from the global one
    )
    return iter(loader)


@dataclass(frozen=True)
class _Calls(Dataset[B], Generic[B]):
    function: Callable[[int], B]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> B:
        return self.function(index)


def _unchanged(result: object) -> object:
    return result
