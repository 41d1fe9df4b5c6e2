"""Decoded images on disk: written once as raw uint8, read through a memory map ever after.

A cache is a folder `<name>-<key>/` with `pixels.bin` (images one after another, each H x W x 3) and `index.npy`
(count, 3: offset, height, width). The folder appears under its name only when it is complete.
"""

from __future__ import annotations

import contextlib
import glob
import logging
import mmap
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout

from flowers_bench.contract.dataset import Images, Progress, silent
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import open_regular
from flowers_bench.util.system import unreserved_mapping

if TYPE_CHECKING:
    from torch import Tensor

#: After so many images the size of the whole is foreseen, and compared with the free disk space.
_SAMPLE = 32
#: Seconds after which whoever waits for another process that decodes the same images says so.
_PATIENCE = 2.0


class _Damaged(Exception):
    """A cache that is not there, or not whole."""


@dataclass
class CachedImages:
    """Images of a finished cache. Pickles as its path; every process maps the file for itself.

    `images[i]` is a uint8 tensor (3, H, W): a view on the map, nothing is copied. Do not write to it: the file and
    other processes would not notice, but this process would read the changed pixels ever after.
    """

    folder: Path

    def __post_init__(self) -> None:
        with open_regular(self.folder / "index.npy") as stream:
            self._index: np.ndarray = np.load(stream, allow_pickle=False)
        self._pixels = _mapped(self.folder / "pixels.bin")

    @property
    def sizes(self) -> np.ndarray:
        """Give the height and width of each image, int64 (N, 2), in pixels."""
        return self._index[:, 1:]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Tensor:
        import torch

        offset, height, width = self._index[index].tolist()
        pixels = self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def __getstate__(self) -> dict[str, Path]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Path]) -> None:
        self.folder = state["folder"]
        self.__post_init__()


@dataclass(frozen=True)
class Slice:
    """Consecutive images of a cache, as one split."""

    images: Images
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.images[self.start + index]


@dataclass(frozen=True)
class Selection:
    """Some images of a cache, in any order, as one split: `indices` is int64 (N,)."""

    images: Images
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[int(self.indices[index])]


def cached_images(
    directory: Path,
    name: str,
    key: str,
    decoded: Callable[[], Iterator[np.ndarray]],
    count: int,
    progress: Progress = silent,
    *,
    supersedes: bool = False,
    read_only: bool = False,
) -> CachedImages:
    """Open the images of cache `name` under `key`; decode and store them first if they are not there yet.

    Safe when several processes ask at once: one builds, the others wait. A damaged cache is built again. A finished
    one is read without a lock, so `directory` may then be read-only.

    Args:
        directory: where caches lie; created.
        name: part of a file's name; what stands before its first dash is shown to people.
        key: hexadecimal; changes whenever the pixels would.
        decoded: yields `count` uint8 arrays (H, W, 3).
        count: how many images there are.
        progress: shown while decoding.
        supersedes: caches of this name under other keys are out of date, and removed once this one is built. Not
            to be set where the key also holds what the user may go back to, such as the image size.
        read_only: decode and write nothing: `UsageError` where the cache is not there, or not whole.

    Raises:
        UsageError: the directory cannot be written or the disk is too small, and whatever `decoded` raises; nothing
            half-written is left behind.
    """
    folder = directory / f"{name}-{key[:16]}"
    try:
        return _opened(folder, count)
    except _Damaged:
        if read_only:
            raise UsageError(f"{folder} is not there, or not whole.") from None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _locked(directory / f".{name}.lock", name):
            try:
                return _opened(folder, count)  # another process built it while this one waited
            except _Damaged:
                _build(folder, name, decoded, count, progress)
            if supersedes:
                for other in _of_name(directory, name) - {folder}:
                    shutil.rmtree(other, ignore_errors=True)
    except OSError as error:
        raise UsageError(
            f"cannot write the image cache {folder}: {error}. Choose another place with --data-dir."
        ) from error
    return CachedImages(folder)


def _mapped(path: Path) -> np.ndarray:
    """Map the file's bytes into memory, as uint8.

    Writable, because torch knows no read-only tensors; private, so that a write never reaches the file; and without
    reserving memory for such writes, or a cache larger than the machine's memory could not be mapped at all.
    """
    with open_regular(path) as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return np.empty(0, np.uint8)
        flags = mmap.MAP_PRIVATE | unreserved_mapping()
        pixels = mmap.mmap(stream.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    return np.frombuffer(pixels, np.uint8)


def _opened(folder: Path, count: int) -> CachedImages:
    """Open the cache. Raises `_Damaged` unless it is there, whole, and has that number of images."""
    try:
        images = CachedImages(folder)
        index = images._index
        if index.shape != (count, 3) or index.dtype != np.int64 or (images.sizes < 1).any():
            raise _Damaged
        ends = np.cumsum(index[:, 1] * index[:, 2] * 3)
        if not np.array_equal(index[:, 0], np.concatenate([[0], ends[:-1]])[:count]):
            raise _Damaged
        if len(images._pixels) != (ends[-1] if count else 0):
            raise _Damaged
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _Damaged from error
    return images


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    """Hold the lock; say so if another process keeps it for long."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        logging.getLogger(__name__).warning("another process is decoding %s; waiting for it", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _of_name(directory: Path, name: str, prefix: str = "", suffix: str = "") -> set[Path]:
    """List the entries `<prefix><name>-<key><suffix>`, whatever the key is (a key has no dash)."""
    found = directory.glob(f"{prefix}{glob.escape(name)}-*{suffix}")
    return {path for path in found if "-" not in path.name[len(prefix) + len(name) + 1 :]}


def _build(
    folder: Path, name: str, decoded: Callable[[], Iterator[np.ndarray]], count: int, progress: Progress
) -> None:
    """Write the cache into a hidden folder, then rename it. The lock of `name` must be held."""
    for left in _of_name(folder.parent, name, ".", ".partial"):
        shutil.rmtree(left)  # of a process that was killed: nobody else can be building, the lock is ours
    temporary = folder.with_name(f".{folder.name}.partial")
    try:
        temporary.mkdir()
        index = _write(
            temporary / "pixels.bin", progress(decoded(), f"decoding {name.partition('-')[0]}", count), count
        )
        with (temporary / "index.npy").open("wb") as stream:
            np.save(stream, index)
            stream.flush()
            os.fsync(stream.fileno())
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write(path: Path, images: Iterable[np.ndarray], count: int) -> np.ndarray:
    """Append all images to the file; returns their index, int64 (count, 3)."""
    index = np.zeros((count, 3), np.int64)
    position = number = 0
    with path.open("wb") as stream:
        for image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise TypeError(f"expected a uint8 array (H, W, 3), but got {image.dtype} {image.shape}")
            if number < count:  # more than expected are counted, and refused below
                index[number] = position, *image.shape[:2]
                stream.write(np.ascontiguousarray(image).data)
            position += image.size
            number += 1
            if number == _SAMPLE < count:
                _check_space(path, position, position * count // _SAMPLE)
        stream.flush()
        os.fsync(stream.fileno())
    if number != count:
        raise UsageError(f"expected {count} images for {path.parent.name}, but decoded {number}.")
    return index


def _check_space(path: Path, written: int, foreseen: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if foreseen - written > free:
        raise UsageError(
            f"the decoded images need about {foreseen / 1e9:.1f} GB, and {path.parent.parent} has {free / 1e9:.1f} GB "
            "left. Make room, choose another place with --data-dir, or a smaller image_size."
        )
