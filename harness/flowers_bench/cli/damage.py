"""Damaged trials of a store are named on stderr and left out, and the exit code is 1; the other trials are shown."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.cli.exit_codes import FAILED
from flowers_bench.util.errors import Unreadable, UsageError
from flowers_bench.util.text import printable

if TYPE_CHECKING:
    from flowers_bench.store.folder import Contents


def print_damaged(damaged: Sequence[Unreadable]) -> int:
    """Name damaged trials on stderr, and give the exit code."""
    for error in damaged:
        sys.stderr.write(f"left out: {printable(str(error))}\n")
    return FAILED if damaged else 0


def read_store(root: Path) -> tuple[Contents, int]:
    """Read a store for a command that needs finished trials; name damaged trials, and give the content and the exit code.

    Raises:
        UsageError: there is no finished trial.
        Unreadable: all finished trials are damaged.
    """
    from flowers_bench.store.folder import Store

    contents = Store(root).read()
    code = print_damaged(contents.damaged)
    if not contents.finished:
        if contents.damaged:
            raise Unreadable(f"no trial of {root} is left to show.")
        raise UsageError(f"no finished trials in {root}. Run some: flowers-bench --plugin deformable --store {root}")
    return contents, code
