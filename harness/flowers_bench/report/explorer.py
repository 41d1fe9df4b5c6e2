"""Find out what a row mistakes for what: confused pairs of classes, metrics by class, and images that show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from scipy.sparse import csr_array

from flowers_bench.measure.quality import PerClass, confusion_counts, most_confused
from flowers_bench.report.aggregate import Row
from flowers_bench.report.pictures import Examples
from flowers_bench.report.plots import rounded

#: How many pairs of classes, examples of each pair, and images of any other kind are shown.
CONFUSED, EXAMPLES, PICTURED, HARDEST = 12, 3, 6, 12
#: The number of characters that all confusion matrices of a page may take together.
MATRICES_BUDGET = 400_000


class Matrices:
    """Confusion matrices as short lists; as many as fit into a budget of characters."""

    def __init__(self, budget: int) -> None:
        self._left = budget

    def take(self, row: Row) -> list[int] | None:
        """Convert a row's confusion matrix to a flat list with two numbers for each entry that is not zero, line by line.

        The numbers are the distance from the entry before, and the count of images. None once the budget is spent.
        """
        if self._left <= 0:
            return None
        matrix = _confusions(row)
        entries = matrix.tocoo()  # in order of rows, without zeros
        places = entries.row.astype(np.int64) * matrix.shape[1] + entries.col
        steps = np.diff(places, prepend=0)
        flat: list[int] = np.stack([steps, entries.data], axis=1).ravel().tolist()
        self._left -= len(str(flat))
        return flat if self._left > 0 else None


class ConfusedPair(TypedDict):
    """A class `label`, and the class `taken` that its images are mistaken for.

    `images` of its `of` test images are mistaken, mean over seeds. `mistaken` has the keys of some of them, and `typical`
    the keys of images that are typical of the other class.
    """

    label: int
    taken: int
    images: float
    of: int
    mistaken: list[str]
    typical: list[str]


class Example(TypedDict):
    """An image, its class, the class that the first seed predicted, and the confidence of that."""

    key: str
    label: int
    taken: int
    sure: float


class Mistakes(TypedDict):
    """What a row mistakes for what, with more keys of images than there may be pictures of; `per_class` is from `_per_class`."""

    confused: list[ConfusedPair]
    per_class: list[list[float | None]]
    wrong: list[Example]
    right: list[Example]


class Explored(Mistakes):
    """The same with the images that there are pictures of, and `matrix` from `Matrices.take`."""

    matrix: list[int] | None


@dataclass(frozen=True)
class Hard:
    """A test image: its key, its class index, and the percentage of rows and seeds that classify it correctly."""

    key: str
    label: int
    share: str


def _confusions(row: Row) -> csr_array:
    return confusion_counts(row.predicted, row.labels, len(row.trials[0].result.class_names))


def mistakes(row: Row) -> Mistakes:
    """Find the pairs of classes that a row confuses most, and images that it gets right and wrong with most confidence."""
    wrong = row.predicted != row.labels
    sure = row.confidence.mean(0)
    matrix = _confusions(row)
    pairs: list[ConfusedPair] = []
    for label, taken, images in most_confused(matrix, CONFUSED):
        mistaken = (row.labels == label) & (row.predicted == taken).any(0)
        typical = (row.labels == taken) & ~wrong.any(0)
        pairs.append(
            {
                "label": label,
                "taken": taken,
                "images": round(images / len(row.seeds), 1),
                "of": int((row.labels == label).sum()),
                "mistaken": _keys(row, mistaken, sure, EXAMPLES),
                "typical": _keys(row, typical, sure, EXAMPLES - 1),
            }
        )
    return {
        "confused": pairs,
        "per_class": _per_class(matrix, len(row.seeds)),
        "wrong": _pictured(row, wrong.all(0), sure),
        "right": _pictured(row, ~wrong.any(0), sure),
    }


def explore(row: Row, known: Mistakes, examples: Examples, matrices: Matrices) -> Explored:
    """Add the confusion matrix to a row's mistakes, ask for pictures of their images, and leave out pairs' images without."""
    found = Explored(**known, matrix=matrices.take(row))
    for pair in found["confused"]:
        examples.want((*pair["mistaken"], *pair["typical"]))
        for keys in (pair["mistaken"], pair["typical"]):
            keys[:] = [key for key in keys if key in examples.uris]  # the others have no picture to show
    examples.want(image["key"] for image in (*found["wrong"], *found["right"]))
    return found


def _per_class(matrix: csr_array, seeds: int) -> list[list[float | None]]:
    """Compute for each class the number of its test images, its recall and its precision, as shares."""
    found = PerClass.of(matrix)
    shares = zip(found.n // seeds, found.recall, found.precision, strict=True)
    return [[int(n), *rounded(both)] for n, *both in shares]


def _keys(row: Row, chosen: np.ndarray, sure: np.ndarray, count: int) -> list[str]:
    places = np.flatnonzero(chosen)
    return [row.keys[i] for i in places[np.argsort(-sure[places], kind="stable")[:count]]]


def _pictured(row: Row, chosen: np.ndarray, sure: np.ndarray) -> list[Example]:
    places = np.flatnonzero(chosen)
    best = places[np.argsort(-sure[places], kind="stable")[:PICTURED]]
    return [
        {
            "key": row.keys[i],
            "label": int(row.labels[i]),
            "taken": int(row.predicted[0, i]),
            "sure": round(float(sure[i]), 3),
        }
        for i in best
    ]


def hardest(rows: Sequence[Row]) -> list[Hard]:
    """Find the images that the fewest rows and seeds classify correctly; at most two of each class."""
    share = np.mean([row.correct.mean(0) for row in rows], axis=0)
    found: list[Hard] = []
    shown: Counter[int] = Counter()
    for place in np.argsort(share, kind="stable"):
        label = int(rows[0].labels[place])
        if shown[label] < 2 and len(found) < HARDEST:
            shown[label] += 1
            found.append(Hard(rows[0].keys[place], label, f"{100 * share[place]:.0f}"))
    return found
