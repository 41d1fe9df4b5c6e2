"""Files of others, opened with care: a name may lead to a pipe that never ends, a device, a folder, or a link elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path, *, follow_links: bool = True) -> BinaryIO:
    """A file to read bytes from, never waiting for anybody.

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
    """The whole content. Raises `OSError` as `open_regular`, and for more than `largest` bytes, which are not read."""
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
