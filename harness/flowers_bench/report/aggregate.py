"""Aggregate finished trials to rows, one for each configuration over its seeds; and say which trials may be compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from scipy.special import log_softmax

from flowers_bench.measure.quality import (
    calibration_error_if_calibrated,
    calibration_shares,
    chance_right,
    correct_at_level,
    correct_in_top_k,
    f1_shares,
    squared_distances,
)
from flowers_bench.measure.statistics import Interval, accuracy_interval, far_off, image_mean
from flowers_bench.models.weights import shipped
from flowers_bench.report.names import chosen, configuration_id, kinds, seedless_id
from flowers_bench.store.folder import STRESS_REVISION, Scores, TrialFolder, under_name
from flowers_bench.store.identity import Label
from flowers_bench.store.records import AtLevel, Config, Result, Run

#: The labels of trials, by the trial's id.
LabelsById = Mapping[str, Sequence[Label]]


@dataclass(frozen=True)
class Records:
    """What the small files of a finished trial say.

    Attributes:
        labels: the trial's names, in alphabetical order.
        config: `config.json` as it is, under no name since schema 2.
        result: without results under stress of another revision of the changes: they are not comparable with those of this
            revision, and `--stress` measures them again.
        spent: seconds of all attempts to run it.
    """

    labels: tuple[Label, ...]
    config: Config
    result: Result
    run: Run
    spent: float

    @classmethod
    def read(cls, folder: TrialFolder) -> Records:
        """Read them. Raises `Unreadable`."""
        result = folder.result()
        if result.has("stress_revision") and result.stress_revision != STRESS_REVISION:
            result = replace(result, stress_revision=None, stress=None, robustness=None)
        spent = sum(attempt.seconds for attempt in folder.attempts())
        return cls(folder.labels(), folder.config(), result, folder.run(), spent)


@dataclass(frozen=True)
class Finished:
    """A finished trial under one of its names, with its files read.

    Attributes:
        labels: all names that it has.
        config: the configuration with technique and variant, as `TrialFolder.described` gives it.
        configuration: `configuration_id` of that.
        spent: seconds of all attempts to run it.
        state: of its files before they were read, as `index.state_of` gives it; None where that is not known.
    """

    folder: TrialFolder
    label: Label
    labels: tuple[Label, ...]
    config: Config
    result: Result
    run: Run
    configuration: str
    spent: float
    state: str | None = None

    @classmethod
    def load(cls, folder: TrialFolder, label: Label | None = None) -> Finished:
        """Read everything but the predictions, under `label` or the first name that the trial has. Raises `Unreadable`."""
        return cls.of(folder, Records.read(folder), label)

    @classmethod
    def of(
        cls,
        folder: TrialFolder,
        records: Records,
        label: Label | None = None,
        configuration: str | None = None,
        state: str | None = None,
    ) -> Finished:
        """Put together what was read of a trial, under `label` or the first name that it has."""
        label = label or records.labels[0]
        config = under_name(records.config, label)
        configuration = configuration or configuration_id(config)
        return cls(
            folder, label, records.labels, config, records.result, records.run, configuration, records.spent, state
        )

    @property
    def trained(self) -> bool:
        """Whether at least one epoch was trained."""
        return self.result.cost.epochs > 0

    @cached_property
    def seedless_id(self) -> str:
        """The id of what determines its outcome except the seed, as `names.seedless_id` computes it."""
        return seedless_id(self.config)

    @cached_property
    def kinds(self) -> list[dict[str, str]]:
        """All facts that may distinguish its configuration from others, as `names.kinds` gives them."""
        return kinds(self.config, self.configuration)


@dataclass(frozen=True)
class Configuration:
    """Finished trials that differ in nothing but the seed.

    Attributes:
        id: the same for any set of seeds; of a trial that is looked at `alone`, the trial's id.
        trials: the trials, sorted by seed.
    """

    id: str
    trials: tuple[Finished, ...]

    @classmethod
    def of(cls, trials: Iterable[Finished]) -> Configuration:
        """Make the configuration of trials that have everything but the seed in common."""
        ordered = tuple(sorted(trials, key=lambda trial: trial.config.seed))
        return cls(ordered[0].configuration, ordered)

    @classmethod
    def alone(cls, trial: Finished) -> Configuration:
        """Make a configuration of one trial, even if there are other seeds."""
        return cls(trial.folder.id, (trial,))

    @property
    def config(self) -> Config:
        """The first seed's configuration; that of the others differs in the seed alone."""
        return self.trials[0].config

    @property
    def label(self) -> str:
        """`technique/variant`, as the user writes it."""
        return self.trials[0].label.text


