"""What every technique takes each test image for, packed for the page, which shows the images that only one of two has right."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from flowers_bench.report.aggregate import Row

#: The number of characters that the votes of all rows and the keys of the images may take together, in a page.
VOTES_BUDGET = 450_000
#: With more classes than this, a class takes two bytes.
_BYTE = 256


class Kept(TypedDict):
    """Test images, those that the fewest rows and seeds have right first: keys, and base64 of their classes as uint8, or as
    uint16 where there are more than 256."""

    keys: list[str]
    labels: str
    of: int


class Votes(TypedDict):
    """What a row says of these images, in base64: the class, as in `Kept`, the confidence in percent and the number of seeds
    that are right as uint8."""

    taken: str
    sure: str
    right: str


@dataclass(frozen=True)
class Disagreement:
    """The test images of a group that fit into the page, and what the rows say of them.

    Attributes:
        places: int (K,): their places among the N test images.
        votes: one for each row, in their order.
    """

    places: np.ndarray
    kept: Kept
    votes: tuple[Votes, ...]

    @classmethod
    def of(cls, rows: Sequence[Row], budget: int) -> Disagreement:
        """Keep the images that the fewest rows and seeds have right, as many as fit into `budget` characters."""
        first = rows[0]
        share = np.mean([row.correct.mean(0) for row in rows], axis=0)
        places = np.argsort(share, kind="stable")
        of_class = "u1" if len(first.trials[0].result.class_names) <= _BYTE else "<u2"
        packed = 4 / 3 * (2 + np.dtype(of_class).itemsize)  # characters of one image in one row
        lengths = np.array([len(first.keys[place]) for place in places]) + 3 + packed * (len(rows) + 0.5)
        places = places[np.cumsum(lengths) <= budget]
        labels = first.labels[places]
        kept = Kept(
            keys=[first.keys[place] for place in places], labels=_base64(labels, of_class), of=len(first.labels)
        )
        return cls(places, kept, tuple(_votes(row, places, of_class) for row in rows))


def _votes(row: Row, places: np.ndarray, of_class: str) -> Votes:
    predicted = row.predicted[:, places]
    sure = np.round(100 * row.confidence[:, places].mean(0))
    right = row.correct[:, places].sum(0).clip(max=255)
    return Votes(taken=_base64(vote(predicted), of_class), sure=_base64(sure, "u1"), right=_base64(right, "u1"))


def vote(predicted: np.ndarray) -> np.ndarray:
    """Find the class (N,) that most seeds name, from (S, N); of several, the one that the earliest seed names."""
    agreeing = np.stack([(predicted == own).sum(0) for own in predicted])
    return np.asarray(predicted[agreeing.argmax(0), np.arange(predicted.shape[1])])


def _base64(values: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, kind).tobytes()).decode()
