"""What a user asks for, and what a plan is made of: a request, and the trials that come of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from flowers_bench.contract.dataset import Dataset
from flowers_bench.models.weights import Weights
from flowers_bench.store.folder import config_of, under_name
from flowers_bench.store.identity import Label, Trial
from flowers_bench.store.records import Config, Run


@dataclass(frozen=True)
class Request:
    """What the user asks for; None means the technique's or dataset's default.

    Attributes:
        techniques: `NAME` or `NAME/VARIANT`; a bare name brings the technique's baseline along, in a list too.
        data: dataset name or path.
        seeds: how many seeds; they count from 0.
        settings: the values of `--set`: recipe fields, options of parts, and `data.KEY` for the dataset.
        store: where the trials will be kept, for techniques that build on finished ones.
        shots: training images of each class; None for all of them.
        search: how many configurations `search.search` is to try for each technique; `plan` plans the recipes as they are.
        jobs: how many trials will run at once; the processor's threads are divided among them.
        threads: threads of each trial. If None, `OMP_NUM_THREADS` is used where it is set, else that share.
        devices: how many devices each trial is divided among. The number is not in the trial's id, because its batches
            stay the same.
        device: what trials compute on, one of `DEVICES`; None for CUDA where there is it, else the processor.
        recipe: fields that replace those of the technique and the variant. The dataset's recipe and `settings` replace
            these in turn.
        label: what a suite calls these trials; None for `technique/variant`.
        floor: whether a bare technique brings the dataset's floor along too, where nothing is said that the floor cannot follow.
    """

    techniques: Sequence[str]
    data: str
    cache_dir: Path
    seeds: int
    backbone: str | None = None
    weights: str | None = None
    loss: str | None = None
    augmentation: str | None = None
    predictor: str | None = None
    step: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    store: Path | None = None
    shots: int | None = None
    search: int = 0
    jobs: int = 1
    threads: int | None = None
    devices: int = 1
    device: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    label: Label | None = None
    floor: bool = False

    @property
    def title(self) -> str:
        """The names of the request's trials, in one text."""
        return self.label.text if self.label else " ".join(self.techniques)


@dataclass(frozen=True)
class TrialPlan:
    """A trial, what it is called, and where it finds what it needs on this machine.

    Attributes:
        labels: the trial's names, at least one. There are several if several requested variants mean this one training.
        run: the content of `run.json`, as far as it is known before the trial runs.
        trains: whether any optimiser step is taken. If not, only the image size of the recipe matters.
        parameters: how many the model has.
        notes: how the weight file was understood, and which settings leave it alone; printed before the trial runs.
        draws: whether its training images are drawn by parameters.
    """

    trial: Trial
    labels: tuple[Label, ...]
    run: Run
    trains: bool = True
    parameters: int = 0
    notes: tuple[str, ...] = ()
    draws: bool = False

    @property
    def label(self) -> str:
        """The trial's names, `technique/variant`, with `=` between them."""
        return " = ".join(label.text for label in self.labels)

    def described(self) -> Config:
        """Give the trial's `config.json` with the technique and variant of its first name, as `TrialFolder.described` does."""
        return under_name(config_of(self.trial), self.labels[0])


@dataclass
class Loaded:
    """What was read for a plan, which several calls share.

    Attributes:
        datasets: by their source, folder, input size and options.
        weights: of finished trials, exported, by the trial's id.
    """

    datasets: dict[tuple[object, ...], Dataset] = field(default_factory=dict)
    weights: dict[str, list[Weights]] = field(default_factory=dict)


def in_order(planned: Iterable[TrialPlan]) -> list[TrialPlan]:
    """Keep each trial once, with all its names, and sort by seed, so that who stops early has complete comparisons."""
    unique: dict[str, TrialPlan] = {}
    for item in planned:
        before = unique[item.trial.id].labels if item.trial.id in unique else ()
        unique[item.trial.id] = replace(item, labels=tuple(dict.fromkeys((*before, *item.labels))))
    return sorted(unique.values(), key=lambda item: item.trial.seed)
