"""How well an embedding finds images of the same class, without any classifier.

Every image of a split is the query once, all the others are the gallery, cosine similarity ranks them. Definitions:
Musgrave et al. 2020, "A metric learning reality check" (arXiv:2003.08505), section 3.2.

recall_at_1: share of queries whose nearest image is of their class.
map_at_r: with R the number of other images of the query's class, the mean over queries of 1/R times the sum of
    the precisions at those of the first R ranks that are of its class. 1 means that all of them come first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flowers_bench.store.records import RetrievalFigures

#: Queries compared at a time: memory is this times the number of images.
QUERIES = 256


@dataclass(frozen=True)
class Retrieval:
    """The metrics of one split, and how they depend on its images.

    Attributes:
        recall_at_1, map_at_r: see above.
        images: float64 (N,) by metric: each image's share, by the jackknife: N times the metric minus N - 1 times that
            without the image, as query and in the gallery; shifted so that their mean is the metric. Queries alone
            are no independent sample, as one image may be the nearest of many.
    """

    recall_at_1: float
    map_at_r: float
    images: dict[str, np.ndarray]

    @classmethod
    def of(cls, embeddings: np.ndarray, labels: np.ndarray) -> Retrieval | None:
        """Compute it from embeddings (N, D) and labels (N,). Images that are alone in their class are no queries; None
        where all are."""
        classes = torch.from_numpy(np.asarray(labels, np.int64))
        count = len(classes)
        others = torch.bincount(classes)[classes] - 1
        is_query = others > 0
        if not is_query.any():
            return None
        values = torch.zeros(2, count, dtype=torch.float64)  # of each query: recall@1, then MAP@R
        changes = torch.zeros(2, count, dtype=torch.float64)  # of the queries' sum, without each image
        apart = _Distances(torch.from_numpy(np.asarray(embeddings)).double(), classes)
        for start in range(0, count, QUERIES):
            rows = torch.arange(start, min(start + QUERIES, count))
            rows = rows[is_query[rows]]
            nearest = apart.nearest(rows, int(others.max()) + 1)
            hits = (classes[nearest] == classes[rows, None]).double()
            for metric, judge in enumerate((_recall, _precision)):
                found, without, beyond = judge(hits, others[rows, None])
                values[metric, rows] = found
                # Of any other image of the class, unless it is among the nearest, which are dealt with below.
                of_class = torch.zeros(int(classes.max()) + 1, dtype=torch.float64)
                of_class.index_add_(0, classes[rows], beyond - found)
                changes[metric] += of_class[classes]
                changes[metric, rows] -= beyond - found
                change = without - found[:, None] - hits * (beyond - found)[:, None]
                changes[metric].index_add_(0, nearest.flatten(), change.flatten())
        queries = int(is_query.sum())
        metrics = values.sum(1) / queries
        # Without one of two images of a class, the other is no query either.
        left = queries - is_query.long() - (others == 1).long()
        rest = (values.sum(1, keepdim=True) + changes - values) / left.clamp_min(1)
        shares = count * metrics[:, None] - (count - 1) * torch.where(left > 0, rest, metrics[:, None])
        shares += (metrics - shares.mean(1))[:, None]
        recall, precision = metrics.tolist()
        return cls(recall, precision, {"recall_at_1": shares[0].numpy(), "map_at_r": shares[1].numpy()})

    def metrics(self) -> RetrievalFigures:
        """Give them as `result.json` has them."""
        return RetrievalFigures(recall_at_1=self.recall_at_1, map_at_r=self.map_at_r)


def retrieval(embeddings: np.ndarray, labels: np.ndarray) -> RetrievalFigures | None:
    """Compute recall@1 and MAP@R of embeddings (N, D) and labels (N,); None where no class has two images."""
    found = Retrieval.of(embeddings, labels)
    return found.metrics() if found else None


class _Distances:
    """Squared distances between unit vectors, which rank as cosines do.

    Of what is left of the unit vectors when their mean is taken away, in float64: the cosines of an embedding that has
    nearly collapsed differ by less than float64 can tell from 1, their distances do not. An embedding that is zero has
    cosine 0 with all others.
    """

    def __init__(self, embeddings: Tensor, classes: Tensor) -> None:
        length = embeddings.norm(dim=1, keepdim=True)
        unit = embeddings / length.where(length > 0, 1)
        self._zero = length.squeeze(1) == 0
        self._classes = classes
        self._left = unit - unit.mean(0)
        self._squares = self._left.square().sum(1)
        scale = float(self._squares.mean())
        # What rounding of the unit vectors and of the product can do.
        self._tie = max(1e-12 * scale + 1e-15 * scale**0.5 + 1e-30, 1e-12 * float(self._zero.any()))

    def nearest(self, rows: Tensor, count: int) -> Tensor:
        """Find the `count` images nearest to each of those in `rows`, nearest first, without itself: (Q, K).

        Ties count against: of images at the same distance those of other classes come first, as an embedding that
        maps everything to one point must not score by the order of files.
        """
        squared = self._squares[rows, None] + self._squares - 2 * self._left[rows] @ self._left.T
        squared[self._zero[rows]] = 2.0
        squared[:, self._zero] = 2.0
        squared += self._tie * (self._classes[rows, None] == self._classes)
        squared[torch.arange(len(rows)), rows] = torch.inf
        places: Tensor = squared.topk(min(count, len(self._squares) - 1), dim=1, largest=False).indices
        return places


#: Of each query: the metric (Q,); without the image at each rank, same as with it where that changes nothing (Q, K); and
#: without one of its class beyond the ranks that count (Q,). Zero where no other image of its class is left.
_Judged = tuple[Tensor, Tensor, Tensor]


def _recall(hits: Tensor, others: Tensor) -> _Judged:
    """Compute recall@1 from `hits` (Q, K), whether the image at each rank is of the query's class, and `others` (Q, 1),
    how many such there are."""
    first = hits[:, 0]
    alone = others[:, 0] == 1
    beyond = first.where(~alone, 0)
    without = first[:, None] + hits * (beyond - first)[:, None]
    if hits.shape[1] > 1:
        without[:, 0] = hits[:, 1]
    without[:, 0] = without[:, 0].where(~(alone & (first > 0)), 0)
    return first, without, beyond


def _precision(hits: Tensor, others: Tensor) -> _Judged:
    """Compute MAP@R; arguments as for `_recall`."""
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    counts = ranks <= others
    so_far = hits.cumsum(1)
    terms = hits * so_far / ranks
    within = terms * counts
    found = within.sum(1) / others[:, 0]
    fewer = (others - 1).clamp_min(1).double()
    # Without the image at one rank, whatever comes later is one rank earlier; and if it is of the class, finds one less,
    # of one less. If it is of another class, one rank more counts.
    earlier = (ranks - 1).clamp_min(1)
    moved, lost = hits * so_far / earlier * counts, hits / earlier * counts
    before = within.cumsum(1) - within
    after = moved.sum(1, keepdim=True) - moved.cumsum(1)
    lost_after = lost.sum(1, keepdim=True) - lost.cumsum(1)
    last = (hits * so_far / earlier * (ranks == others + 1)).sum(1, keepdim=True)
    beyond = ((within * (ranks < others)).sum(1, keepdim=True) / fewer * (others > 1)).squeeze(1)
    of_class = (before + after - lost_after) / fewer * (others > 1)
    of_other = (before + after + last) / others
    without = torch.where(hits > 0, of_class, of_other)
    unchanged = torch.where(hits > 0, beyond[:, None], found[:, None])
    return found, torch.where(counts, without, unchanged), beyond
