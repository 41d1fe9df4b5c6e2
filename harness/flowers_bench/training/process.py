"""The trial's own process: how it calculates, and how it is stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import torch


class Interrupted(Exception):
    """The user stopped the trial; the last finished epoch is on disk."""


def prepare_process(threads: int | None, processes: int = 1) -> torch.device:
    """Make torch calculate reproducibly, with the `threads` that the trial is allotted, divided among its `processes`;
    None for as many as torch takes.

    Returns:
        the device to calculate on.
    """
    # Read at the first product on CUDA, which then computes sums in one order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Writing NaN into each new tensor would find reads of what was never written, but costs a GPU one more kernel each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False  # with it, a float32 convolution keeps only ten bits of its factors
    if threads or processes > 1:
        torch.set_num_threads(max(1, (threads or torch.get_num_threads()) // processes))
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def interrupt_flag() -> Callable[[], bool]:
    """Listen for SIGINT from now on, and return a function that tells whether it has come. The first SIGINT lets the
    epoch finish, the second ends the process at once."""
    received: list[int] = []

    def on_interrupt(signum: int, frame: object) -> None:
        if received:
            os._exit(130)
        received.append(signum)

    signal.signal(signal.SIGINT, on_interrupt)
    return lambda: bool(received)
