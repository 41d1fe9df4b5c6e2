"""Whether one more trial fits into memory.

A trial needs what a finished trial of the same kind peaked at; of a kind that never finished in this store, as much as the
largest known; of the very first, `UNKNOWN`. What the running ones have not taken yet is set aside for them.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator

import psutil

from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.records import Config
from flowers_bench.util.errors import UsageError

#: Bytes that a trial is taken to need while nothing has been measured in its store.
UNKNOWN = 2 * 2**30
_LOOK_AGAIN = 2.0  # seconds
#: Model, backbone, image size, batch size and precision: what decides how much memory a trial takes.
_Kind = tuple[str, str, int, int, str | None]


class MemoryGuard:
    """Lets a trial start when its expected peak fits; the first one always starts, since waiting would not help it."""

    def __init__(self, available: Callable[[], int] = lambda: int(psutil.virtual_memory().available)) -> None:
        self._available = available
        self._changed = threading.Condition()
        self._expected: dict[str, int] = {}

    @contextlib.contextmanager
    def held_for(self, folder: TrialFolder, stopping: threading.Event, say: Callable[[str], None]) -> Iterator[None]:
        """Wait until the trial fits (or `stopping`), and count it in until the block ends. `say` hears why it waits."""
        need = expected_peak(folder)
        told = False
        with self._changed:
            while self._expected and not stopping.is_set() and (free := self._free()) < need:
                if not told:
                    say(
                        f"waits for memory: needs about {need / 2**30:.1f} GiB, {max(free, 0) / 2**30:.1f} GiB are left"
                    )
                    told = True
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
    """Bytes that this trial is expected to peak at, from what its store knows."""
    kind = _kind(folder.config())
    same: list[int] = []
    others: list[int] = []
    for other in Store(folder.path.parent).finished():
        with contextlib.suppress(UsageError):  # a damaged neighbour is not this trial's affair
            found, peak = _measured(other)
            if peak is not None:
                (same if found == kind else others).append(peak)
    return max(same or others or [UNKNOWN])


@functools.cache
def _measured(folder: TrialFolder) -> tuple[_Kind, int | None]:
    """Kind and peak of a finished trial, read once: it does not change any more, and is asked for at every start."""
    return _kind(folder.config()), folder.any_result().cost.peak_rss_bytes


def _kind(config: Config) -> _Kind:
    recipe = config.recipe
    return (config.model, config.backbone, recipe.image_size, recipe.batch_size, recipe.precision)
