"""What a network's frozen first layers gave for each image, on disk: computed once, read through a memory map.

One NumPy file per set of images and prefix. The folder is bounded: what was not used for longest makes room.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from filelock import FileLock

from flowers_bench.util.files import write_atomically

#: Bytes that all files of the folder may have together. One file may take half of the disk's free space at most.
LIMIT = 8 * 2**30


def stored_rows(
    directory: Path,
    key: str,
    shape: tuple[int, ...],
    dtype: np.dtype,
    batches: Callable[[], Iterable[np.ndarray]],
    announce: Callable[[int], None],
) -> np.ndarray | None:
    """Give the array of `shape` and `dtype` that is stored under `key`, as a read-only memory map; compute and store it
    if it is not there.

    Safe when several processes ask at once: one computes, the others wait. A damaged file is computed again.

    Args:
        directory: created.
        key: hexadecimal; changes whenever the values would.
        batches: gives the rows in order, in arrays (n, ...).
        announce: called with the size in bytes before anything is computed.

    Returns:
        None where it does not fit the bounds, or the folder cannot be written.
    """
    path = directory / f"{key}.npy"
    found = _opened(path, shape, dtype)
    if found is not None:
        return found
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with FileLock(directory / f".{key[:2]}.lock"):
            found = _opened(path, shape, dtype)  # another process computed it while this one waited
            size = math.prod(shape) * dtype.itemsize
            if found is None and _make_room(directory, key, size):
                announce(size)
                write_atomically(path, lambda temporary: _write(temporary, shape, dtype, batches()), durable=False)
                found = _opened(path, shape, dtype)
    except OSError:
        return None
    return found


def _opened(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray | None:
    try:
        rows: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    if rows.shape != shape or rows.dtype != dtype:
        return None
    with contextlib.suppress(OSError):  # the folder may be read-only
        os.utime(path)
    return rows


def _make_room(directory: Path, key: str, size: int) -> bool:
    """Remove the files that were not used for longest until `size` bytes more fit the bounds; say whether they do."""
    for left in directory.glob(f".{key}.npy.*"):
        left.unlink(missing_ok=True)  # of a process that was killed: the lock of this key is ours
    if size > min(LIMIT, shutil.disk_usage(directory).free // 2):
        return False
    kept = []
    for path in directory.glob("*.npy"):
        with contextlib.suppress(FileNotFoundError):
            facts = path.stat()
            kept.append((facts.st_mtime_ns, facts.st_size, path))
    total = sum(bytes_ for _, bytes_, _ in kept)
    for _, bytes_, path in sorted(kept):
        if total + size <= LIMIT:
            break
        path.unlink(missing_ok=True)  # a process that reads it keeps its map
        total -= bytes_
    return True


def _write(path: Path, shape: tuple[int, ...], dtype: np.dtype, batches: Iterable[np.ndarray]) -> None:
    rows = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    start = 0
    for batch in batches:
        rows[start : start + len(batch)] = batch
        start += len(batch)
    if start != shape[0]:
        raise RuntimeError(f"expected {shape[0]} rows, but got {start}")
    rows.flush()
