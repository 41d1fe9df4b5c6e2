"""What a trained model is worth: validation once more, the test split once, and what a prediction costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from flowers_bench.contract.dataset import Dataset, Split
from flowers_bench.data.pixels import evaluation_transform
from flowers_bench.data.samplers import held_out_classes
from flowers_bench.measure.cost import flops
from flowers_bench.measure.episodic import episodic_accuracy
from flowers_bench.measure.inference import inference_cost
from flowers_bench.measure.quality import (
    fit_temperature,
    mixed_quality,
    probability_quality,
    quality,
    quality_by_class,
)
from flowers_bench.measure.retrieval import Retrieval
from flowers_bench.store.identity import Trial, derive_seed
from flowers_bench.training.build import Parts
from flowers_bench.training.evaluation import EVALUATION_BATCH, Fitted
from flowers_bench.util.errors import TrialFailed

#: So many test images at most are mixed to see which classes are found in them.
MIXED_SAMPLE = 1000


@dataclass(frozen=True)
class Measured:
    """What the trained model makes of the images.

    Attributes:
        figures: for `result.json`.
        predictions: for `predictions.parquet`.
    """

    figures: dict[str, Any]
    predictions: pd.DataFrame


def measure_splits(trial: Trial, parts: Parts, predict: Fitted, dataset: Dataset) -> Measured:
    """Predict validation once more with the chosen weights, then the test split, once.

    Raises:
        TrialFailed: a score or an embedding is not finite.
    """
    tables: list[pd.DataFrame] = []
    figures: dict[str, Any] = {}
    scores: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, split in (("val", dataset.val), ("test", dataset.test)):
        found = predict(split.images)
        if not (np.isfinite(found.logits).all() and np.isfinite(found.embeddings).all()):
            raise TrialFailed(f"the trained model gives non-finite scores on the {name} split.")
        scores[name] = found.logits, np.asarray(split.labels)
        figures[name] = {"n": len(split), **quality(*scores[name], probabilities=parts.probabilities)}
        tables.append(_prediction_table(name, split, found.logits))
    # What follows the test split's scores is no test accuracy over all classes, and stands under names of its own.
    if retrieved := Retrieval.of(found.embeddings, np.asarray(dataset.test.labels)):
        figures["retrieval"] = retrieved.metrics()
        tables[-1] = tables[-1].assign(**retrieved.images)
    figures["test"].update(quality_by_class(*scores["test"]))
    figures["temperature"] = temperature = fit_temperature(*scores["val"])
    if temperature is not None:
        figures["test"]["calibrated"] = probability_quality(*scores["test"], temperature)
    table = pd.concat(tables, ignore_index=True)
    if trial.sampler == "episodes":
        figures["episodic"] = _episodic(trial, found.embeddings, dataset)
    if parts.batch_transform is not None:
        figures["mixed"] = _mixed(trial, parts, predict, dataset.test)
    return Measured(figures, table)


def measure_validation(parts: Parts, predict: Fitted, val: Split) -> dict[str, Any]:
    """Measure how good a trial of a search is, on validation: of the test split it must know nothing.

    Raises:
        TrialFailed: a score is not finite.
    """
    logits = predict(val.images).logits
    if not np.isfinite(logits).all():
        raise TrialFailed("the trained model gives non-finite scores on the val split.")
    return {"n": len(val), **quality(logits, np.asarray(val.labels), probabilities=parts.probabilities)}


def _episodic(trial: Trial, embeddings: np.ndarray, dataset: Dataset) -> dict[str, Any]:
    """Few-shot accuracy of the test images, and of those of classes held out of training where there are enough."""
    labels, options = np.asarray(dataset.test.labels), trial.options
    n_way, k_shot = options.integer("eval_way", 5), options.integer("eval_shot", 5)
    unseen = held_out_classes(np.unique(np.asarray(dataset.train.labels)), options.number("held_out", 0.0))
    found = {}
    for name, classes in (("test", np.unique(labels)), ("held_out_classes", unseen)):
        rows = np.isin(labels, classes)
        if len(classes) >= n_way:
            rng = np.random.default_rng(derive_seed(trial.seed, "episodes", name))
            metric = options.text("distance", "euclidean")
            found[name] = episodic_accuracy(embeddings[rows], labels[rows], n_way, k_shot, metric, rng)
    return found


def _mixed(trial: Trial, parts: Parts, predict: Fitted, test: Split) -> dict[str, Any]:
    """How many of the mixed classes are found in test images that are mixed as the training images were."""
    assert parts.batch_transform is not None
    order = np.random.default_rng(derive_seed(trial.seed, "mixed")).permutation(len(test))[:MIXED_SAMPLE]
    transform, labels = evaluation_transform(trial.recipe.image_size), np.asarray(test.labels)
    targets: list[torch.Tensor] = []

    def batches() -> Iterator[torch.Tensor]:
        for rows in np.array_split(order, -(-len(order) // EVALUATION_BATCH)):
            images = parts.normalize(torch.stack([transform(test.images[i]) for i in rows]))
            mixed, target = parts.batch_transform(images, torch.from_numpy(labels[rows]).to(images.device))  # type: ignore[misc]
            targets.append(target.cpu())
            yield mixed

    torch.manual_seed(derive_seed(trial.seed, "mixed"))
    logits = predict.batches(batches()).logits
    if targets[0].ndim == 1:  # whole labels: every image is still of one class
        return {}
    return {"n": len(order), **mixed_quality(logits, torch.cat(targets).numpy())}


def _prediction_table(name: str, split: Split, logits: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "split": name,
            "key": list(split.keys),
            "label": np.asarray(split.labels, dtype=np.int32),
            "prediction": logits.argmax(1).astype(np.int32),
            "logits": list(logits.astype(np.float32)),
        }
    )


def prediction_cost(trial: Trial, parts: Parts, predict: Fitted, dataset: Dataset) -> dict[str, Any]:
    """Count and time the prediction of one image, from the tensor that the model takes to its scores."""
    image = parts.normalize(evaluation_transform(trial.recipe.image_size)(dataset.test.images[0])[None])
    return {**flops(predict.scores, image), "inference": inference_cost(predict.scores, image)}
