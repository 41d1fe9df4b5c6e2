"""The trial's own process: a crash, an out-of-memory kill or a timeout ends it and its trial, not the run.

Events go through a pipe to the executor; what the trial prints goes to its log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection

from filelock import FileLock, Timeout

from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.events import Emit, Event, Starting, Waiting, Warned
from flowers_bench.util.errors import TrialDisturbed, TrialFailed, UsageError
from flowers_bench.util.text import text_of

DONE, FAILED, INTERRUPTED = 0, 1, 130
#: The trial itself cannot be trained (`TrialFailed`). A code of its own, which is there when nothing can be stored, and
#: which nothing that ends the process from outside gives.
UNTRAINABLE = 65
#: Seconds after which a trial that another run has says that it waits.
_PATIENCE = 1.0


def main(folder: TrialFolder, events: Connection) -> None:
    """Run the trial, unless another process finishes it first; ends the process with the exit code."""
    # Its own session: a Ctrl-C in the terminal reaches only the executor, which passes it on in its own way, and
    # whatever the trial starts can be killed with it.
    os.setsid()
    # Ray's workers block SIGINT, a script's background job ignores it, and children inherit that: a stop would be lost.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    with folder.log_path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    faulthandler.enable(2)

    def emit(event: Event) -> None:
        try:
            events.send(event)
        except BrokenPipeError:  # the executor is gone: nobody would know that this trial still runs
            os._exit(FAILED)

    try:
        with _alone(folder, emit):
            code = _run(folder, emit)
    except KeyboardInterrupt:  # while it waited
        code = INTERRUPTED
    except OSError as error:
        code = _failed(folder, emit, "crash", f"{type(error).__name__}: {error}")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a full disk, or a plugin that closed them
            stream.flush()
    os._exit(code)  # a plugin's threads or exit handlers must not hold up the run


@contextlib.contextmanager
def _alone(folder: TrialFolder, emit: Emit) -> Iterator[None]:
    """Holds the trial's lock; says so where another process has it."""
    lock = FileLock(folder.lock_path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        emit(Waiting("waits for another run, which has this trial"))
        lock.acquire()
    with lock:
        yield


def _run(folder: TrialFolder, emit: Emit) -> int:
    from flowers_bench.executors.devices import run_on_devices
    from flowers_bench.training.process import Interrupted
    from flowers_bench.training.robustness import stress_trial
    from flowers_bench.training.trial import run_trial

    emit(Starting())
    try:
        folder.remove_half_files()
        if not folder.finished():
            run_on_devices(folder.run().devices or 1, lambda ranks: run_trial(folder, emit, ranks))
        if folder.run().stress and not folder.stressed():
            stress_trial(folder, emit)
    except (Interrupted, KeyboardInterrupt):  # the latter before the trial listens for the signal itself
        return INTERRUPTED
    except TrialFailed as error:
        _failed(folder, emit, TrialFailed.__name__, str(error))
        return UNTRAINABLE
    except TrialDisturbed as error:
        return _failed(folder, emit, error.kind, str(error))
    except UsageError as error:
        return _failed(folder, emit, UsageError.__name__, str(error))
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        with contextlib.suppress(OSError, ValueError):
            traceback.print_exc()
        return _failed(
            folder, emit, "crash", f"{type(error).__name__}: {text_of(error)} (traceback in {folder.log_path})"
        )
    return DONE


def _failed(folder: TrialFolder, emit: Emit, kind: str, text: str) -> int:
    """Note why; where even that cannot be written, such as on a full disk, tell the executor."""
    try:
        folder.note_failure(kind, text)
    except OSError as error:
        emit(Warned(f"{folder.path.name}: {text}; this could not be stored: {error}"))
    return FAILED
