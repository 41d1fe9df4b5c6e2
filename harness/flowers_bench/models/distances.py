"""Scores by distance, which class means are compared by in training, in prediction and in few-shot episodes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def distance_scores(queries: Tensor, means: Tensor, distance: str) -> Tensor:
    """Compute minus the squared Euclidean distance to each class mean (Snell et al. 2017, equation 2), or the cosine
    with it (Vinyals et al. 2016): (Q, D), (C, D) to (Q, C)."""
    if distance == "cosine":
        return F.normalize(queries, dim=1) @ F.normalize(means, dim=1).T
    # By default it chooses its way by the number of queries, which a graph for any number cannot.
    mode = "use_mm_for_euclid_dist" if torch.compiler.is_exporting() else "use_mm_for_euclid_dist_if_necessary"
    return -torch.cdist(queries, means, compute_mode=mode).square()
