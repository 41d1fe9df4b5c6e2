"""Runs trials on this machine, one fresh process each.

The processes are forked from a server that has imported torch, timm and the rest but computed nothing (the standard
library's forkserver): a trial starts in milliseconds instead of seconds, and is as isolated as if it had been spawned.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess

from flowers_bench.executors import worker
from flowers_bench.executors.memory import MemoryGuard
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.records import Failure
from flowers_bench.training.events import Ended, Event, Starting, Waiting
from flowers_bench.util.errors import TrialFailed

OnEvent = Callable[[TrialFolder, Event], None]
_PRELOAD = ["flowers_bench.executors.preload"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        state: `done`, `failed` or `interrupted`.
        reason: why it failed.
        kind: the kind of failure, as in `failure.json`.
    """

    folder: TrialFolder
    state: str
    reason: str = ""
    kind: str = ""

    @property
    def untrainable(self) -> bool:
        """Whether it failed by itself, and would again: nothing from outside ended it."""
        return self.kind == TrialFailed.__name__


def begin_importing() -> None:
    """Start the server that trials are forked from, and return at once: it imports what they need beside whatever comes
    before the first trial, such as reading the data."""
    _server()
    # Its imports would print a traceback on Ctrl-C. A trial's process takes the signal again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _server() -> ForkServerContext:
    # Threads that wait by spinning bring a machine to a crawl as soon as anything else runs on it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    return context


def run_all(folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float, jobs: int = 1) -> list[Outcome]:
    """Run prepared trials, started in order; start no more once interrupted.

    Args:
        folders: as `Store.prepare` made them.
        on_event: called with every event of every trial, one at a time.
        timeout: seconds that one trial may take.
        jobs: how many trials run at once. A trial waits while its expected memory does not fit (see `memory.py`).
    """
    run = Run(on_event, timeout, MemoryGuard() if jobs > 1 else None)
    with interrupts_handled(run.stop), ThreadPoolExecutor(jobs) as pool:
        return [outcome for outcome in pool.map(run.one, folders) if outcome is not None]


@contextlib.contextmanager
def interrupts_handled(stop: Callable[[bool], None]) -> Iterator[None]:
    """Call `stop(False)` on the first Ctrl-C in the block, or SIGTERM, which a cluster sends before it takes a machine
    away; call `stop(True)` on the second, and end the run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def on_interrupt(signum: int, frame: object) -> None:
        again = bool(received)
        received.append(signum)
        if not again:
            sys.stderr.write("\nstopping after this epoch; press Ctrl-C again to stop at once\n")
        stop(again)
        if again:
            raise KeyboardInterrupt

    previous = {number: signal.signal(number, on_interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Run:
    """The trials that run at the moment, and whether any more may start."""

    def __init__(self, on_event: OnEvent, timeout: float, memory: MemoryGuard | None = None) -> None:
        self._on_event = on_event
        self._timeout = timeout
        self._lock = threading.Lock()  # guards calls of on_event, and what follows
        self._processes: dict[int, BaseProcess] = {}
        self._stopping = threading.Event()
        self._memory = memory

    def one(self, folder: TrialFolder) -> Outcome | None:
        """Run a trial, and give its outcome; None if the run was interrupted before the trial started."""
        with self._room_for(folder):
            if self._stopping.is_set():
                return None
            with contextlib.suppress(OSError):  # what an earlier attempt left must not be taken for this one's
                folder.forget_failure()
            outcome, seconds = self._watch(folder)
        with contextlib.suppress(OSError):  # the first failure has reported a full disk; the other trials go on
            folder.note_attempt(seconds, outcome.state)
        self._tell(folder, Ended(outcome.state, outcome.reason))
        if outcome.state == "interrupted":
            self._stopping.set()
        return outcome

    def _room_for(self, folder: TrialFolder) -> contextlib.AbstractContextManager[None]:
        if self._memory is None:
            return contextlib.nullcontext()
        return self._memory.held_for(folder, self._stopping, lambda reason: self._tell(folder, Waiting(reason)))

    def _tell(self, folder: TrialFolder, event: Event) -> None:
        with self._lock:
            self._on_event(folder, event)

    def _watch(self, folder: TrialFolder) -> tuple[Outcome, float]:
        """Run the trial's process until it ends; give the outcome, and the seconds that it took."""
        process, events = self._start(folder)
        if self._stopping.is_set():  # the interrupt came before this process was known
            _interrupt(process.pid)
        clock = _Clock(self._timeout, lambda: _kill(process.pid))
        try:
            while True:
                event: Event = events.recv()
                if isinstance(event, Starting):  # until now it waited for another run, which had the same trial
                    clock.start()
                    if self._stopping.is_set():  # an interrupt that came before it listened may be lost
                        _interrupt(process.pid)
                self._tell(folder, event)
        except (EOFError, OSError):  # the latter when it died in the middle of a message
            process.join()
        finally:
            seconds = clock.stop()
            if process.is_alive():
                _kill(process.pid)
            process.join()
            self._processes.pop(process.pid or 0, None)
        return _outcome(folder, process.exitcode or 0, self._timeout if clock.ran_out else None), seconds

    def _start(self, folder: TrialFolder) -> tuple[BaseProcess, Connection]:
        context = _server()
        # One at a time: a child started in between would inherit this pipe's other end, and hide this process's death.
        with self._lock:
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=worker.main, args=(folder, writer))
            process.start()
            writer.close()
            self._processes[process.pid or 0] = process
        return process, reader

    def stop(self, at_once: bool = False) -> None:
        """Let no more trials start, and let those that run finish their epoch; kill them if `at_once`."""
        self._stopping.set()
        for pid in list(self._processes):
            if at_once:
                _kill(pid)
            else:
                _interrupt(pid)


