"""How long a run still takes, from the epochs that its trials have behind them and those that they may have before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from flowers_bench.report.names import seedless_id
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.records import Epoch


@dataclass(frozen=True)
class _Finished:
    """What a finished trial took: seconds of each epoch, and of all beside them (start, fitting, test, measurements)."""

    epochs: tuple[float, ...]
    beside: float

    @classmethod
    def of(cls, folder: TrialFolder) -> _Finished:
        """Read it from the trial's files. Raises `Unreadable`."""
        epochs = _seconds(folder.history())
        cost = folder.any_result().cost
        whole = cost.seconds + (cost.setup_seconds or 0.0) + (cost.test_seconds or 0.0)
        return cls(epochs, max(0.0, whole - sum(epochs)))


@dataclass
class Pace:
    """Seconds of epochs and of whole trials, by technique; finished trials are read once.

    Attributes:
        folders: the trials of the run.
        jobs: how many run at once.
    """

    folders: Sequence[TrialFolder]
    jobs: int = 1
    _finished: dict[str, _Finished] = field(default_factory=dict)
    _keys: dict[str, tuple[str, int]] = field(default_factory=dict)

    def seconds_left(self) -> float | None:
        """Compute what is left, at most: training may end early. None as long as no epoch or trial is over. Raises `Unreadable`."""
        epochs: dict[str, list[float]] = {}
        begun: list[tuple[str, int, int]] = []
        for folder in self.folders:
            key, planned = self._facts(folder)
            own = epochs.setdefault(key, [])
            if folder.id not in self._finished and folder.finished():
                self._finished[folder.id] = _Finished.of(folder)
            if found := self._finished.get(folder.id):
                own += found.epochs
                continue
            history = folder.history()
            own += _seconds(history)
            if not folder.failed():
                begun.append((key, planned, len(history)))
        seen = [second for seconds in epochs.values() for second in seconds]
        if begun and not seen and not self._finished:
            return None
        beside = fmean(one.beside for one in self._finished.values()) if self._finished else 0.0
        left = 0.0
        for key, planned, done in begun:
            own = epochs[key] or seen
            left += (planned - done) * (fmean(own) if own else 0.0) + beside
        return left / max(1, min(self.jobs, len(begun) or 1))

    def _facts(self, folder: TrialFolder) -> tuple[str, int]:
        if folder.id not in self._keys:
            config = folder.config()
            self._keys[folder.id] = seedless_id(config), config.recipe.epochs
        return self._keys[folder.id]


def _seconds(history: Sequence[Epoch]) -> tuple[float, ...]:
    return tuple(epoch.seconds for epoch in history if epoch.seconds is not None)
