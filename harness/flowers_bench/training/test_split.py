"""Measures a trained model: validation once more, the test split once, and what a prediction costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from flowers_bench.contract.dataset import Dataset, Split
from flowers_bench.data.samplers import held_out_classes
from flowers_bench.measure.cost import Flops, flops
from flowers_bench.measure.episodic import episodic_accuracy
from flowers_bench.measure.inference import inference_cost
from flowers_bench.measure.quality import fit_temperature, mixed_quality, quality, quality_by_class
from flowers_bench.measure.retrieval import Retrieval
from flowers_bench.store.identity import Trial, derive_seed
from flowers_bench.store.records import (
    Episodes,
    Episodic,
    Inference,
    Mixed,
    Quality,
    QualityByClass,
    RetrievalMetrics,
)
from flowers_bench.training.build import Parts
from flowers_bench.training.evaluation import EVALUATION_BATCH, Fitted
from flowers_bench.util.errors import TrialFailed

#: How many test images at most are mixed to see which classes are found in them.
MIXED_SAMPLE = 1000


@dataclass(frozen=True)
class Measured:
    """What the trained model predicts, for `predictions.parquet`, and the metrics of the same names in `result.json`."""

    predictions: pd.DataFrame
    val: Quality
    test: QualityByClass
    retrieval: RetrievalMetrics | None
    temperature: float | None
    episodic: Episodic | None
    mixed: Mixed | None


def measure_splits(trial: Trial, parts: Parts, predict: Fitted, dataset: Dataset) -> Measured:
    """Predict validation once more with the chosen weights, then the test split, once.

    Raises:
        TrialFailed: a score or an embedding is not finite.
    """
    val, test = (_scored(predict, name, split) for name, split in (("val", dataset.val), ("test", dataset.test)))
    temperature = fit_temperature(val.logits, val.labels)
    # Further metrics of the test split are no accuracies over all classes, and stand under names of their own.
    retrieved = Retrieval.of(test.embeddings, test.labels)
    tables = [
        _prediction_table(*one) for one in (("val", dataset.val, val.logits), ("test", dataset.test, test.logits))
    ]
    if retrieved:
        tables[-1] = tables[-1].assign(**retrieved.images)
    return Measured(
        predictions=pd.concat(tables, ignore_index=True),
        val=quality(val.logits, val.labels, probabilities=parts.probabilities),
        test=quality_by_class(
            test.logits,
            test.labels,
            temperature,
            probabilities=parts.probabilities,
            name_levels=dataset.name_levels,
        ),
        retrieval=retrieved.metrics() if retrieved else None,
        temperature=temperature,
        episodic=_episodic(trial, test.embeddings, dataset) if trial.sampler == "episodes" else None,
        mixed=_mixed(trial, parts, predict, dataset.test) if parts.batch_transform is not None else None,
    )


def measure_validation(parts: Parts, predict: Fitted, val: Split) -> Quality:
    """Measure how good a trial of a search is, on validation: of the test split it must know nothing.

    Raises:
        TrialFailed: a score is not finite.
    """
    logits = predict(val.images).logits
    if not np.isfinite(logits).all():
        raise TrialFailed("the trained model gives non-finite scores on the val split.")
    return quality(logits, np.asarray(val.labels), probabilities=parts.probabilities)


@dataclass(frozen=True)
class _Scored:
    """Scores (N, C), embeddings (N, D) and labels (N,) of a split's N images."""

    logits: np.ndarray
    embeddings: np.ndarray
    labels: np.ndarray


def _scored(predict: Fitted, name: str, split: Split) -> _Scored:
    found = predict(split.images)
    if not (np.isfinite(found.logits).all() and np.isfinite(found.embeddings).all()):
        raise TrialFailed(f"the trained model gives non-finite scores on the {name} split.")
    return _Scored(found.logits, found.embeddings, np.asarray(split.labels))


def _episodic(trial: Trial, embeddings: np.ndarray, dataset: Dataset) -> Episodic:
    """Measure few-shot accuracy of the test images, and of those of classes held out of training where there are
    enough."""
    labels, options = np.asarray(dataset.test.labels), trial.options
    n_way, k_shot = options.integer("eval_way", 5), options.integer("eval_shot", 5)
    unseen = held_out_classes(np.unique(np.asarray(dataset.train.labels)), options.number("held_out", 0.0))
    found: dict[str, Episodes] = {}
    for name, classes in (("test", np.unique(labels)), ("held_out_classes", unseen)):
        rows = np.isin(labels, classes)
        if len(classes) >= n_way:
            rng = np.random.default_rng(derive_seed(trial.seed, "episodes", name))
            metric = options.text("distance", "euclidean")
            found[name] = episodic_accuracy(embeddings[rows], labels[rows], n_way, k_shot, metric, rng)
    return Episodic(test=found.get("test"), held_out_classes=found.get("held_out_classes"))


def _mixed(trial: Trial, parts: Parts, predict: Fitted, test: Split) -> Mixed:
    """Measure how many of the mixed classes are found in test images that are mixed as the training images were."""
    assert parts.batch_transform is not None
    order = np.random.default_rng(derive_seed(trial.seed, "mixed")).permutation(len(test))[:MIXED_SAMPLE]
    transform, labels = parts.evaluator.transform, np.asarray(test.labels)
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
        return Mixed()
    return mixed_quality(logits, torch.cat(targets).numpy())


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


def prediction_cost(parts: Parts, predict: Fitted, dataset: Dataset) -> tuple[Flops, Inference]:
    """Count and time the prediction of one image, from its tensor to its scores: of several views, all of them."""
    image = parts.normalize(parts.evaluator.transform(dataset.test.images[0])[None])
    return flops(predict.scores, image), inference_cost(predict.scores, image)