class _Clock:
    """The time that a trial takes, and what happens when that is too long."""

    def __init__(self, limit: float, on_limit: Callable[[], None]) -> None:
        self.ran_out = False
        self._on_limit = on_limit
        self._timer = threading.Timer(limit, self._run_out)
        self._started: float | None = None

    def start(self) -> None:
        self._started = time.monotonic()
        self._timer.start()

    def stop(self) -> float:
        """Give the seconds since the start, 0 if there was none, and measure no longer."""
        self._timer.cancel()
        return 0.0 if self._started is None else time.monotonic() - self._started

    def _run_out(self) -> None:
        self.ran_out = True
        self._on_limit()


def _interrupt(pid: int | None) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid or 0, signal.SIGINT)


def _kill(pid: int | None) -> None:
    # The whole session is killed: a plugin may have started processes of its own.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid or 0, signal.SIGKILL)
            return


def _outcome(folder: TrialFolder, code: int, timed_out_after: float | None) -> Outcome:
    if folder.complete(stress=bool(folder.run().stress)):
        return Outcome(folder, "done")
    if code == worker.INTERRUPTED:
        return Outcome(folder, "interrupted")
    if code != worker.UNTRAINABLE and timed_out_after is not None:
        reason = f"took longer than --timeout {timed_out_after:g} s and was stopped; run again to continue from its last epoch"
        return noted_failure(folder, "timeout", reason)
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else f" (see {folder.log_path})"
        reason = f"its process was killed by {name}{hint}; run again to continue from its last epoch"
        return noted_failure(folder, "killed", reason)
    failure = folder.failure()
    if failure is None:  # it could not be stored, or the process ended itself
        failure = Failure(kind="crash", error=f"its process ended with code {code}; see {folder.log_path}")
    kind = TrialFailed.__name__ if code == worker.UNTRAINABLE else failure.kind
    return Outcome(folder, "failed", failure.error, kind)


def noted_failure(folder: TrialFolder, kind: str, reason: str) -> Outcome:
    """Note why a trial failed whose process could not say so itself, where this can be written; give its outcome."""
    with contextlib.suppress(OSError):
        folder.note_failure(kind, reason)
    return Outcome(folder, "failed", reason, kind)
