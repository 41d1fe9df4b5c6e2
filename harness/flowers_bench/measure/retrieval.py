"""How well an embedding finds images of the same class, without any classifier.

Every image of a split is the query once, all the others are the gallery, cosine similarity ranks them. Definitions:
Musgrave et al. 2020, "A metric learning reality check" (arXiv:2003.08505), section 3.2.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

#: Queries compared at a time: memory is this times the number of images.
QUERIES = 256


def retrieval(embeddings: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Recall@1 and MAP@R: embeddings (N, D), labels (N,). Images that are alone in their class are no queries; where there
    are no others, neither figure is there.

    recall_at_1: share of queries whose nearest image is of their class.
    map_at_r: with R the number of other images of the query's class, the mean over queries of 1/R times the sum of
        the precisions at those of the first R ranks that are of its class. 1 means that all of them come first.
    """
    if len(labels) < 2:
        return {}
    unit = F.normalize(torch.from_numpy(embeddings).float(), dim=1)
    classes = torch.from_numpy(np.asarray(labels))
    others = torch.bincount(classes)[classes] - 1
    longest = max(1, int(others.max()))
    ranks = torch.arange(1, longest + 1)
    first, mean_precision = [], []
    for start in range(0, len(unit), QUERIES):
        rows = slice(start, start + QUERIES)
        similarity = unit[rows] @ unit.T
        similarity[torch.arange(len(similarity)), torch.arange(start, start + len(similarity))] = -torch.inf
        # Ties count against: an embedding that maps everything to one point must not score by the order of files.
        similarity -= 1e-6 * (classes[rows, None] == classes)
        nearest = similarity.topk(min(longest, len(unit) - 1), dim=1).indices
        hits = (classes[nearest] == classes[rows, None]).double()
        count = others[rows, None]
        within = hits * (ranks[: hits.shape[1]] <= count)
        precision = within.cumsum(1) / ranks[: hits.shape[1]]
        query = others[rows] > 0
        first.append(hits[query, 0])
        mean_precision.append(((precision * within).sum(1) / count.squeeze(1).clamp_min(1))[query])
    if not any(map(len, first)):
        return {}
    return {"recall_at_1": float(torch.cat(first).mean()), "map_at_r": float(torch.cat(mean_precision).mean())}
