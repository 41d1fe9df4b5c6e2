"""What a trial's process tells the executor, and the executor whoever shows progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flowers_bench.store.records import Epoch


@dataclass(frozen=True)
class Starting:
    """The trial has its folder to itself, and begins."""


@dataclass(frozen=True)
class Waiting:
    """It cannot start yet."""

    reason: str


@dataclass(frozen=True)
class Resumed:
    """It continues after this epoch."""

    epoch: int


@dataclass(frozen=True)
class Storing:
    """It writes something large."""

    text: str


@dataclass(frozen=True)
class Step:
    """A step of an epoch is done, at `rate` images per second."""

    epoch: int
    step: int
    steps: int
    rate: float


@dataclass(frozen=True)
class EpochFinished:
    """An epoch ended."""

    record: Epoch


@dataclass(frozen=True)
class Testing:
    """Training is over, and the test split is read."""


@dataclass(frozen=True)
class UnderStress:
    """`done` of so many changes of the test images are measured; `kind` is the next one's."""

    kind: str
    done: int
    of: int


@dataclass(frozen=True)
class Warned:
    """Something failed that does not cost the result."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The trial's process ended.

    Attributes:
        state: `done`, `failed` or `interrupted`.
        reason: why it failed.
    """

    state: str
    reason: str = ""


Event = Starting | Waiting | Resumed | Storing | Step | EpochFinished | Testing | UnderStress | Warned | Ended
#: Sends an event to the executor.
Emit = Callable[[Event], None]
