"""What several trials took together; apart from `cost.py`, because whoever only adds up needs no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from flowers_bench.store.folder import TrialFolder


@dataclass(frozen=True)
class TotalCost:
    """What it took to get some trials, those that failed or that a search discarded included.

    Attributes:
        failed: how many of the `trials` failed at their last attempt.
        seconds: from the start of each attempt's process to its end, whatever that end was.
    """

    trials: int
    failed: int
    attempts: int
    seconds: float


def total_cost(folders: Iterable[TrialFolder]) -> TotalCost:
    """Add up what it took to get these trials."""
    listed = list(folders)
    attempts = [attempt for folder in listed for attempt in folder.attempts()]
    failed = sum(folder.failure() is not None for folder in listed)
    return TotalCost(len(listed), failed, len(attempts), sum(attempt.seconds for attempt in attempts))
