"""The trial's own process: how it calculates, and how it is stopped."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import torch

from flowers_bench.util.errors import UsageError, unknown_name
from flowers_bench.util.system import keep_freed_memory

#: What a trial may be asked to compute on.
DEVICES = ("cpu", "cuda", "mps")


class Interrupted(Exception):
    """The user stopped the trial; the last finished epoch is on disk."""


def choose_device(asked: str | None) -> torch.device:
    """Find the device that was asked for; for None, CUDA where there is it, else the processor.

    Raises:
        UsageError: it is no device, or it is not there: nothing else is taken in its stead.
    """
    if asked is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if asked not in DEVICES:
        raise unknown_name("device", asked, DEVICES)
    there = [name for name, found in _found().items() if found]
    if asked not in there:
        raise UsageError(
            f"--device {asked}: this torch ({torch.__version__}) finds none here. Choose one of: {', '.join(there)}."
        )
    return torch.device(asked)


def _found() -> dict[str, bool]:
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}


def prepare_process(threads: int | None, processes: int = 1, device: str | None = None) -> torch.device:
    """Make torch calculate reproducibly, with the `threads` that the trial is allotted, divided among its `processes`;
    None for as many as torch takes.

    Returns:
        the device to calculate on: `device`, as `choose_device` finds it.

    Raises:
        UsageError: that device is not there.
    """
    keep_freed_memory()
    # Read at the first product on CUDA, which then computes sums in one order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Writing NaN into each new tensor would find reads of what was never written, but costs a GPU one more kernel each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False  # with it, a float32 convolution keeps only ten bits of its factors
    if threads or processes > 1:
        torch.set_num_threads(max(1, (threads or torch.get_num_threads()) // processes))
    return choose_device(device)


@contextlib.contextmanager
def with_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads for a while."""
    usual = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


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
