"""A finished trial as something that predicts: its model, its predictor and its temperature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax
from torch import Tensor

from flowers_bench.data.dataset import Dataset
from flowers_bench.data.pixels import Normalizer, evaluation_transform
from flowers_bench.host import discover
from flowers_bench.measure.quality import fit_temperature
from flowers_bench.store import TrialFolder
from flowers_bench.training.prediction import Fitted
from flowers_bench.training.trial import load_dataset, load_trained
from flowers_bench.trial import Trial, trial_from_config


@dataclass(frozen=True)
class Trained:
    """Predicts as the trial's test split was predicted.

    Attributes:
        trial: what it was.
        fitted: its model, in evaluation mode, and predictor.
        normalize: uint8 batches to what the model takes.
        temperature: that softmax(scores / temperature) is calibrated by, or None where validation gave none.
        class_names: C, index = label.
    """

    trial: Trial
    fitted: Fitted
    normalize: Normalizer
    temperature: float | None
    class_names: Sequence[str]

    @classmethod
    def load(cls, folder: TrialFolder, device: torch.device, dataset: Dataset | None = None) -> Trained:
        """From a finished trial's folder. A predictor that is no classifier is fitted again, on the training images
        of `dataset` or of the place that `run.json` names.

        Raises:
            UsageError: the trial is not finished, damaged, or its images are not there or have changed.
        """
        parts = load_trained(folder, device)
        trial = trial_from_config(folder.config())
        if dataset is None and trial.predictor != "classifier":
            dataset = dataset_of(folder)
        fitted = parts.evaluator.fit(parts.model, dataset.train if dataset else None)
        names = folder.result()["class_names"]
        return cls(trial, fitted, parts.normalize, temperature_of(folder), names)

    def scores(self, images: Iterable[Tensor]) -> np.ndarray:
        """Scores (N, C) float32 of decoded images, uint8 (3, H, W) each."""
        transform = evaluation_transform(self.trial.recipe.image_size)
        return self.fitted.batches(self.normalize(transform(image)[None]) for image in images).logits

    def probabilities(self, images: Iterable[Tensor]) -> np.ndarray:
        """Calibrated probabilities (N, C) of decoded images; uncalibrated ones without a temperature."""
        return np.asarray(softmax(self.scores(images).astype(np.float64) / (self.temperature or 1.0), axis=1))


def dataset_of(folder: TrialFolder) -> Dataset:
    """The trial's dataset, from the place that its `run.json` names. Raises `UsageError` if it is not the same."""
    run = folder.run()
    host = discover([Path(path) for path in run["plugin_files"]])
    return load_dataset(host, trial_from_config(folder.config()), run)


def temperature_of(folder: TrialFolder) -> float | None:
    """What `fit_temperature` finds on the trial's validation predictions."""
    table = folder.predictions()
    rows = table[table["split"] == "val"]
    return fit_temperature(np.stack(list(rows["logits"])), rows["label"].to_numpy())
