"""The command line: one short file per command. Nothing here imports torch until a command needs it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys

from flowers_bench.cli.exit_codes import FAILED, INTERRUPTED, USAGE


def main() -> None:
    """The `flowers-bench` command. `flowers-bench --plugin NAME` is short for `flowers-bench run --plugin NAME`."""
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        faulthandler.enable(2)  # a plugin whose import crashes the interpreter is named by its file and line
    if getattr(sys.stdout, "errors", None) == "strict":  # names of files and classes that its encoding does not have
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    _refuse_little_memory()
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        _let_go(sys.stdout)
        sys.exit(0)
    except Exception as error:
        from flowers_bench.util.errors import shortage

        reason = shortage(error)
        if reason is None:
            raise
        _say(f"error: {reason}")
        _let_go(sys.stdout)
        sys.exit(FAILED)


def _run(arguments: list[str]) -> None:
    from flowers_bench.util.errors import Unreadable, UsageError
    from flowers_bench.util.text import printable

    if arguments and arguments[0].startswith("-") and arguments[0] not in ("--help", "-h", "--version"):
        arguments = ["run", *arguments]
    try:
        from flowers_bench.cli.app import app

        stdout = sys.stdout
        try:
            app(args=arguments, prog_name="flowers-bench")
        except SystemExit:
            if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # so does typer answer a broken pipe, with 1
                raise BrokenPipeError from None
            raise
        finally:
            if stdout is not None:  # closed by whoever started this
                stdout.flush()  # here, where it can be said that this fails
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


def _refuse_little_memory() -> None:
    """Exit where a limit leaves less than libraries need to be loaded at all: OpenBLAS would try again for ever."""
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    threads = os.environ.get("OMP_NUM_THREADS", "")
    count = int(threads) if threads.isdecimal() else os.cpu_count() or 1
    least = _LEAST + count * _LEAST_OF_A_THREAD
    if 0 <= limit < least:
        _say(
            f"error: there is not enough memory: ulimit -v leaves {limit >> 20} MiB of {least >> 20} that loading the libraries "
            f"takes with {count} threads (OMP_NUM_THREADS)"
        )
        sys.exit(FAILED)


#: Bytes of address space, measured with numpy, scipy, pandas and pyarrow: in all, and for each thread.
_LEAST, _LEAST_OF_A_THREAD = 1 << 30, 64 << 20
