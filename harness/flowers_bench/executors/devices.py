"""One trial on several devices: a process for each, forked from the trial's own before that computes anything.

The trial's process only watches them. The first that fails ends all, and its reason is the trial's. If the watcher is
killed, they end themselves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from flowers_bench.training.distributed import ALONE, PeerLost, Ranks, joined, loopback
from flowers_bench.training.process import Interrupted
from flowers_bench.util.errors import TrialDisturbed, TrialFailed, UsageError
from flowers_bench.util.text import text_of

Work = Callable[[Ranks], None]
#: Seconds within which the rank that failed must have ended, once another has noticed its loss.
_GRACE = 5.0


@dataclass(frozen=True)
class _Member:
    rank: int
    process: BaseProcess
    reports: Connection

    def failure(self) -> Exception | None:
        """Find why the process, which has ended, did not finish its work; None if it did."""
        self.process.join()
        with contextlib.suppress(EOFError, OSError):
            if self.reports.poll():
                found: Exception | None = self.reports.recv()
                return found
        code = self.process.exitcode or 0
        if code >= 0:
            return TrialDisturbed("crash", f"the process of device {self.rank} ended with code {code}")
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return TrialDisturbed(
            "killed",
            f"the process of device {self.rank} was killed by {name}{hint}; run again to continue from its last epoch",
        )


def refuse_missing(count: int) -> None:
    """Refuse more devices than CUDA shows. Without CUDA, the processor takes any number of processes. Raises
    `UsageError`."""
    import torch

    there = torch.cuda.device_count()
    if 0 < there < count:
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(there))
        raise UsageError(f"--devices {count}: {there} visible here ({names}). Choose at most {there}.")


def run_on_devices(count: int, work: Work) -> None:
    """Run `work(ranks)` in each of `count` processes, or in this one if `count` is 1.

    Must be called before this process computes anything: a fork takes no threads and no CUDA along.

    Raises:
        TrialFailed, TrialDisturbed, UsageError, Interrupted: as `work` did in the rank that failed first; for a process
            that was killed, or another exception of its own (its traceback is on stderr), `TrialDisturbed`.
    """
    if count == 1:
        work(ALONE)
        return
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback()
    with (
        tempfile.TemporaryDirectory() as folder,
        _started(count, work, Path(folder) / "rendezvous") as members,
        _interrupts_passed_to(members[0].process),
    ):
        _await(members)


@contextlib.contextmanager
def _started(count: int, work: Work, rendezvous: Path) -> Iterator[list[_Member]]:
    context = multiprocessing.get_context("fork")
    lifeline = os.pipe()
    members: list[_Member] = []
    try:
        for rank in range(count):
            reports, report = context.Pipe(duplex=False)
            process = context.Process(target=_member, args=(rank, count, work, rendezvous, report, lifeline))
            process.start()
            report.close()
            members.append(_Member(rank, process, reports))
        yield members
    finally:
        for member in members:
            member.process.kill()
            member.process.join()
        for end in lifeline:
            os.close(end)


def _member(rank: int, count: int, work: Work, rendezvous: Path, report: Connection, lifeline: tuple[int, int]) -> None:
    os.close(lifeline[1])
    threading.Thread(target=_end_with_the_watcher, args=(lifeline[0],), daemon=True).start()
    failure: Exception | None = None
    try:
        with joined(rank, count, rendezvous) as ranks:
            work(ranks)
    except (TrialFailed, TrialDisturbed, UsageError, Interrupted, PeerLost) as error:
        failure = error
    except KeyboardInterrupt:  # it came before the trial listens for the signal itself
        failure = Interrupted()
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        text = f"on device {rank}: {type(error).__name__}: {text_of(error)} (traceback in log.txt)"
        failure = TrialDisturbed("crash", text)
    report.send(failure)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(failure is not None)


def _end_with_the_watcher(lifeline: int) -> None:
    os.read(lifeline, 1)  # nothing is ever written: this returns when the other end is closed
    os._exit(1)


@contextlib.contextmanager
def _interrupts_passed_to(process: BaseProcess) -> Iterator[None]:
    def on_interrupt(signum: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid or 0, signum)

    previous: Any = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _await(members: Sequence[_Member]) -> None:
    running = {member.process.sentinel: member for member in members}
    lost: Exception | None = None
    until = 0.0
    while running:
        ended = wait(list(running), None if lost is None else max(0.0, until - time.monotonic()))
        failures = [failure for sentinel in ended if (failure := running.pop(sentinel).failure())]  # type: ignore[arg-type]
        for failure in failures:
            if not isinstance(failure, PeerLost):
                raise failure
        if failures and lost is None:
            lost, until = failures[0], time.monotonic() + _GRACE
        if lost is not None and not ended:
            break
    if lost is not None:
        raise TrialDisturbed("lost", f"the devices lost each other: {lost}")
