"""Decoded images on disk: written once as raw uint8, read through a memory map ever after.

A cache is a folder `<name>-<key>/` with `pixels.bin` (images one after another, each H x W x 3) and `index.npy`
(count, 3: offset, height, width). The folder appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from flowers_bench.data.dataset import Images, Progress, silent
from flowers_bench.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class CachedImages:
    """Images of a finished cache. Pickles as its path; every process maps the file for itself."""

    folder: Path

    def __post_init__(self) -> None:
        self._index = np.load(self.folder / "index.npy", allow_pickle=False)
        # Copy on write: torch wants a writable array, and nobody may change the file.
        self._pixels = np.memmap(self.folder / "pixels.bin", mode="c") if len(self._index) else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Tensor:
        import torch

        offset, height, width = (int(v) for v in self._index[index])
        pixels = self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder}

    def __setstate__(self, state: dict[str, Any]) -> None:
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


def cached_images(
    directory: Path,
    name: str,
    key: str,
    decoded: Callable[[], Iterator[np.ndarray]],
    count: int,
    progress: Progress = silent,
) -> CachedImages:
    """The images of cache `name` under `key`, decoding them if they are not there yet.

    Safe when several processes ask at once: one builds, the others wait. Caches of the same name under other keys
    are left alone (other image sizes and options have keys of their own).

    Args:
        directory: where caches lie; created.
        name: for people.
        key: hexadecimal; changes whenever the pixels would.
        decoded: yields `count` uint8 arrays (H, W, 3).
        progress: shown while decoding.

    Raises:
        UsageError: the directory cannot be written or the disk is full, and whatever `decoded` raises; nothing
            half-written is left behind.
    """
    folder = directory / f"{name}-{key[:16]}"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / f".{name}.lock"):
            if not _complete(folder, count):
                _build(folder, progress(decoded(), f"decoding {name}", count), count)
    except OSError as error:
        raise UsageError(
            f"cannot write the image cache {folder}: {error}. Choose another place with --data-dir."
        ) from error
    return CachedImages(folder)


def _complete(folder: Path, count: int) -> bool:
    """Whether the cache is there, whole, and of the right number of images."""
    try:
        index = np.load(folder / "index.npy", allow_pickle=False)
        expected = int((index[:, 1] * index[:, 2]).sum() * 3)
        return len(index) == count and (folder / "pixels.bin").stat().st_size == expected
    except (OSError, ValueError, IndexError, EOFError):
        return False


def _build(folder: Path, images: Any, count: int) -> None:
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        index = np.zeros((count, 3), np.int64)
        position = 0
        number = 0
        with (temporary / "pixels.bin").open("wb") as stream:
            for image in images:
                height, width, _ = image.shape
                index[number] = position, height, width
                stream.write(np.ascontiguousarray(image).data)
                position += height * width * 3
                number += 1
            stream.flush()
            os.fsync(stream.fileno())
        if number != count:
            raise UsageError(f"expected {count} images for {folder.name}, but decoded {number}.")
        np.save(temporary / "index.npy", index)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        temporary.chmod(0o755)
        temporary.replace(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
