"""Runs trials on this machine, one fresh process each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from flowers_bench.executors.worker import DONE, INTERRUPTED
from flowers_bench.store import TrialFolder, write_json

OnEvent = Callable[[TrialFolder, dict[str, Any]], None]


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: `done`, `failed` (with the reason) or `interrupted`."""

    folder: TrialFolder
    state: str
    reason: str = ""


def run_all(folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float) -> list[Outcome]:
    """Run prepared trials in order, skipping none; stops early only when interrupted.

    Args:
        folders: as `Store.prepare` made them.
        on_event: told every event of every trial.
        timeout: seconds that one trial may take.
    """
    outcomes = []
    for folder in folders:
        outcome = _run_one(folder, on_event, timeout)
        outcomes.append(outcome)
        on_event(folder, {"event": outcome.state, "reason": outcome.reason})
        if outcome.state == "interrupted":
            break
    return outcomes


def _run_one(folder: TrialFolder, on_event: OnEvent, timeout: float) -> Outcome:
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "flowers_bench.executors.worker", str(folder.path), str(writer)]
    with (folder.path / "log.txt").open("ab") as log:
        # Its own session: a Ctrl-C in the terminal reaches only this process, which passes it on in its own way.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(writer,), start_new_session=True
        )
    os.close(writer)
    timer = threading.Timer(timeout, _kill, (process,))
    timer.start()
    try:
        with _forward_interrupts(process), os.fdopen(reader, encoding="utf-8") as events:
            for line in events:
                on_event(folder, json.loads(line))
        code = process.wait()
    finally:
        timed_out = not timer.is_alive()
        timer.cancel()
        if process.poll() is None:
            _kill(process)
    return _outcome(folder, code, timeout if timed_out else None)


def _kill(process: subprocess.Popen[bytes]) -> None:
    # The whole session: a plugin may have started processes of its own.
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()
    process.wait()


class _forward_interrupts:  # noqa: N801 - used as a function
    """While active, SIGINT goes to the trial: the first asks it to finish its epoch, the second kills it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._count = 0
        self._previous: Any = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._on_interrupt)

    def _on_interrupt(self, signum: int, frame: object) -> None:
        self._count += 1
        if self._count == 1:
            sys.stderr.write("\nstopping after this epoch; press Ctrl-C again to stop at once\n")
            self._process.send_signal(signal.SIGINT)
        else:
            _kill(self._process)

    def __exit__(self, *exc: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
        if self._count > 1:
            raise KeyboardInterrupt


def _outcome(folder: TrialFolder, code: int, timed_out_after: float | None) -> Outcome:
    if code == DONE and folder.finished():
        return Outcome(folder, "done")
    if code == INTERRUPTED:
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
