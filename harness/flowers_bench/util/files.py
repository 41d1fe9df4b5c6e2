"""Files, read and written with care.

Where others wrote them, a name may lead to a pipe that never ends, a device, a folder, or a link elsewhere. Where others
read them, they must find the old file or the new one, and never half of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a file to read bytes from, without ever waiting for a writer.

    Raises:
        OSError: there is none, it cannot be read, or it is a folder, a pipe, a device or, with `follow_links=False`, a link;
            what it is stands in the text.
    """
    status = path.stat() if follow_links else path.lstat()
    refuse_irregular(status.st_mode)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_links else os.O_NOFOLLOW)
    stream = os.fdopen(os.open(path, flags), "rb")
    try:
        refuse_irregular(os.fstat(stream.fileno()).st_mode)  # it may have been replaced meanwhile
    except OSError:
        stream.close()
        raise
    return stream


def read_regular(path: Path, largest: int, *, follow_links: bool = True) -> bytes:
    """Read the whole file. Raises `OSError` as `open_regular` does, and for more than `largest` bytes, which are then
    not read."""
    with open_regular(path, follow_links=follow_links) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > largest:
            raise OSError(f"it has {size:,} bytes, more than the {largest:,} that such a file may have")
        content = stream.read(size + 1)
    if len(content) != size:
        raise OSError("it changed while it was read")
    return content


_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}


def refuse_irregular(mode: int) -> None:
    """Raise `OSError`, which says what it is, unless a `st_mode` is that of a regular file."""
    if not stat.S_ISREG(mode):
        raise OSError(f"it is {_KINDS.get(stat.S_IFMT(mode), 'a device')}, not a file")


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or the new one.

    Args:
        path: where the file shall stand.
        write: receives the temporary path.
        durable: also survive a power cut (fsync), not only the death of the process.

    Raises:
        OSError: it cannot be written, or what is there is no file.
    """
    with contextlib.suppress(FileNotFoundError):  # a device must not be replaced by a file
        refuse_irregular(path.stat().st_mode)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"), durable=durable)


def file_name(words: str) -> str:
    """Make a file's name of words: those of a technique or of a dataset may hold anything, and must not lead elsewhere."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in words)
