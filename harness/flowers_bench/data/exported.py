"""Folders into which a dataset of another form is written once: each appears under its name only when it is whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from flowers_bench.util.errors import UsageError


def write_once(folder: Path, last: str, write: Callable[[Path], None]) -> None:
    """Have `write` fill a folder beside `folder`, which then takes its place; not where another process was quicker.

    Args:
        last: the file that a whole folder has.

    Raises:
        UsageError: it cannot be written; and what `write` raises. Nothing is left then.
    """
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if (folder / last).is_file():
                return
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            temporary.mkdir()
            write(temporary)
            temporary.replace(folder)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error}. Choose another place with --data-dir.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
