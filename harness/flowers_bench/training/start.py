"""Where a trial starts to compute: at its images, or behind the frozen first layers of its model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

from flowers_bench.contract.dataset import Dataset, Split
from flowers_bench.data.pixels import Augmented, evaluation_transform
from flowers_bench.store.identity import Trial
from flowers_bench.training.build import Parts
from flowers_bench.training.epochs import has_begin_epoch
from flowers_bench.training.events import Emit, Storing
from flowers_bench.training.frozen_prefix import CachedActivations, Cut, Prefix, PrefixUse, find_cut

#: Why nothing is stored of a model that has `begin_epoch`.
CHANGES = "what is frozen may change with the epoch"
#: Why nothing is stored of a model whose predictor shows it several views of an image.
VIEWS = "the predictor shows the model several views of an image"


def start_from_prefix(
    trial: Trial, parts: Parts, dataset: Dataset, cache_dir: Path, emit: Emit
) -> tuple[Dataset, PrefixUse]:
    """Let training and evaluation start behind the model's frozen first layers, where it has some.

    Returns:
        the dataset, whose images have activations that are stored under `cache_dir`; and what is used of them, for the
        result, which is completed while the trial runs.
    """
    size = trial.recipe.image_size
    cut = _cut(parts, size)
    if isinstance(cut, str):
        return dataset, PrefixUse(None, cut)
    prefix = Prefix.of(
        cut,
        parts.model,
        parts.normalize,
        cache_dir / "activations",
        {"backbone": trial.backbone, "dataset": trial.dataset["fingerprint"], "image_size": size},
        lambda text: emit(Storing(text)),
    )
    evaluated = evaluation_transform(size)

    def named(name: str, split: Split) -> dict[str, object]:
        return {"split": name, "keys": hashlib.sha256(json.dumps(list(split.keys)).encode()).hexdigest()}

    def stored(name: str, split: Split) -> Split:
        inputs = Augmented(split.images, evaluated)
        return replace(
            split,
            images=CachedActivations(prefix, split.images, inputs, {**named(name, split), "inputs": "evaluation"}),
        )

    given = dataset.train.images
    train, val, test = (stored(name, getattr(dataset, name)) for name in ("train", "val", "test"))
    dataset = replace(dataset, train=train, val=val, test=test)
    fixed = parts.views is not None and not any(map(has_begin_epoch, (parts.image_transform, parts.parameters)))
    prefix.use.training = fixed and parts.batch_transform is None and not parts.draws_images
    if prefix.use.training:
        exact = trial.recipe.precision == "float32"
        if parts.views == 1 and parts.image_transform == evaluated and exact:
            parts.stored = train.images  # type: ignore[assignment]
        else:
            inputs = parts.augmented(given, size)
            identity = {**named("train", dataset.train), "inputs": dict(parts.drawing)}
            parts.stored = CachedActivations(prefix, given, inputs, identity, trial.recipe.precision)
    return dataset, prefix.use


def _cut(parts: Parts, size: int) -> Cut | str:
    if has_begin_epoch(parts.model):
        return CHANGES
    return VIEWS if parts.evaluator.views else find_cut(parts.model, parts.normalize.blank(size))
