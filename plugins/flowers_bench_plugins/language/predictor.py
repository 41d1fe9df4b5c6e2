"""Tip-Adapter and Tip-Adapter-F: the vote of similar training images beside the descriptions' scores, as they are or trained."""

from __future__ import annotations

import math
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


#: Training images of a step, and AdamW's smallest denominator, as the authors have them.
BATCH, EPSILON = 256, 1e-4


def fit_tip_f(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Train the keys, which start as the training images' vectors (N, D), on these images' scores; none votes for itself."""
    output, labels, options = features.output, features.labels, context.options
    vectors = F.normalize(output.embedding, dim=1)
    values = F.one_hot(labels, context.num_classes).to(vectors.dtype)
    alpha, beta = options.number("tip_weight"), options.number("tip_sharpness")
    keys = vectors.clone().requires_grad_()

    def scores(images: Tensor, logits: Tensor, rows: Tensor | None) -> Tensor:
        affinity = torch.exp(beta * (images @ keys.T - 1))
        if rows is not None:
            affinity = affinity.scatter(1, rows[:, None], 0.0)
        return logits + alpha * affinity @ values

    optimizer = torch.optim.AdamW([keys], eps=EPSILON)
    # In an order of its own, so that fitting twice gives the same and leaves the trial's random numbers alone.
    generator, epochs = torch.Generator().manual_seed(0), options.integer("tip_epochs")
    batches = [rows for _ in range(epochs) for rows in torch.randperm(len(labels), generator=generator).split(BATCH)]
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = options.number("tip_rate") * (1 + math.cos(math.pi * step / len(batches))) / 2
        loss = F.cross_entropy(scores(vectors[rows], output.logits[rows], rows), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    keys = keys.detach()
    return lambda asked, rows: scores(F.normalize(asked.embedding, dim=1), asked.logits, rows)
