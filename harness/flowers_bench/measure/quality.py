"""Quality of predictions, as pure functions of logits and labels.

In numpy and float64. torchmetrics, which has some of these, is what the tests check against: importing it takes
seconds, and its accuracy resolves ties in favour of the class that comes first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.fft import irfft, next_fast_len, rfft
from scipy.sparse import csr_array
from scipy.special import log_softmax, softmax

from flowers_bench.contract.dataset import NameLevel
from flowers_bench.store.records import (
    AtLevel,
    Confused,
    Mixed,
    PerClassMetrics,
    Probabilities,
    Quality,
    QualityByClass,
)

#: Less than this share of a mixed image cannot be expected to be recognised.
VISIBLE = 0.1
#: Bins of the expected calibration error.
BINS = 15
#: Between which a temperature is looked for, as multiples of the scores' own spread.
TEMPERATURES = (1e-3, 1e3)
#: Values (images times classes) that are turned into probabilities at once: memory must not be a multiple of the scores'.
BLOCK = 1 << 20
#: How many of the most confused pairs of classes a result names.
CONFUSED = 10


def top_k(logits: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
    """Compute the share of images whose label is among the k largest logits. logits (N, C), labels (N,)."""
    return float(correct_in_top_k(logits, labels, k).mean())


def correct_in_top_k(logits: np.ndarray, labels: np.ndarray, k: int | np.ndarray = 1) -> np.ndarray:
    """Say of each image, as bool (N,), whether fewer than k classes (one k, or one for each image) score above its
    label.

    Ties count against the label: a constant classifier must not score.
    """
    own = logits[np.arange(len(labels)), labels][:, None]
    better = (logits > own).sum(1)
    tied = (logits == own).sum(1) - 1
    return np.asarray(better + tied < k)


def correct_at_level(logits: np.ndarray, labels: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """Say of each image, as bool (N,), whether the highest score is that of a class with its own coarser name.

    Ties with a class of another name count against it. logits (N, C), labels (N,); of_class int (C,): the coarser name's
    number, from 0, each of at least one class.
    """
    best = np.stack([logits[:, of_class == name].max(1) for name in range(of_class.max() + 1)], axis=1)
    return correct_in_top_k(best, of_class[labels])


def mean_per_class(correct: np.ndarray, labels: np.ndarray) -> float:
    """Compute the mean over classes of the share of correct images, which Flowers102 papers often report. correct bool
    (N,)."""
    totals = np.bincount(labels)
    hits = np.bincount(labels, weights=correct)
    return float((hits[totals > 0] / totals[totals > 0]).mean())


def _blocks(logits: np.ndarray, labels: np.ndarray, temperature: float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give logits / temperature in float64, with their labels, some images at a time."""
    step = max(1, BLOCK // logits.shape[1])
    for start in range(0, len(labels), step):
        part = slice(start, start + step)
        yield logits[part].astype(np.float64) / temperature, labels[part]


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Compute the mean of -log softmax(logits / temperature)[label], in nats."""
    losses = [-log_softmax(x, axis=1)[np.arange(len(y)), y] for x, y in _blocks(logits, labels, temperature)]
    return float(np.concatenate(losses).mean())


def mixed_quality(logits: np.ndarray, targets: np.ndarray) -> Mixed:
    """Measure, of images that are mixed from m classes each, whether these are the m largest logits. logits (N, C),
    targets (N, C), the classes' shares; a class counts as being in the image from a share of `VISIBLE` on.

    top_m: mean over images of the share of their m classes that are found; all_m: share of images with all found;
    m: mean number of classes.
    """
    present = targets >= VISIBLE
    image, label = np.nonzero(present)
    m = present.sum(1)
    found = np.bincount(image, correct_in_top_k(logits[image], label, m[image]), minlength=len(targets))
    all_m = float((found == m).mean())
    return Mixed(n=len(targets), top_m=float((found / m).mean()), all_m=all_m, m=float(m.mean()))


def squared_distances(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute the squared distance between probabilities (N, C) and truth, (N,), each from 0 to 2; the mean is the
    Brier score (Brier 1950)."""
    distance = probabilities.copy()
    distance[np.arange(len(labels)), labels] -= 1
    return np.asarray(np.square(distance).sum(1))


def equal_width_bins(confidence: np.ndarray) -> np.ndarray:
    """Find which of `BINS` bins of equal width, closed at the right, each confidence falls into. Any shape."""
    return np.asarray((np.ceil(confidence * BINS) - 1).clip(0, BINS - 1).astype(np.intp))


def adaptive_bins(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Find which of so many bins each confidence of (N,) falls into, by its place in their order, so that bins have
    nearly equally many images.

    Images of equal confidence share a bin, that of their mean place: no bin depends on the images' order.
    """
    from scipy.stats import rankdata

    places = rankdata(confidence, method="average") - 1
    return np.asarray((places * bins // len(confidence)).astype(np.intp))


def calibration_shares(confidence: np.ndarray, correct: np.ndarray, *, adaptive: bool = False) -> np.ndarray:
    """Compute each image's share of the expected calibration error, (N,). Their mean is the error, and by them it
    changes when images are weighted. Arguments as for `calibration_error`."""
    gap = correct - confidence
    bins = adaptive_bins(confidence) if adaptive else equal_width_bins(confidence)
    return np.asarray(np.sign(np.bincount(bins, gap, BINS))[bins] * gap)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, adaptive: bool = False) -> float:
    """Compute the expected calibration error: the gap between confidence and accuracy, averaged over `BINS` bins by
    their images.

    The bins have equal width (Guo et al. 2017, arXiv:1706.04599, equation 3), or with `adaptive` as good as equally
    many images each (AdaECE; Mukhoti et al. 2020, arXiv:2002.09437). confidence (N,): each image's largest
    probability; correct (N,): whether it is its label's, as `chance_right` says.
    """
    return float(calibration_shares(confidence, correct, adaptive=adaptive).mean())


def calibration_error_if_calibrated(confidence: np.ndarray, *, adaptive: bool = False) -> float:
    """Compute what `calibration_error` would be on average if each image of (N,) were right with the probability that
    its confidence promises.

    It is above zero, because few images in a bin are never right in exactly that share. Without this number beside it,
    a calibration error of few images cannot be read (Roelofs et al. 2022, arXiv:2012.08668).
    """
    bins = adaptive_bins(confidence) if adaptive else equal_width_bins(confidence)
    gaps = [_mean_deviation(confidence[bins == index]) for index in np.unique(bins)]
    return float(sum(gaps) / len(confidence))


def _mean_deviation(probabilities: np.ndarray) -> float:
    """Compute how far a count of independent events (n,) is from its expectation, on average: exactly, by multiplying
    the events' generating functions two by two."""
    found = np.stack([1 - probabilities, probabilities], axis=1)
    while len(found) > 1:
        if len(found) % 2:
            found = np.concatenate([found, np.eye(1, found.shape[1])])
        size = 2 * found.shape[1] - 1
        waves = rfft(found, next_fast_len(size, real=True))
        found = irfft(waves[::2] * waves[1::2], next_fast_len(size, real=True))[:, :size]
    return float(found[0] @ np.abs(np.arange(found.shape[1]) - probabilities.sum()))


def chance_right(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Compute how probably the class with the largest score is the label's, float (N,): 1 or 0, and where several have
    that score, as if one of them were drawn. scores (N, C)."""
    largest = scores == scores.max(1, keepdims=True)
    return np.asarray(largest[np.arange(len(labels)), labels] / largest.sum(1))


def probability_quality(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> Probabilities:
    """Measure how good softmax(logits / temperature) is as probabilities. logits (N, C), labels (N,)."""
    judged = []
    for scaled, own in _blocks(logits, labels, temperature):
        probabilities = softmax(scaled, axis=1)
        # By the scores: probabilities that differ less than float64 can tell are no tie.
        judged.append((squared_distances(probabilities, own), probabilities.max(1), chance_right(scaled, own)))
    distances, confidence, correct = map(np.concatenate, zip(*judged, strict=True))
    return Probabilities(
        nll=negative_log_likelihood(logits, labels, temperature),
        brier=float(distances.mean()),
        ece=calibration_error(confidence, correct),
        ece_adaptive=calibration_error(confidence, correct, adaptive=True),
        ece_if_calibrated=calibration_error_if_calibrated(confidence),
        ece_adaptive_if_calibrated=calibration_error_if_calibrated(confidence, adaptive=True),
    )


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """Fit the temperature whose softmax(logits / T) has the least negative log-likelihood (Guo et al. 2017, section
    4.2).

    None where there is no such temperature: if every label has the largest logit, colder is always better; if the scores
    say nothing of the labels, or are all equal, hotter is never worse.
    logits (N, C) and labels (N,) of the validation split. Where scores were not trained to be probabilities, this is
    what makes probabilities of them (as Platt 1999 did for margins).
    """
    from scipy.optimize import minimize_scalar

    spread = float(logits.std(axis=1, dtype=np.float64).mean())
    if spread == 0 or correct_in_top_k(logits, labels).all():
        return None
    bounds = tuple(np.log(spread) + np.log(TEMPERATURES))
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, labels, float(np.exp(log_t))),
        bounds=bounds,
        method="bounded",
        options={"xatol": 1e-6},
    )
    at_an_end = min(found.x - bounds[0], bounds[1] - found.x) < 1e-3
    return None if at_an_end else float(np.exp(found.x))


def confusion_matrix(logits: np.ndarray, labels: np.ndarray) -> csr_array:
    """Count how many images of each class (row) were taken for each class (column): sparse int64 (C, C), no larger than
    the number of images."""
    return confusion_counts(logits.argmax(1), labels, logits.shape[1])


def confusion_counts(predicted: np.ndarray, labels: np.ndarray, classes: int) -> csr_array:
    """Count confusions from predicted classes, which have the shape of `labels` or more axes before it, such as one of
    seeds."""
    codes, images = np.unique(labels.astype(np.int64) * classes + predicted, return_counts=True)
    return csr_array((images, np.divmod(codes, classes)), shape=(classes, classes))


def most_confused(matrix: csr_array, count: int = CONFUSED) -> list[tuple[int, int, int]]:
    """List the largest entries of a confusion matrix off its diagonal, largest first, as (class, taken for, images)."""
    found = matrix.tocoo()
    cells = zip(found.row.tolist(), found.col.tolist(), found.data.tolist(), strict=True)
    wrong = [(label, taken, images) for label, taken, images in cells if label != taken and images]
    return sorted(wrong, key=lambda cell: (-cell[2], *cell[:2]))[:count]


@dataclass(frozen=True)
class PerClass:
    """A row per class of a confusion matrix, (C,) each; NaN where a metric has nothing to be a share of.

    Attributes:
        n: its images.
        precision: of the images taken for it, the share that is of it.
        recall: of its images, the share that was recognised.
        f1: their harmonic mean.
    """

    n: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @classmethod
    def of(cls, matrix: csr_array) -> PerClass:
        """Compute it from a `confusion_matrix`."""
        hits, n, taken = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        with np.errstate(invalid="ignore"):
            return cls(n, hits / taken, hits / n, 2 * hits / (n + taken))

    def metrics(self) -> PerClassMetrics:
        """Give them as `result.json` has them, None for NaN."""
        lists = [[None if np.isnan(v) else float(v) for v in share] for share in (self.precision, self.recall, self.f1)]
        return PerClassMetrics(n=self.n.tolist(), precision=lists[0], recall=lists[1], f1=lists[2])


def f1_shares(predicted: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Compute each image's share of macro-F1, (N,). Their mean is macro-F1, and by them it changes when images are
    weighted."""
    found = PerClass.of(confusion_counts(predicted, labels, classes))
    counts = np.bincount(labels, minlength=classes) + np.bincount(predicted, minlength=classes)
    f1 = np.nan_to_num(found.f1)  # of classes that no image is of, nor taken for: no image asks for them
    change = (2.0 * (predicted == labels) - f1[labels]) / counts[labels] - f1[predicted] / counts[predicted]
    return np.asarray(np.nanmean(found.f1) + change * len(labels) / np.count_nonzero(counts))


def quality(logits: np.ndarray, labels: np.ndarray, *, probabilities: bool = True) -> Quality:
    """Compute every metric of one split. logits (N, C) float, labels (N,) int.

    `probabilities` says whether softmax(logits) is meant as such: of mere scores, the metrics that judge probabilities
    are absent.
    """
    correct = correct_in_top_k(logits, labels)
    found = Quality(
        n=len(labels),
        top1=float(correct.mean()),
        top5=top_k(logits, labels, 5),
        mean_per_class=mean_per_class(correct, labels),
        macro_f1=float(np.nanmean(PerClass.of(confusion_matrix(logits, labels)).f1)),
    )
    return replace(found, **vars(probability_quality(logits, labels))) if probabilities else found


def quality_by_class(
    logits: np.ndarray,
    labels: np.ndarray,
    temperature: float | None = None,
    *,
    probabilities: bool = True,
    name_levels: Sequence[NameLevel] = (),
) -> QualityByClass:
    """Compute `quality`, and beside it metrics by class index, the most confused pairs, accuracy at each level of coarser names,
    and with a temperature the metrics that judge calibrated probabilities. Arguments as for `quality`."""
    matrix = confusion_matrix(logits, labels)
    pairs = [Confused(label=a, prediction=b, images=n) for a, b, n in most_confused(matrix)]
    levels = {
        level.name: AtLevel(
            top1=float(correct_at_level(logits, labels, np.asarray(level.of_class)).mean()),
            names=len(level.names),
            of_class=list(level.of_class),
        )
        for level in name_levels
    }
    return QualityByClass(
        **vars(quality(logits, labels, probabilities=probabilities)),
        per_class=PerClass.of(matrix).metrics(),
        confused=pairs,
        calibrated=None if temperature is None else probability_quality(logits, labels, temperature),
        name_levels=levels or None,
    )
