"""Decides whether one more trial fits into memory.

A trial is expected to need as much as a finished trial of the same kind did at its peak. If no trial of this kind is
finished in this store, the largest known peak counts; if no trial is, `UNKNOWN`. What running trials have not taken yet
is kept free for them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.index import Index
from flowers_bench.util.errors import UsageError

#: Bytes that a trial is expected to need while nothing has been measured in its store.
UNKNOWN = 2 * 2**30
_LOOK_AGAIN = 2.0  # seconds between two looks at the free memory


class MemoryGuard:
    """Lets a trial start when its expected peak fits; the first one always starts, since waiting would not help it."""

    def __init__(self, available: Callable[[], int] = lambda: int(psutil.virtual_memory().available)) -> None:
        self._available = available
        self._changed = threading.Condition()
        self._expected: dict[str, int] = {}

    @contextlib.contextmanager
    def held_for(self, folder: TrialFolder, stopping: threading.Event, say: Callable[[str], None]) -> Iterator[None]:
        """Wait until the trial fits (or `stopping`), and count it in until the block ends. `say` is called with the
        reason, if it waits."""
        need = expected_peak(folder)
        reported = False
        with self._changed:
            while self._expected and not stopping.is_set() and (free := self._free()) < need:
                if not reported:
                    say(
                        f"waits for memory: needs about {need / 2**30:.1f} GiB, {max(free, 0) / 2**30:.1f} GiB are left"
                    )
                    reported = True
                self._changed.wait(_LOOK_AGAIN)
            self._expected[folder.id] = need
        try:
            yield
        finally:
            with self._changed:
                del self._expected[folder.id]
                self._changed.notify_all()

    def _free(self) -> int:
        taken = sum(int(child.memory_info().rss) for child in _descendants())
        return self._available() - max(0, sum(self._expected.values()) - taken)


def _descendants() -> Iterator[psutil.Process]:
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.memory_info()
            yield child


def expected_peak(folder: TrialFolder) -> int:
    """Estimate the bytes that this trial will need at its peak, from what its store knows."""
    kind = folder.config().memory_kind
    same: list[int] = []
    others: list[int] = []
    for other in Store(folder.path.parent).finished():
        with contextlib.suppress(UsageError):  # other trials that are damaged do not matter here
            found, peak = _measured(other)
            if peak is not None:
                (same if found == kind else others).append(peak)
    return max(same or others or [UNKNOWN])


@functools.cache
def _index(root: Path) -> Index:
    """Give the index of a store, which is read once; each trial's files are looked at for whether it still holds."""
    return Index(root)


@functools.cache
def _measured(folder: TrialFolder) -> tuple[tuple[str | int | None, ...], int | None]:
    """Read kind and peak (bytes) of a finished trial, only once, since it does not change any more."""
    known = _index(folder.path.parent).known(folder.path)
    if known and known.finished:
        return tuple(known.kind), known.peak
    return folder.config().memory_kind, folder.any_result().cost.peak_rss_bytes
