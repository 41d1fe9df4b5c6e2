"""How long a run still takes, from the epochs that its trials have behind them and those that they may have before them."""

from __future__ import annotations

import time
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


@dataclass(frozen=True)
class _Facts:
    """What is known of a trial before it runs: its technique, epochs at most, and whether it is measured under stress, too."""

    key: str
    epochs: int
    stress: bool


@dataclass
class _UnderStress:
    """How far a measurement under stress is: when it began, and how many of its changes are measured."""

    began: float
    done: int
    of: int
    seconds: float = 0.0


@dataclass
class Pace:
    """Seconds of epochs and of whole trials, by technique; finished trials are read once. What measuring under stress takes
    stands in no file: `under_stress` is told.

    Attributes:
        folders: the trials of the run.
        jobs: how many run at once.
    """

    folders: Sequence[TrialFolder]
    jobs: int = 1
    _finished: dict[str, _Finished] = field(default_factory=dict)
    _known: dict[str, _Facts] = field(default_factory=dict)
    _stress: dict[str, _UnderStress] = field(default_factory=dict)

    def under_stress(self, trial_id: str, done: int, of: int) -> None:
        """Note that `done` of so many changes of a trial's test images are measured."""
        now = time.monotonic()
        found = self._stress.setdefault(trial_id, _UnderStress(now, done, of))
        found.done, found.seconds = done, now - found.began

    def seconds_left(self) -> float | None:
        """Compute what is left, at most: training may end early. None as long as no epoch or trial is over, or not known what
        measuring under stress takes. Raises `Unreadable`."""
        epochs: dict[str, list[float]] = {}
        begun: list[tuple[str, int, int]] = []
        for folder in self.folders:
            facts = self._facts(folder)
            own = epochs.setdefault(facts.key, [])
            if folder.id not in self._finished and folder.finished():
                self._finished[folder.id] = _Finished.of(folder)
            if found := self._finished.get(folder.id):
                own += found.epochs
                continue
            history = folder.history()
            own += _seconds(history)
            if not folder.failed():
                begun.append((facts.key, facts.epochs, len(history)))
        seen = [second for seconds in epochs.values() for second in seconds]
        if begun and not seen and not self._finished:
            return None
        beside = fmean(one.beside for one in self._finished.values()) if self._finished else 0.0
        left = 0.0
        for key, planned, done in begun:
            own = epochs[key] or seen
            left += (planned - done) * (fmean(own) if own else 0.0) + beside
        waiting = [folder for folder in self.folders if self._waits_for_stress(folder)]
        under_stress = self._stress_left(waiting)
        if under_stress is None:
            return None
        return (left + under_stress) / max(1, min(self.jobs, max(len(begun), len(waiting))))

    def _waits_for_stress(self, folder: TrialFolder) -> bool:
        return self._facts(folder).stress and not folder.stressed() and not folder.failed()

    def _stress_left(self, waiting: Sequence[TrialFolder]) -> float | None:
        """Compute the seconds that measuring these under stress takes; None where some wait and none has begun."""
        if not waiting:
            return 0.0
        measured = sum(one.done for one in self._stress.values())
        if not measured:
            return None
        each = sum(one.seconds for one in self._stress.values()) / measured
        most = max(one.of for one in self._stress.values())
        begun = [self._stress.get(folder.id) for folder in waiting]
        return each * sum(most if one is None else one.of - one.done for one in begun)

    def _facts(self, folder: TrialFolder) -> _Facts:
        if folder.id not in self._known:
            config, run = folder.config(), folder.run()
            self._known[folder.id] = _Facts(seedless_id(config), config.recipe.epochs, bool(run.stress))
        return self._known[folder.id]


def _seconds(history: Sequence[Epoch]) -> tuple[float, ...]:
    return tuple(epoch.seconds for epoch in history if epoch.seconds is not None)
