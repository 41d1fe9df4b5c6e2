"""Finished trials as rows: one configuration over its seeds, and which rows may be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import log_softmax

from flowers_bench.measure.quality import (
    calibration_error_if_calibrated,
    calibration_shares,
    chance_right,
    correct_in_top_k,
    f1_shares,
    squared_distances,
)
from flowers_bench.measure.statistics import Interval, accuracy_interval, image_mean
from flowers_bench.report.names import configuration_id
from flowers_bench.store.folder import STRESS_REVISION, Scores, TrialFolder
from flowers_bench.store.identity import Label
from flowers_bench.store.records import Config, Result, Run

#: By a trial's id, the names that a run asked for it by.
Asked = Mapping[str, Sequence[Label]]


@dataclass(frozen=True)
class Finished:
    """A finished trial with its files read, under one of its names.

    Attributes:
        config: with technique and variant, as `TrialFolder.described` has it.
    """

    folder: TrialFolder
    label: Label
    config: Config
    result: Result
    run: Run

    @classmethod
    def load(cls, folder: TrialFolder, label: Label | None = None) -> Finished:
        """Everything but the predictions, under this name or the first that it has. Figures under changes as another version made them are left out: they are not
        comparable with those of this one, and `--stress` measures them again."""
        result = folder.result()
        if result.has("stress_revision") and result.stress_revision != STRESS_REVISION:
            result = replace(result, stress_revision=None, stress=None, robustness=None)
        label = label or folder.labels()[0]
        return cls(folder, label, folder.described(label), result, folder.run())

    @classmethod
    def each(cls, folders: Iterable[TrialFolder], asked: Asked | None = None) -> list[Finished]:
        """Every trial under every name that it has; of those that were `asked` for by name, under these names alone."""
        return [
            cls.load(folder, label) for folder in folders for label in ((asked or {}).get(folder.id) or folder.labels())
        ]

    @property
    def trained(self) -> bool:
        """Whether anything was trained."""
        return self.result.cost.epochs > 0


@dataclass(frozen=True)
class Configuration:
    """Finished trials that differ in nothing but the seed.

    Attributes:
        id: the same whatever seeds there are; of a trial that is looked at alone, the trial's.
        trials: in the order of their seeds.
    """

    id: str
    trials: tuple[Finished, ...]

    @classmethod
    def of(cls, trials: Iterable[Finished]) -> Configuration:
        """Of trials that have all but the seed in common."""
        ordered = tuple(sorted(trials, key=lambda trial: trial.config.seed))
        return cls(configuration_id(ordered[0].config), ordered)

    @classmethod
    def alone(cls, trial: Finished) -> Configuration:
        """One trial, whatever other seeds there are."""
        return cls(trial.folder.id, (trial,))

    @property
    def config(self) -> Config:
        """Of the first seed; the others have the same but for the seed."""
        return self.trials[0].config

    @property
    def label(self) -> str:
        """`technique/variant`, as the user writes it."""
        return self.trials[0].label.text


@dataclass(frozen=True)
class Row:
    """One configuration over its seeds.

    Attributes:
        id: of its configuration: what it is looked up by.
        name: `technique/variant`, with what tells it from the other rows of its table; for people.
        trials: one per seed, in the order of `seeds`.
        keys, labels: of the N test images.
        predicted, confidence, correct: (S, N): the class with the largest score, its softmax, whether it is right.
        calibrated: (S, N): the same softmax after temperature scaling; None where a seed has no temperature.
        top1: test accuracy with its interval.
        figures: other figures of the test images with their intervals, by their keys in `measures`, and `mean_per_class`.
        if_calibrated: by those of calibration errors, what they would be, mean over seeds, if the confidences were true.
    """

    id: str
    name: str
    trials: tuple[Finished, ...]
    keys: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    calibrated: np.ndarray | None
    correct: np.ndarray
    top1: Interval
    figures: Mapping[str, Interval]
    if_calibrated: Mapping[str, float]

    @property
    def config(self) -> Config:
        """Of the first seed; the others have the same but for the seed."""
        return self.trials[0].config

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(trial.config.seed for trial in self.trials)

    @property
    def ids(self) -> frozenset[str]:
        """Of its trials. Rows of different names may have some in common: then they are the same trials."""
        return frozenset(trial.folder.id for trial in self.trials)

    @property
    def baseline(self) -> str | None:
        """`technique/variant` that it is to be compared with."""
        return self.trials[0].label.baseline

    def mean(self, *path: str) -> float | None:
        """Mean over seeds of a number in `result.json`, or None where it was not measured."""
        numbers = [value for value in (at(trial.result, path) for trial in self.trials) if value is not None]
        return float(np.mean(numbers)) if numbers else None


def at(value: object, path: Sequence[str]) -> float | None:
    """A number inside nested records, or None."""
    found = within(value, path)
    return found if isinstance(found, (int, float)) else None


def within(value: object, path: Sequence[str]) -> object:
    """What stands inside nested records, or None."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value


