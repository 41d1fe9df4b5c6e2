"""Which files of a folder are images, and their bytes: regular files of a bounded size, never a pipe or a device."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import open_regular, refuse_irregular

#: Formats that are read, in words.
FORMATS = "JPEG, PNG, WebP, BMP, GIF, TIFF, PPM"
#: Files of these names are images without a look at what is in them: a damaged one is refused, not passed over.
EXTENSIONS = frozenset(
    [
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    ]
)
#: What is half loaded or a former version is no image of its own, whatever it begins like.
_SPARE = (".part", ".partial", ".crdownload", ".download", ".tmp", ".bak", ".old", ".orig", "~")
#: A larger file is refused before it is read. 89 million pixels of four bytes are 341 MiB.
MAX_BYTES = 1 << 29
#: Left by file managers, archivers, network drives and notebooks, in lower case; a leading dot hides a name as well.
_IGNORED = frozenset(
    [
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"),
        *("__macosx", "__pycache__", "lost+found", "system volume information"),
        *("network trash folder", "temporary items", "$recycle.bin", "#recycle", "@recycle"),
        *("@eadir", "#snapshot", "@recently-snapshot", "@tmp", "@sharebin"),
    ]
)
_HEAD = 64
#: How a file of each format begins. Two letters are too few for BMP and PPM: texts may begin with them.
_SIGNATURE = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP"
    rb"|BM.{4}\0{4}.{4}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"
    rb"|P[1-6]\s+(#[^\n]*\n\s*)*\d+\s+\d+\s",
    re.DOTALL,
)
#: Raw files of cameras begin like this, too: it counts where no extension says otherwise.
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def open_named(path: str | os.PathLike[str], what: str = "image") -> BinaryIO:
    """Open a file for reading. Raises `UsageError`, which names it, if it is no regular file or cannot be opened.

    A pipe that nobody writes to is refused like any other, not waited for.
    """
    try:
        return open_regular(Path(path))
    except OSError as error:
        raise unreadable(path, error, what) from error


def check_regular(status: os.stat_result, path: str | os.PathLike[str], what: str = "image") -> None:
    """Raise `UsageError`, which names the file and says what it is, unless it is a regular one."""
    try:
        refuse_irregular(status.st_mode)
    except OSError as error:
        raise unreadable(path, error, what) from error


def unreadable(path: str | os.PathLike[str], error: OSError, what: str = "image") -> UsageError:
    """Make the error for a file that cannot be read, with the reason."""
    return UsageError(f"{what} {path} is missing or cannot be read: {error.strerror or error}.")


def read_image(path: str | os.PathLike[str]) -> bytes:
    """Read all bytes of an image file.

    Raises:
        UsageError: it is missing, unreadable, no regular file, or larger than `MAX_BYTES`; names it.
    """
    with open_named(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > MAX_BYTES:
            raise UsageError(f"image {path} has {size:,} bytes: more than {MAX_BYTES:,}. Remove or replace it.")
        try:
            return stream.read(size)
        except OSError as error:
            raise unreadable(path, error) from error


def visible(folder: str | os.PathLike[str]) -> list[os.DirEntry[str]]:
    """List the entries of a folder by name, without those that nobody means (hidden files, `@eaDir` and the like)."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not is_ignored(entry.name)]
    return sorted(found, key=lambda entry: entry.name)


def is_ignored(name: str) -> bool:
    """Say whether a file or folder of this name is hidden, or left behind by another program."""
    return name.startswith(".") or name.lower() in _IGNORED


def files_below(
    folder: str | os.PathLike[str], check_folder: Callable[[os.DirEntry[str]], None] = lambda entry: None
) -> Iterator[os.DirEntry[str]]:
    """List every visible entry below a folder that is no folder itself, however deep, in any order; links are followed.

    Args:
        check_folder: is shown every subfolder before it is opened, and may raise.

    Raises:
        UsageError: a link leads back to a folder that it lies in.
        OSError: a folder cannot be read.
    """
    waiting: list[tuple[str | os.PathLike[str], frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        for entry in visible(folder):
            if not entry.is_dir():
                yield entry
                continue
            check_folder(entry)
            status = entry.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                raise UsageError(f"{entry.path} is a link to a folder that it lies in. Remove it.")
            waiting.append((entry.path, above | {here}))


def has_image_name(name: str) -> bool:
    """Say whether the extension is one of `EXTENSIONS`."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def is_image(entry: os.DirEntry[str]) -> bool:
    """Say whether this is an image by its name or, failing that, by how its content begins.

    What has an image's name and is no file (a link to nothing, a pipe) counts: who reads it says what it is.
    """
    if has_image_name(entry.name):
        return not entry.is_dir()
    return entry.is_file() and _begins_like_an_image(entry)


def images_below(folder: Path) -> list[Path]:
    """List the images in a folder and its subfolders, by name. Raises `UsageError` if there are none, or it is
    unreadable."""
    try:
        found = sorted(Path(entry.path) for entry in files_below(folder) if is_image(entry))
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or folder}: {error.strerror}.") from error
    if not found:
        raise UsageError(f"folder {folder} has no images ({FORMATS}).")
    return found


def _begins_like_an_image(entry: os.DirEntry[str]) -> bool:
    if entry.name.lower().endswith(_SPARE):
        return False
    try:
        with open_named(entry.path) as stream:
            head = stream.read(_HEAD)
    except (UsageError, OSError):  # whatever it is, nobody called it an image
        return False
    return _SIGNATURE.match(head) is not None or (head.startswith(_TIFF) and not os.path.splitext(entry.name)[1])
