"""Quality of predictions, as pure functions of logits and labels."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

#: Less than this share of a mixed image cannot be expected to be recognised.
VISIBLE = 0.1


def top_k(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Share of images whose label is among the k largest logits. logits (N, C), labels (N,)."""
    return float(correct_in_top_k(logits, labels, k).mean())


def correct_in_top_k(logits: np.ndarray, labels: np.ndarray, k: int | np.ndarray = 1) -> np.ndarray:
    """bool (N,): whether fewer than k classes (one k, or (N,)) score above the label, ties counted against it (a
    constant classifier must not score)."""
    own = logits[np.arange(len(labels)), labels][:, None]
    better = (logits > own).sum(1)
    tied = (logits == own).sum(1) - 1
    return np.asarray(better + tied < k)


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the share of correct images: what Flowers102 papers often report. correct bool (N,)."""
    totals = np.bincount(labels)
    hits = np.bincount(labels, weights=correct)
    return float((hits[totals > 0] / totals[totals > 0]).mean())


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log softmax(logits)[label], in nats."""
    return float(-log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean())


def mixed_quality(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Of images that are mixed from m classes each: are these the m largest logits? logits (N, C), targets (N, C), the
    classes' shares. A class counts as being in the image from a share of `VISIBLE` on.

    top_m: mean over images of the share of their m classes that are found; all_m: share of images with all found;
    m: mean number of classes.
    """
    present = targets >= VISIBLE
    image, label = np.nonzero(present)
    m = present.sum(1)
    found = np.bincount(image, correct_in_top_k(logits[image], label, m[image]), minlength=len(targets))
    return {"top_m": float((found / m).mean()), "all_m": float((found == m).mean()), "m": float(m.mean())}


def quality(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every figure of one split. logits (N, C) float, labels (N,) int."""
    correct = correct_in_top_k(logits, labels)
    return {
        "top1": float(correct.mean()),
        "top5": top_k(logits, labels, 5),
        "mean_per_class": mean_per_class(correct, labels),
        "nll": negative_log_likelihood(logits, labels),
    }
