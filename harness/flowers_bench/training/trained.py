"""A finished trial that predicts: its model, its predictor and its temperature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from platformdirs import user_cache_path
from scipy.special import softmax
from torch import Tensor, nn

from flowers_bench.contract.dataset import Dataset
from flowers_bench.contract.host import Host, discover_for, files_of_trial
from flowers_bench.data.pixels import Normalizer
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.measure.quality import fit_temperature
from flowers_bench.models.backbones import Backbone, check_backbone
from flowers_bench.models.weights.files import read_tensors
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.identity import Trial
from flowers_bench.store.reading import damaged
from flowers_bench.training.build import Parts, Places, build_parts
from flowers_bench.training.epochs import begin_epoch
from flowers_bench.training.evaluation import Fitted
from flowers_bench.util.errors import UsageError


@dataclass(frozen=True)
class Sources:
    """Where the code and the images of a stored trial may come from: what the user named in this command. A run store is
    data: its `run.json` says where the trial ran from, but chooses no code and no place that is written to.

    Attributes:
        plugins: plugin files; only those that the trial was run with are loaded (`discover_for`).
        cache: the folder where downloads and decoded images are stored.
        data: the folder of images; None: as `run.json` says. It is only read, and must hold the same images.
    """

    plugins: Sequence[Path] = ()
    cache: Path = field(default_factory=lambda: user_cache_path("flowers-bench"))
    data: Path | None = None

    @classmethod
    def named(cls, folder: TrialFolder, plugins: Sequence[Path], data: Path | None, cache: Path | None) -> Sources:
        """Make sources from a command's options. Raises `UsageError` for a plugin file that the trial was not run
        with."""
        for path in set(plugins).difference(files_of_trial(folder.config().code, plugins)):
            raise UsageError(f"--plugin {path}: trial {folder.id} was not run with this file.")
        return cls(plugins, cache or user_cache_path("flowers-bench"), data)


@dataclass(frozen=True)
class Trained:
    """Predicts as the trial's test split was predicted.

    Attributes:
        trial: the trial that was trained.
        fitted: its model, in evaluation mode, and predictor.
        normalize: uint8 batches to what the model takes.
        temperature: makes softmax(scores / temperature) calibrated; None where validation gave none.
        class_names: C, index = label.
    """

    trial: Trial
    fitted: Fitted
    normalize: Normalizer
    temperature: float | None
    class_names: Sequence[str]

    @classmethod
    def load(
        cls, folder: TrialFolder, device: torch.device, sources: Sources, dataset: Dataset | None = None
    ) -> Trained:
        """Load a finished trial from its folder. A predictor that is fitted on features is fitted again, on the training
        images of `dataset`, or of the trial's own (`dataset_of`) if None.

        Raises:
            UsageError: the trial is not finished, damaged, or its images are not there or have changed.
        """
        trial = folder.trial()
        host = discover_for(folder.id, trial.code, sources.plugins)
        parts, _ = load_parts(folder, device, host, sources.plugins)
        if dataset is None and parts.evaluator.predictor.needs_features:
            dataset = dataset_of(folder, sources, host)
        fitted = parts.evaluator.fit(parts.model, dataset.train if dataset else None)
        names = folder.result().class_names
        return cls(trial, fitted, parts.normalize, temperature_of(folder), names)

    def scores(self, images: Iterable[Tensor]) -> np.ndarray:
        """Predict scores (N, C) float32 of decoded images, uint8 (3, H, W) each."""
        transform = self.fitted.evaluator.transform
        return self.fitted.batches(self.normalize(transform(image)[None]) for image in images).logits

    def probabilities(self, images: Iterable[Tensor]) -> np.ndarray:
        """Predict calibrated probabilities (N, C) float64 of decoded images, uint8 (3, H, W) each; without a
        temperature they are not calibrated."""
        return np.asarray(softmax(self.scores(images).astype(np.float64) / (self.temperature or 1.0), axis=1))


def load_trained(
    folder: TrialFolder, device: torch.device, plugins: Sequence[Path] = (), store: Path | None = None
) -> Parts:
    """Build the parts of a finished trial again, its model with the trained weights and in evaluation mode. Leaves torch's
    random generator as it was.

    Args:
        plugins: files that the user named; see `discover_for`. Nothing is taken from `run.json`.
        store: where other trials that the model builds on are found; None: beside this one.

    Raises:
        UsageError: the trial is not finished, is damaged, or was run with a plugin file that was not named.
    """
    host = discover_for(folder.id, folder.trial().code, plugins)
    return load_parts(folder, device, host, plugins, store)[0]


def load_parts(
    folder: TrialFolder, device: torch.device, host: Host, plugins: Sequence[Path] = (), store: Path | None = None
) -> tuple[Parts, Backbone]:
    """Build what `load_trained` builds, of the parts that `discover_for` found; and give the backbone that the model was
    built from."""
    trial = folder.trial()
    if not folder.finished():
        raise UsageError(f"trial {folder.id} is not finished.")
    check_backbone(trial.backbone)  # timm would also take a name that makes it ask the Hugging Face Hub
    places = Places(None, store or folder.path.parent, plugins)
    with torch.random.fork_rng():
        result = folder.result()
        parts, backbone = build_parts(host, trial, places, result.class_names, device, result.descriptions or ())
    path = folder.weights()
    try:
        tensors = read_tensors(path)
        _refuse_other_values(tensors, parts.model)
        parts.model.load_state_dict(tensors)
    except (RuntimeError, UsageError) as error:
        raise damaged(path, f"does not fit its trial: {str(error)[:200]}") from error
    if folder.result().best_epoch:
        begin_epoch([parts.model], folder.result().best_epoch, trial.recipe.epochs, trial.seed)
    parts.model.eval().requires_grad_(False)
    return parts, backbone


def _refuse_other_values(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Refuse weights of other types than the model's, which torch would convert, or that are not finite: no trial
    stores such weights. Raises `UsageError`."""
    for name, own in model.state_dict().items():
        found = tensors.get(name, own)
        if found.dtype != own.dtype:
            raise UsageError(f"{name} is of {found.dtype}, not {own.dtype}")
        if not found.isfinite().all():
            raise UsageError(f"{name} is not finite")


def dataset_of(folder: TrialFolder, sources: Sources, host: Host | None = None) -> Dataset:
    """Load the trial's dataset, from a source of `host` where plugins were discovered before. Raises `UsageError` if it is
    not the same, or its code was not named."""
    trial, run = folder.trial(), folder.run()
    host = host or discover_for(folder.id, trial.code, sources.plugins)
    data, source = sources.data or run.data_path, run.data_source
    if source in ("folder", "manifest") and data is None:
        raise UsageError(
            f"where the images of trial {folder.id} lie is not known here: name their folder or table with --data PATH."
        )
    if source is None:
        raise UsageError(f"{folder.run_path} does not say which dataset trial {folder.id} was run on.")
    return load_dataset(host, trial, DataPlace(source, Path(data) if data else None, sources.cache))


def temperature_of(folder: TrialFolder) -> float | None:
    """Fit the temperature on the trial's validation predictions by `fit_temperature`; None where it finds none."""
    table = folder.predictions()
    rows = table[table["split"] == "val"]
    return fit_temperature(np.stack(list(rows["logits"])), rows["label"].to_numpy())