@dataclass(frozen=True)
class FarSeed:
    """One seed of a row whose accuracy lies far off from those of all its other seeds, `low` to `high`."""

    row: str
    seed: int
    top1: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One configuration over its S seeds, with its predictions for the N test images.

    Attributes:
        id: the id of the configuration; programs look a row up by it.
        name: `technique/variant`, with the facts that distinguish it from the other rows of its table; for people.
        trials: one trial for each seed, in the order of `seeds`.
        keys: the keys of the test images.
        labels: int (N): their classes.
        predicted: int (S, N): the class with the largest score.
        confidence: float (S, N): the softmax of that score.
        calibrated: float (S, N): the same softmax after temperature scaling; None if a seed has no temperature.
        correct: bool (S, N): whether the predicted class is right.
        top1: test accuracy with its interval.
        metrics: other metrics of the test images with their intervals, by their keys in `measures`; and `mean_per_class`.
        if_calibrated: by the key of a calibration error, the value to expect if all confidences were true, mean over seeds.
        key: what an index of the store knows the trials' files by, as they were read; None where it cannot know them.
        means: what `mean` has computed so far.
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
    metrics: Mapping[str, Interval]
    if_calibrated: Mapping[str, float]
    key: str | None = field(default=None, compare=False)
    means: dict[tuple[str, ...], float | None] = field(default_factory=dict, compare=False, repr=False)

    @property
    def config(self) -> Config:
        """The first seed's configuration; that of the others differs in the seed alone."""
        return self.trials[0].config

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the trials, in ascending order."""
        return tuple(trial.config.seed for trial in self.trials)

    @cached_property
    def factors(self) -> dict[str, str]:
        """Everything that was chosen for the configuration, as `names.factors` gives it."""
        return chosen(self.trials[0].kinds)

    @cached_property
    def ids(self) -> frozenset[str]:
        """The ids of the trials. Rows with different names may share ids, because a trial may have several names."""
        return frozenset(trial.folder.id for trial in self.trials)

    @property
    def baseline(self) -> str | None:
        """The `technique/variant` that this row is compared with, or None."""
        return self.trials[0].label.baseline

    @property
    def far_seed(self) -> FarSeed | None:
        """The seed that lies far off from all others; None if none does."""
        shares = self.correct.mean(1)
        place = far_off(shares)
        if place is None:
            return None
        others = np.delete(shares, place)
        return FarSeed(self.name, self.seeds[place], float(shares[place]), float(others.min()), float(others.max()))

    def mean(self, *path: str) -> float | None:
        """Compute the mean over seeds of a number in `result.json`; None if it was not measured."""
        if path not in self.means:  # a table, its plots and its other formats ask for the same
            numbers = [value for value in (at(trial.result, path) for trial in self.trials) if value is not None]
            self.means[path] = float(np.mean(numbers)) if numbers else None
        return self.means[path]


def at(value: object, path: Sequence[str]) -> float | None:
    """Look up a number in nested records; None if there is none."""
    found = within(value, path)
    return found if isinstance(found, (int, float)) else None


def within(value: object, path: Sequence[str]) -> object:
    """Look up a value in nested records; None if there is none."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else getattr(value, key, None)
    return value


def build_row(name: str, configuration: Configuration) -> Row:
    """Read the predictions of the configuration's trials, and make its row under this name."""
    trials = configuration.trials
    scores = [trial.folder.scores() for trial in trials]
    correct = np.stack([correct_in_top_k(s.logits, s.labels) for s in scores])
    raw = _Judged.of(scores, [1.0] * len(scores))
    temperatures = [float(found) for trial in trials if (found := trial.result.temperature)]
    calibrated = _Judged.of(scores, temperatures) if len(temperatures) == len(trials) else None
    labels = scores[0].labels
    # All classes have the same total weight, so that the weighted mean over images is the mean over classes.
    counts = np.bincount(labels)
    weights = len(labels) / np.count_nonzero(counts) / counts[labels]
    predicted = np.stack([s.logits.argmax(1) for s in scores])
    f1 = np.stack([f1_shares(found, labels, s.logits.shape[1]) for s, found in zip(scores, predicted, strict=True)])
    metrics = {
        "mean_per_class": image_mean(correct * weights, 1.0),
        "top5": accuracy_interval(np.stack([correct_in_top_k(s.logits, s.labels, 5) for s in scores])),
        "macro_f1": image_mean(f1, 1.0),
    }
    for level, one in name_levels(trials).items():
        of_class = np.asarray(one.of_class)
        right = [correct_at_level(s.logits, s.labels, of_class) for s in scores]
        metrics[level_key(level)] = accuracy_interval(np.stack(right))
    if_calibrated: dict[str, float] = {}
    if all(trial.result.test.nll is not None for trial in trials):  # without an NLL, the scores are not probabilities
        metrics |= raw.metrics("")
        if_calibrated |= raw.if_calibrated("")
    if calibrated is not None:
        metrics |= calibrated.metrics("_calibrated")
        if_calibrated |= calibrated.if_calibrated("_calibrated")
    retrieved = [trial.folder.retrieval_shares() for trial in trials]
    if all(retrieved):
        queries = int((counts[labels] > 1).sum())
        metrics |= {
            key: image_mean(np.stack([found[key] for found in retrieved]), 1.0, queries) for key in retrieved[0]
        }
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
        metrics=metrics,
        if_calibrated=if_calibrated,
    )


