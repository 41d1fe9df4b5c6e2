"""The command line: one short file per command. Nothing here imports torch until a command needs it."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys

from flowers_bench.cli.exit_codes import FAILED, INTERRUPTED, USAGE


def main() -> None:
    """Run the `flowers-bench` command; `flowers-bench --plugin NAME` is short for `flowers-bench run --plugin NAME`."""
    with contextlib.suppress(OSError, ValueError):  # stderr may be closed
        faulthandler.enable(2)  # if the import of a plugin crashes the interpreter, its file and line are printed
    if (
        getattr(sys.stdout, "errors", None) == "strict"
    ):  # names of files and classes may have characters that stdout cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    _refuse_little_memory()
    try:
        _run(sys.argv[1:])
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of the pipe, such as `head`, has closed it
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

    if arguments and arguments[0].startswith("-") and arguments[0] not in _OF_THE_GROUP:
        arguments = _as_start(arguments) or ["run", *arguments]
    try:
        from flowers_bench.cli.app import app

        stdout = sys.stdout
        try:
            app(args=arguments, prog_name="flowers-bench")
        except SystemExit:
            if type(sys.stdout).__name__ == "PacifyFlushWrapper":  # typer has met a broken pipe, and would exit with 1
                raise BrokenPipeError from None
            raise
        finally:
            if stdout is not None:  # None if the parent process closed it
                stdout.flush()  # here, where a failure can still be reported
    except UsageError as error:
        _say(f"error: {printable(str(error))}")
        sys.exit(FAILED if isinstance(error, Unreadable) else USAGE)


#: Options that stand before any command.
_OF_THE_GROUP = ("--help", "-h", "--version", "--install-completion", "--show-completion")


def _as_start(arguments: list[str]) -> list[str] | None:
    """Turn `--data FOLDER ...` without a technique into `start FOLDER ...`; None where a technique is named, or no data."""
    words = [word.partition("=")[0] for word in arguments]
    if "--data" not in words or any(word in ("--plugin", "--help", "-h") or word.startswith("-p") for word in words):
        return None
    place = words.index("--data")
    if "=" in arguments[place]:
        folder, rest = arguments[place].partition("=")[2], arguments[place + 1 :]
    else:
        folder, rest = next(iter(arguments[place + 1 :]), ""), arguments[place + 2 :]
    return ["start", *arguments[:place], *rest, "--", folder] if folder else None


def _say(text: str) -> None:
    try:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except OSError:  # stderr cannot be written either: only the exit code is left
        _let_go(sys.stderr)


def _let_go(stream: object) -> None:
    """Discard what was not written yet; Python would try to write it at exit, and print an error."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]


def _refuse_little_memory() -> None:
    """Exit if a limit leaves less memory than the libraries need to load, because OpenBLAS would retry for ever."""
    from flowers_bench.util.system import address_space

    limit = address_space()
    threads = os.environ.get("OMP_NUM_THREADS", "")
    count = int(threads) if threads.isdecimal() else os.cpu_count() or 1
    least = _LEAST + count * _LEAST_OF_A_THREAD
    if limit is not None and limit < least:
        _say(
            f"error: there is not enough memory: ulimit -v leaves {limit >> 20} MiB of {least >> 20} that loading the libraries "
            f"takes with {count} threads (OMP_NUM_THREADS)"
        )
        sys.exit(FAILED)


#: Bytes of address space that numpy, scipy, pandas and pyarrow need, measured: in total, and for each thread.
_LEAST, _LEAST_OF_A_THREAD = 1 << 30, 64 << 20
