"""The command line: one short file per command. Nothing here imports torch until a command needs it."""

from __future__ import annotations

import faulthandler
import os
import sys

#: Exit codes: 0 done, 1 a trial failed, 2 bad usage, 130 interrupted.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


def main() -> None:
    """The `flowers-bench` command. `flowers-bench --plugin NAME` is short for `flowers-bench run --plugin NAME`."""
    faulthandler.enable(2)  # a plugin whose import crashes the interpreter is named by its file and line
    from flowers_bench.cli.app import app
    from flowers_bench.errors import UsageError, printable

    arguments = sys.argv[1:]
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("--help", "-h", "--version"):
        arguments = ["run", *arguments]
    try:
        app(args=arguments, prog_name="flowers-bench")
    except UsageError as error:
        sys.stderr.write(f"error: {printable(str(error))}\n")
        sys.exit(USAGE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