def build_row(name: str, configuration: Configuration) -> Row:
    """The configuration's row, under this name."""
    trials = configuration.trials
    scores = [trial.folder.scores() for trial in trials]
    correct = np.stack([correct_in_top_k(s.logits, s.labels) for s in scores])
    raw = _Judged.of(scores, [1.0] * len(scores))
    temperatures = [float(found) for trial in trials if (found := trial.result.temperature)]
    calibrated = _Judged.of(scores, temperatures) if len(temperatures) == len(trials) else None
    labels = scores[0].labels
    # Each class weighs as much as any other: the mean of this over images is the mean over classes.
    counts = np.bincount(labels)
    weights = len(labels) / np.count_nonzero(counts) / counts[labels]
    predicted = np.stack([s.logits.argmax(1) for s in scores])
    f1 = np.stack([f1_shares(found, labels, s.logits.shape[1]) for s, found in zip(scores, predicted, strict=True)])
    figures = {
        "mean_per_class": image_mean(correct * weights, 1.0),
        "top5": accuracy_interval(np.stack([correct_in_top_k(s.logits, s.labels, 5) for s in scores])),
        "macro_f1": image_mean(f1, 1.0),
    }
    if_calibrated: dict[str, float] = {}
    if all(trial.result.test.nll is not None for trial in trials):  # else its scores are not meant as probabilities
        figures |= raw.figures("")
        if_calibrated |= raw.if_calibrated("")
    if calibrated is not None:
        figures |= calibrated.figures("_calibrated")
        if_calibrated |= calibrated.if_calibrated("_calibrated")
    retrieved = [trial.folder.retrieval_shares() for trial in trials]
    if all(retrieved):
        figures |= {key: image_mean(np.stack([found[key] for found in retrieved]), 1.0) for key in retrieved[0]}
    return Row(
        id=configuration.id,
        name=name,
        trials=trials,
        keys=scores[0].keys,
        labels=labels,
        predicted=predicted,
        confidence=raw.confidence,
        calibrated=None if calibrated is None else calibrated.confidence,
        correct=correct,
        top1=accuracy_interval(correct),
        figures=figures,
        if_calibrated=if_calibrated,
    )


@dataclass(frozen=True)
class _Judged:
    """Scores as probabilities: the largest of each image and whether it is right, what its label's cost, how far they are
    from the truth; all (S, N)."""

    confidence: np.ndarray
    right: np.ndarray
    nll: np.ndarray
    distance: np.ndarray

    @classmethod
    def of(cls, scores: Sequence[Scores], temperatures: Sequence[float]) -> _Judged:
        found = []
        for s, temperature in zip(scores, temperatures, strict=True):
            logs = log_softmax(s.logits.astype(np.float64) / temperature, axis=1)
            probabilities = np.exp(logs)
            own = logs[np.arange(len(s.labels)), s.labels]
            right = chance_right(s.logits, s.labels)
            found.append((probabilities.max(1), right, -own, squared_distances(probabilities, s.labels)))
        return cls(*(np.stack(values) for values in zip(*found, strict=True)))

    def figures(self, suffix: str) -> dict[str, Interval]:
        return {
            f"nll{suffix}": image_mean(self.nll, np.inf),
            f"brier{suffix}": image_mean(self.distance, 2.0),
            f"ece{suffix}": image_mean(self._shares(adaptive=False), 1.0),
            f"ece_adaptive{suffix}": image_mean(self._shares(adaptive=True), 1.0),
        }

    def _shares(self, *, adaptive: bool) -> np.ndarray:
        seeds = zip(self.confidence, self.right, strict=True)
        return np.stack([calibration_shares(*seed, adaptive=adaptive) for seed in seeds])

    def if_calibrated(self, suffix: str) -> dict[str, float]:
        kinds = {f"ece{suffix}": False, f"ece_adaptive{suffix}": True}
        return {
            key: float(np.mean([calibration_error_if_calibrated(seed, adaptive=kind) for seed in self.confidence]))
            for key, kind in kinds.items()
        }


def by_configuration(trials: Iterable[Finished]) -> list[Configuration]:
    """The trials by what they have in common but for the seed, in order of first appearance."""
    found: dict[str, list[Finished]] = {}
    for trial in trials:
        found.setdefault(configuration_id(trial.config), []).append(trial)
    return list(map(Configuration.of, found.values()))


def protocol(config: Config) -> dict[str, str]:
    """What two trials must have in common to be comparable, each fact in words.

    The pixels' stored size is not among them: 64 px and 128 px input of the same photographs are comparable.
    """
    data = config.dataset
    sizes = f"{data.n_train} train / {data.n_val} val / {data.n_test} test"
    return {
        "dataset": data.name,
        "split": f"{sizes}, {data.split_checksum[:8]}",
        "images": "; ".join(data.notes) or "as they are",
        "data options": _pairs(config.data_options),
        "protocol": _pairs({key: value for key, value in config.protocol.json().items() if key != "search"}),
        "search budget": search_budget(config) or "none",
        "harness revision": str(config.harness_revision),
    }


def search_budget(config: Config) -> str | None:
    """How the recipe was found, in words; None where it is as given."""
    tried = config.protocol.search
    return f"best of {tried} configurations on validation" if tried else None


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(values.items())) or "none"


def obstacles(first: Finished, second: Finished) -> list[str]:
    """Why two trials must not be compared, in words; empty where they may."""
    one, other = protocol(first.config), protocol(second.config)
    found = [f"other {key}: {one[key]} against {other[key]}" for key in one if one[key] != other[key]]
    same_size = first.config.recipe.image_size == second.config.recipe.image_size
    prints = [trial.config.dataset.fingerprint for trial in (first, second)]
    if not found and same_size and prints[0] != prints[1]:
        found.append(
            f"other images: the names are the same, the pixels are not ({prints[0][:8]} against {prints[1][:8]})"
        )
    return found
