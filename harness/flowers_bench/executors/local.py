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
from dataclasses import dataclass
from typing import Any

from flowers_bench.executors import worker
from flowers_bench.store import TrialFolder, write_json

OnEvent = Callable[[TrialFolder, dict[str, Any]], None]
_PRELOAD = ["flowers_bench.executors.preload"]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `done`, `failed` (with the reason) or `interrupted`."""

    folder: TrialFolder
    state: str
    reason: str = ""


def run_all(folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float) -> list[Outcome]:
    """Run prepared trials in order; stops early only when interrupted.

    Args:
        folders: as `Store.prepare` made them.
        on_event: told every event of every trial.
        timeout: seconds that one trial may take.
    """
    outcomes: list[Outcome] = []
    for folder in folders:
        started = time.monotonic()
        outcome = _run_one(folder, on_event, timeout)
        folder.note_attempt(time.monotonic() - started, outcome.state)
        outcomes.append(outcome)
        on_event(folder, {"event": outcome.state, "reason": outcome.reason})
        if outcome.state == "interrupted":
            break
    return outcomes


def _run_one(folder: TrialFolder, on_event: OnEvent, timeout: float) -> Outcome:
    # Threads that wait by spinning bring a machine to a crawl as soon as anything else runs on it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=worker.main, args=(folder, writer))
    process.start()
    writer.close()
    timed_out = threading.Event()

    def on_timeout() -> None:
        timed_out.set()
        _kill(process.pid)

    timer = threading.Timer(timeout, on_timeout)
    timer.start()
    try:
        with _interrupts_forwarded(process.pid):
            while True:
                on_event(folder, reader.recv())
    except EOFError:
        process.join()
    finally:
        timer.cancel()
        if process.is_alive():
            _kill(process.pid)
        process.join()
    return _outcome(folder, process.exitcode or 0, timeout if timed_out.is_set() else None)


def _kill(pid: int | None) -> None:
    # The whole session: a plugin may have started processes of its own.
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(pid or 0, signal.SIGKILL)
            return


@contextlib.contextmanager
def _interrupts_forwarded(pid: int | None) -> Iterator[None]:
    """While active, the first SIGINT asks the trial to finish its epoch, the second kills it and the run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    count = 0

    def on_interrupt(signum: int, frame: object) -> None:
        nonlocal count
        count += 1
        if count > 1:
            _kill(pid)
            raise KeyboardInterrupt
        sys.stderr.write("\nstopping after this epoch; press Ctrl-C again to stop at once\n")
        os.kill(pid or 0, signal.SIGINT)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _outcome(folder: TrialFolder, code: int, timed_out_after: float | None) -> Outcome:
    if folder.finished():
        return Outcome(folder, "done")
    if code == worker.INTERRUPTED:
        return Outcome(folder, "interrupted")
    if timed_out_after is not None:
        reason = f"took longer than --timeout {timed_out_after:g} s and was stopped; run again to continue from its last epoch"
        write_json(folder.path / "failure.json", {"kind": "timeout", "error": reason})
    elif code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        reason = f"its process was killed by {name}{hint}; run again to continue from its last epoch"
        write_json(folder.path / "failure.json", {"kind": "killed", "error": reason})
    else:
        failure = folder.failure()
        reason = failure["error"] if failure else f"its process ended with code {code}; see {folder.path / 'log.txt'}"
    return Outcome(folder, "failed", reason)
