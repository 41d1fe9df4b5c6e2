"""The command line: one short file per command. Nothing here imports torch until a command needs it."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import sys

#: Exit codes: 0 done, 1 a trial failed, 2 bad usage, 130 interrupted.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main() -> None:
    """The `flowers-bench` command. `flowers-bench --plugin NAME` is short for `flowers-bench run --plugin NAME`."""
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        faulthandler.enable(2)  # a plugin whose import crashes the interpreter is named by its file and line
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        _let_go(sys.stdout)
        sys.exit(0)
    except Exception as error:
        reason = _shortage(error)
        if reason is None:
            raise
        _say(f"error: {reason}")
        _let_go(sys.stdout)
        sys.exit(FAILED)


def _run(arguments: list[str]) -> None:
    from flowers_bench.errors import Unreadable, UsageError, printable

    if arguments and arguments[0].startswith("-") and arguments[0] not in ("--help", "-h", "--version"):
        arguments = ["run", *arguments]
    try:
        from flowers_bench.cli.app import app

        try:
            app(args=arguments, prog_name="flowers-bench")
        finally:
            sys.stdout.flush()  # here, where it can be said that this fails
    except UsageError as error:
        _say(f"error: {printable(str(error))}")
        sys.exit(FAILED if isinstance(error, Unreadable) else USAGE)


def _say(text: str) -> None:
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:  # full as well: the exit code is all that is left to say it with
        _let_go(sys.stderr)


def _let_go(stream: object) -> None:
    """What was not written yet goes nowhere: Python would try again at its end, and complain."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]


def _shortage(error: BaseException) -> str | None:
    """What the machine has too little of, where that is why the command failed; None where it is something else."""
    cause: BaseException | None = error
    while cause is not None:
        code = cause.errno if isinstance(cause, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            place = cause.filename if isinstance(cause, OSError) and cause.filename else "the output"
            return f"{place} cannot be written: {os.strerror(code or 0)}"
        if isinstance(cause, MemoryError) or code == errno.ENOMEM or any(sign in str(cause) for sign in _NO_MEMORY):
            return "there is not enough memory. Give this process more (ulimit -v, a container's or a job's limit)"
        cause = cause.__cause__ or cause.__context__
    return None


#: How libraries say that there is too little memory: the loader, torch, C++, Python's and OpenBLAS's threads.
_NO_MEMORY = (
    "Cannot allocate memory",
    "failed to map segment",
    "can't allocate memory",
    "std::bad_alloc",
    "can't start new thread",
    "Unable to allocate",
)
