"""Files from the web, whole or not at all: resumed when interrupted, refused when the checksum is wrong."""

from __future__ import annotations

import hashlib
import http.client
import io
import shutil
import tarfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from flowers_bench.contract.dataset import Progress, silent
from flowers_bench.data.files import open_named
from flowers_bench.util.errors import UsageError

_BLOCK = 1 << 20
_MD5_DIGITS = 32
_NO_CHECKSUM = "0" * _MD5_DIGITS


class _WrongChecksum(Exception):
    """The file that arrived is not the file that was asked for."""


def fetch(url: str, target: Path, checksum: str, progress: Progress = silent, timeout: float = 30.0) -> None:
    """Download `url` to `target`, unless it is there already.

    What has arrived lies in `<target>.part` until it is complete and has the right checksum; the next call continues
    there. A lost connection is taken up again as long as each attempt brings something new.

    Args:
        url: http or https; proxies are taken from the environment.
        target: its folder must exist.
        checksum: hexadecimal: MD5 (32 digits) or SHA-256 (64).
        progress: shown while loading, in MiB.
        timeout: seconds without a single byte after which the server counts as lost.

    Raises:
        UsageError: no connection, a stalling server, an HTTP error, a wrong checksum, or a full disk; names the URL.
    """
    part = target.with_name(target.name + ".part")
    if has_checksum(target, checksum):
        return
    try:
        resumed = part.exists()
        try:
            _complete(url, part, checksum, progress, timeout)
        except _WrongChecksum:
            if not resumed:
                raise
            _complete(
                url, part, checksum, progress, timeout
            )  # the old beginning was at fault: once more from the start
        part.replace(target)
    except _WrongChecksum as error:
        raise UsageError(f"{url} has a wrong checksum: {error}. Nothing was kept.") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UsageError(f"{url} could not be downloaded ({_reason(error)}).") from error


def unpack(
    archive: Path, folder: Path, member: str, count: int, progress: Progress = silent, checksum: str | None = None
) -> None:
    """Unpack a tar file and put its top folder `member` to `folder`, which appears only when it is whole.

    Args:
        archive: a tar file, compressed or not.
        folder: must not exist; its parent must.
        member: the folder inside the archive; empty for everything that it holds.
        count: how many files are expected, for progress.
        progress: shown while unpacking.
        checksum: as for `fetch`, of the archive: of the bytes that are unpacked, however the file was before.

    Raises:
        UsageError: the archive is damaged, has another checksum, lacks `member`, holds a path that climbs out of it, or the disk is full.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UsageError("unpacking safely needs Python >= 3.10.12 (3.11.4, 3.12). Update Python, or unpack by hand.")
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        with open_named(archive, "archive") as stream:
            hashed = _Hashed(stream, checksum or _NO_CHECKSUM)
            with tarfile.open(fileobj=hashed, mode="r|*") as tar:
                for entry in progress(tar, f"unpacking {archive.name}", count):
                    tar.extract(entry, temporary, filter="data")
            if checksum is not None and (found := hashed.checksum()) != checksum:
                raise UsageError(f"{archive} has a wrong checksum ({kind_of(checksum)} {found}, {checksum} expected).")
        (temporary / member).rename(folder)
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{archive} cannot be unpacked ({_reason(error)}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class _Hashed(io.RawIOBase):
    """A stream that hashes what is read from it."""

    def __init__(self, stream: BinaryIO, like: str) -> None:
        self._stream = stream
        self._digest = _digest(like)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        block = self._stream.read(size)
        self._digest.update(block)
        return block

    def checksum(self) -> str:
        """Compute the checksum of the whole stream, hexadecimal: reads what is left of it."""
        while self.read(_BLOCK):
            pass
        return self._digest.hexdigest()


def kind_of(checksum: str) -> str:
    """Name a checksum's kind, which its length tells: "MD5" or "SHA-256"."""
    return "MD5" if len(checksum) == _MD5_DIGITS else "SHA-256"


def has_checksum(path: Path, checksum: str) -> bool:
    """Say whether the file is there and has this checksum, as for `fetch`."""
    try:
        return _checksum(path, checksum) == checksum
    except (OSError, UsageError):
        return False


def _digest(like: str) -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False) if len(like) == _MD5_DIGITS else hashlib.sha256()


def _checksum(path: Path, like: str) -> str:
    """Compute a file's checksum of the kind that `like` is, hexadecimal."""
    digest = _digest(like)
    with open_named(path, "file") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _complete(url: str, part: Path, checksum: str, progress: Progress, timeout: float) -> None:
    """Bring `part` to its full length and check it; a wrong one is removed."""
    while not has_checksum(part, checksum):
        before = _size(part)
        try:
            _transfer(url, part, progress, timeout)
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not before:
                raise
            part.unlink()  # longer than the file: start again
            continue
        except (OSError, http.client.HTTPException):
            if _size(part) <= before:
                raise
            continue
        if (found := _checksum(part, checksum)) != checksum:
            part.unlink()
            raise _WrongChecksum(f"{kind_of(checksum)} {found}, expected {checksum}")


def _transfer(url: str, part: Path, progress: Progress, timeout: float) -> None:
    """Make one connection: append to `part` what is missing, or start again where the server cannot resume."""
    start = _size(part)
    headers = {"User-Agent": "flowers-bench"} | ({"Range": f"bytes={start}-"} if start else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
        resumes = response.status == http.HTTPStatus.PARTIAL_CONTENT
        if resumes and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise ValueError("the server answered with another range than was asked for")
        length = int(response.headers.get("Content-Length", -1))
        free = shutil.disk_usage(part.parent).free
        if length > free:
            raise OSError(f"{length / 1e6:.0f} MB do not fit on {part.parent}, which has {free / 1e6:.0f} MB left")
        with part.open("ab" if resumes else "wb") as stream:
            total = max(1, -(-length // _BLOCK))
            name = url.rpartition("/")[2]
            for _ in progress(_blocks(response, stream), f"downloading {name} (MiB)", total):
                pass
            received = stream.tell() - (start if resumes else 0)
    if received < length:
        raise OSError(f"the connection ended after {received:,} of {length:,} bytes")


def _blocks(response: Any, stream: BinaryIO) -> Iterator[None]:
    """Write what arrives at once, so that nothing is lost with the connection; yields about once per block."""
    done = 0
    while data := response.read1(_BLOCK):
        stream.write(data)
        done += len(data)
        if done >= _BLOCK:
            done -= _BLOCK
            yield
    yield


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _reason(error: BaseException) -> str:
    """Put an exception into words: urllib wraps the one that says something."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    cause = error.reason if isinstance(error, urllib.error.URLError) and error.reason else error
    return f"{type(cause).__name__}: {cause}" if isinstance(cause, BaseException) else str(cause)
