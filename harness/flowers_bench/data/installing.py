"""A published dataset's files, brought from the web into a folder: whole or not at all, continued when interrupted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from flowers_bench.contract.dataset import Progress, silent
from flowers_bench.data.download import fetch, has_checksum, kind_of, unpack
from flowers_bench.data.remote_file import RemoteFile
from flowers_bench.util.errors import UsageError

#: Seconds without a single byte after which a download is given up.
STALL_SECONDS = 60.0
#: Bytes. What is left of a failed download waits for the next attempt, unless it is hardly anything.
_WORTH_KEEPING = 1 << 20
_THE_FILES = {1: "the file", 2: "both files", 3: "the three files"}


def install(
    title: str,
    root: Path,
    folder: str,
    files: Sequence[RemoteFile],
    progress: Progress = silent,
    stall_seconds: float | None = None,
) -> None:
    """Make `root/folder` whole: fetch what is missing, unpack archives. Nothing is done where all is there.

    Everything arrives in a hidden folder first, and folders are moved last and at once: an interrupted installation is
    never taken for a finished one, and the next call continues it. Files that somebody put in place by hand are used if
    their checksums are right.

    Args:
        title: the dataset's name, for people.
        root: created if need be.
        progress: shown while loading and unpacking.
        stall_seconds: silence after which a server counts as lost; None: `STALL_SECONDS`.

    Raises:
        UsageError: what went wrong, the addresses, the checksums, and where to put the files by hand.
    """
    base, staging = root / folder, root / f".{folder}.partial"
    if all(file.is_in(base) for file in files):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{folder}.lock"):
            if not all(file.is_in(base) for file in files):
                _install(base, staging, files, progress, stall_seconds or STALL_SECONDS)
    except UsageError as error:
        raise UsageError(f"{title} could not be installed: {error}\n{by_hand(root, folder, files)}") from error
    except OSError as error:
        raise UsageError(f"cannot write to {root}: {error}. Choose another place with --data-dir.") from error


def by_hand(root: Path, folder: str, files: Sequence[RemoteFile]) -> str:
    """Say what to fetch on a machine with internet, and where to put it."""
    listing = "\n".join(f"  curl -LO {file.url}  # {kind_of(file.checksum)} {file.checksum}" for file in files)
    return (
        f"On a machine with internet run\n{listing}\nput {_THE_FILES[len(files)]} into {root / folder}/, and run the same "
        f"command again; or name a folder that holds {folder}/ with --data FOLDER."
    )


def _install(base: Path, staging: Path, files: Sequence[RemoteFile], progress: Progress, stall_seconds: float) -> None:
    """See `install`; the lock is held."""
    # A list is compared again: it is small, and decides the split.
    needed = [file for file in files if not (file.unpacked and file.is_in(base))]
    staging.mkdir(exist_ok=True)
    try:
        arrived = {}
        for file in needed:
            there = base / file.name
            arrived[file] = there if has_checksum(there, file.checksum) else staging / file.name
            fetch(file.url, arrived[file], file.checksum, progress, stall_seconds)
        for file in needed:
            if file.unpacked:
                _unpack(file, arrived[file], staging, progress)
        base.mkdir(exist_ok=True)
        for file in needed:
            for member in file.members:
                source = _unpacked(file, staging) / member if file.unpacked else staging / member
                if source.exists() and not (base / member).is_dir():
                    source.replace(base / member)
        shutil.rmtree(staging)
    finally:
        if staging.exists() and all(path.stat().st_size < _WORTH_KEEPING for path in staging.iterdir()):
            shutil.rmtree(staging)


def _unpacked(file: RemoteFile, staging: Path) -> Path:
    return staging / f"{file.name}.unpacked"


def _unpack(file: RemoteFile, archive: Path, staging: Path, progress: Progress) -> None:
    folder = _unpacked(file, staging)
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before it moved all of it
    unpack(archive, folder, file.top, file.count, progress, file.checksum)
    missing = [member for member in file.members if not (folder / member).exists()]
    if missing:
        raise UsageError(f"{archive} has no {missing[0]}.")
