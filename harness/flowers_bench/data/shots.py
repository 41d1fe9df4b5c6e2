"""Fewer training images: so many of each class, to ask how accuracy grows with their number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from flowers_bench.contract.dataset import Dataset, Images, Split
from flowers_bench.data.cache import Selection
from flowers_bench.store.identity import derive_seed
from flowers_bench.util.errors import UsageError


def few_shot(dataset: Dataset, shots: int | None, seed: int) -> Dataset:
    """Reduce the dataset to `shots` training images of each class; None leaves it as it is. Validation and test stay
    whole.

    Of one seed the subsets are nested (the images of 2 shots are among those of 5), and the same for every technique;
    another seed draws others. The training images that are left out become unlabelled ones. Raises `UsageError` for a class that
    has fewer images.
    """
    if shots is None:
        return dataset
    labels = np.asarray(dataset.train.labels)
    counts = np.bincount(labels, minlength=dataset.num_classes)
    smallest = int(counts.argmin())
    if counts[smallest] < shots:
        raise UsageError(
            f"{shots} shots: class {dataset.class_names[smallest]!r} of {dataset.name} has {counts[smallest]} training "
            f"images. Choose at most {counts[smallest]}."
        )
    rows = np.sort(np.concatenate([_chosen(labels, c, shots, seed) for c in range(dataset.num_classes)]))
    train = Split(
        Selection(dataset.train.images, rows),
        labels[rows],
        [dataset.train.keys[row] for row in rows],
        {name: values[rows] for name, values in dataset.train.factors.items()},
        [dataset.train.contents[row] for row in rows] if dataset.train.contents else (),
    )
    left_out = np.setdiff1d(np.arange(len(labels)), rows)
    unlabelled = Joined((Selection(dataset.train.images, left_out), dataset.unlabelled))
    return replace(dataset, train=train, unlabelled=unlabelled)


@dataclass(frozen=True)
class Joined:
    """Images of several sources, one source after the other."""

    sources: Sequence[Images]

    def __len__(self) -> int:
        return sum(map(len, self.sources))

    def __getitem__(self, index: int) -> Tensor:
        for source in self.sources:
            if index < len(source):
                return source[index]
            index -= len(source)
        raise IndexError(index)


def _chosen(labels: np.ndarray, label: int, shots: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(derive_seed(seed, "shots", label))
    return rng.permutation(np.flatnonzero(labels == label))[:shots]