def name_levels(trials: Sequence[Finished]) -> dict[str, AtLevel]:
    """Give the levels of coarser names at which all trials have an accuracy, with the first one's, by the level's name."""
    found = [trial.result.test.name_levels or {} for trial in trials]
    return {name: level for name, level in found[0].items() if all(name in other for other in found)}


def level_key(level: str) -> str:
    """Give the key, in `Row.metrics` and exports, of the accuracy at a level of coarser names."""
    return f"top1_{level}"


@dataclass(frozen=True)
class _Judged:
    """Scores judged as probabilities, for S seeds and N images.

    Attributes:
        confidence: float (S, N): the largest probability.
        right: float (S, N): the chance that the class with that probability is right; ties are shared.
        nll: float (S, N): negative log probability of the true class, in nats.
        distance: float (S, N): squared distance of the probabilities from the truth, as in the Brier score.
    """

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

    def metrics(self, suffix: str) -> dict[str, Interval]:
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
    """Group the trials to configurations, which ignore the seed; in order of first appearance."""
    found: dict[str, list[Finished]] = {}
    for trial in trials:
        found.setdefault(trial.configuration, []).append(trial)
    return list(map(Configuration.of, found.values()))


def protocol(config: Config) -> dict[str, str]:
    """Describe in words, by key, everything that two trials must have in common to be comparable.

    The stored size of the images is not included: 64 px and 128 px input of the same photographs are comparable.
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
    """Describe how the recipe was searched; None if it was not."""
    tried = config.protocol.search
    return f"best of {tried} configurations on validation" if tried else None


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sorted(values.items())) or "none"


def obstacles(first: Finished, second: Finished) -> list[str]:
    """List the reasons why two trials must not be compared; empty if they may be."""
    return config_obstacles(first.config, second.config)


def config_obstacles(first: Config, second: Config) -> list[str]:
    """List the reasons why trials of these configurations must not be compared; empty if they may be."""
    one, other = protocol(first), protocol(second)
    found = [f"other {key}: {one[key]} against {other[key]}" for key in one if one[key] != other[key]]
    same_size = first.recipe.image_size == second.recipe.image_size
    prints = [config.dataset.fingerprint for config in (first, second)]
    if not found and same_size and prints[0] != prints[1]:
        found.append(
            f"other images: the names are the same, the pixels are not ({prints[0][:8]} against {prints[1][:8]})"
        )
    return found


def start(config: Config) -> tuple[str, dict[str, object]]:
    """Give what a row and its baseline must have in common: what the training starts from.

    The weights that come with the package are one pretraining, of each network that a technique makes of a backbone.
    """
    weights = config.weights
    shared = weights.name.partition("/")[0] == shipped.NAME
    return config.backbone, {"name": shipped.NAME} if shared else weights.json()


def are_twins(first: tuple[Config, Sequence[Label]], second: tuple[Config, Sequence[Label]]) -> bool:
    """Say whether one technique is the other's baseline, under any of the names given, on the same backbone and weights.

    Only then do equal seeds mean equal chance: of a variant and its baseline same-seed accuracies were measured to vary
    together; of other techniques a common seed is a common number and no more.
    """
    (one, its_labels), (other, other_labels) = first, second
    names, other_names = ({label.text for label in labels} for labels in (its_labels, other_labels))
    bases, other_bases = ({label.baseline for label in labels} for labels in (its_labels, other_labels))
    return start(one) == start(other) and bool(bases & other_names or other_bases & names)
