"""The trial's own process: `python -m flowers_bench.executors.worker FOLDER EVENT_FD`.

A crash, an out-of-memory kill or a timeout ends this process and this trial, not the run. Events (JSON lines) go
to the given file descriptor; what the trial prints goes to its log.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from filelock import FileLock

from flowers_bench.errors import TrialFailed, UsageError
from flowers_bench.store import TrialFolder, write_json

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130


def main(folder: TrialFolder, descriptor: int) -> int:
    """Run the trial unless another process finishes it first; returns the exit code."""

    def emit(event: dict[str, Any]) -> None:
        try:
            os.write(descriptor, (json.dumps(event) + "\n").encode())
        except BrokenPipeError:  # the executor is gone: nobody would know that this trial still runs
            os._exit(FAILED)

    lock = FileLock(folder.path / ".lock")
    with lock:
        if folder.finished():
            return DONE
        return _run(folder, emit)


def _run(folder: TrialFolder, emit: Any) -> int:
    emit({"event": "starting"})
    from flowers_bench.training.loop import Interrupted
    from flowers_bench.training.trial import run_trial

    try:
        run_trial(folder, emit)
    except Interrupted:
        return INTERRUPTED
    except (TrialFailed, UsageError) as error:
        write_json(folder.path / "failure.json", {"kind": type(error).__name__, "error": str(error)})
        return FAILED if isinstance(error, TrialFailed) else USAGE
    except Exception as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error} (traceback in {folder.path / 'log.txt'})"
        write_json(folder.path / "failure.json", {"kind": "crash", "error": text})
        return FAILED
    return DONE


if __name__ == "__main__":
    sys.exit(main(TrialFolder(Path(sys.argv[1])), int(sys.argv[2])))
