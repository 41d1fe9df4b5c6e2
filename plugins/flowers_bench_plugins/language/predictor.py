"""Tip-Adapter: the vote of similar training images beside the descriptions' scores."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_bench import Features, PredictorContext
from flowers_bench.nn import Output


def fit_tip(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Keep the training images' vectors (N, D) and classes."""
    keys = F.normalize(features.output.embedding, dim=1)
    values = F.one_hot(features.labels, context.num_classes).to(keys.dtype)
    alpha, beta = context.options.number("tip_weight"), context.options.number("tip_sharpness")

    def scores(output: Output, rows: Tensor | None) -> Tensor:
        affinity = torch.exp(beta * (F.normalize(output.embedding, dim=1) @ keys.T - 1))
        if rows is not None:
            affinity = affinity.scatter(1, rows[:, None], 0.0)  # no image votes for itself
        return output.logits + alpha * affinity @ values

    return scores
