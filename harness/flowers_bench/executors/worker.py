"""The trial's own process: a crash, an out-of-memory kill or a timeout ends it and its trial, not the run.

Events (dictionaries) go through a pipe to the executor; what the trial prints goes to its log.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from multiprocessing.connection import Connection
from typing import Any

from filelock import FileLock

from flowers_bench.errors import TrialFailed, UsageError
from flowers_bench.store import TrialFolder, write_json

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(folder: TrialFolder, events: Connection) -> None:
    """Run the trial, unless another process finishes it first; ends the process with the exit code."""
    # Its own session: a Ctrl-C in the terminal reaches only the executor, which passes it on in its own way, and
    # whatever the trial starts can be killed with it.
    os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # Ray's workers block it, and children inherit that
    with (folder.path / "log.txt").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)

    def emit(event: dict[str, Any]) -> None:
        try:
            events.send(event)
        except BrokenPipeError:  # the executor is gone: nobody would know that this trial still runs
            os._exit(FAILED)

    with FileLock(folder.path / ".lock"):
        code = _run(folder, emit)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a plugin's threads or exit handlers must not hold up the run


def _run(folder: TrialFolder, emit: Any) -> int:
    from flowers_bench.training.loop import Interrupted
    from flowers_bench.training.stress import stress_trial
    from flowers_bench.training.trial import run_trial

    emit({"event": "starting"})
    try:
        if not folder.finished():
            run_trial(folder, emit)
        if folder.run().get("stress") and not folder.stressed():
            stress_trial(folder, emit)
    except (Interrupted, KeyboardInterrupt):  # the latter before the trial listens for the signal itself
        return INTERRUPTED
    except (TrialFailed, UsageError) as error:
        write_json(folder.path / "failure.json", {"kind": type(error).__name__, "error": str(error)})
        return FAILED
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        traceback.print_exc()
        text = f"{type(error).__name__}: {error} (traceback in {folder.path / 'log.txt'})"
        write_json(folder.path / "failure.json", {"kind": "crash", "error": text})
        return FAILED
    return DONE
