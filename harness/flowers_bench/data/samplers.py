"""How batches are drawn from the training split: shuffled, P classes x K images, or episodes.

A sampler is a function of (labels, batch size, options, random generator) to the batches of one epoch. The
generator is seeded from (trial seed, "order", epoch), so the order does not depend on what was drawn before, and
techniques compared under one seed see the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from flowers_bench.contract.options import Options
from flowers_bench.util.errors import UsageError

Batches = Iterator[np.ndarray]
Sampler = Callable[[np.ndarray, int, Options, np.random.Generator], Batches]


def shuffled(labels: np.ndarray, batch_size: int, options: Options, rng: np.random.Generator) -> Batches:
    """Draw every image once, in random order. The last batch may be smaller, but is never a single image, on which
    batch norm cannot train."""
    order = rng.permutation(len(labels))
    starts = list(range(0, len(order), batch_size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for position, start in enumerate(starts):
        stop = starts[position + 1] if position + 1 < len(starts) else len(order)
        yield order[start:stop]


def pk(labels: np.ndarray, batch_size: int, options: Options, rng: np.random.Generator) -> Batches:
    """Draw batches of P classes x K images, K = option `images_per_class`, P = batch_size / K, of which triplets are
    mined (Hermans et al. 2017, arXiv:1703.07737). Each class appears about once per pass over the classes."""
    per_class = options.integer("images_per_class", 4)
    classes = np.unique(labels)
    wanted = batch_size // per_class
    if wanted < 2 or wanted > len(classes):
        raise UsageError(
            f"P x K batches of {batch_size} with {per_class} images per class need {wanted} classes; the data has "
            f"{len(classes)} and at least 2 are needed. Change batch_size or images_per_class."
        )
    members = {c: np.flatnonzero(labels == c) for c in classes}
    for _ in range(max(1, len(labels) // batch_size)):
        chosen = rng.choice(classes, wanted, replace=False)
        # Classes smaller than K repeat images rather than fall out.
        yield np.concatenate([rng.choice(members[c], per_class, replace=len(members[c]) < per_class) for c in chosen])


def episodes(labels: np.ndarray, batch_size: int, options: Options, rng: np.random.Generator) -> Batches:
    """Draw n-way k-shot episodes (Snell et al. 2017, arXiv:1703.05175): for each of `n_way` classes first its `k_shot`
    support images, then its `n_query` query images, class by class. Classes that are held out are never drawn."""
    n_way, k_shot, n_query = (options.integer(name) for name in ("n_way", "k_shot", "n_query"))
    classes = np.unique(labels)
    shown = np.setdiff1d(classes, held_out_classes(classes, options.number("held_out", 0.0)))
    members = {c: np.flatnonzero(labels == c) for c in shown}
    smallest = min(map(len, members.values()))
    if n_way > len(members) or k_shot + n_query > smallest:
        raise UsageError(
            f"{n_way}-way episodes of {k_shot} support and {n_query} query images do not fit the data: {len(members)} classes, "
            f"the smallest with {smallest} images. Change n_way, k_shot or n_query."
        )
    for _ in range(options.integer("episodes_per_epoch")):
        chosen = rng.choice(list(members), n_way, replace=False)
        yield np.concatenate([rng.choice(members[c], k_shot + n_query, replace=False) for c in chosen])


def held_out_classes(classes: np.ndarray, share: float) -> np.ndarray:
    """Choose the share of the classes that episodes do not show in training, so that few-shot accuracy can be measured
    on classes never seen. It is the same for every seed and technique."""
    count = min(round(share * len(classes)), len(classes) - 1)
    return np.sort(np.random.default_rng(0).permutation(classes)[:count])


SAMPLERS: dict[str, Sampler] = {"shuffled": shuffled, "pk": pk, "episodes": episodes}
