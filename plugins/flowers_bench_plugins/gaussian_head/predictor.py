"""Gaussian classes: one covariance for all, or one for each. Computed in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowers_bench import Features, PredictorContext
from flowers_bench.nn import Output
from flowers_bench_plugins.prototypical.predictor import class_means

#: So many products of queries and directions are held at a time (float64: 256 MiB).
VALUES = 2**25


def fit_lda(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the discriminant to the training images' embeddings (N, D)."""
    x, labels = features.output.embedding.double(), features.labels
    means = class_means(x, labels, context.num_classes)
    within = x - means[labels]
    shrinkage = context.options.number("shrinkage")
    covariance = shrunk(within, ledoit_wolf(within) if shrinkage < 0 else shrinkage)
    if not covariance.any():  # one image of each class says nothing of their spread
        covariance = shrunk(x - x.mean(0), 1.0)
    # Where nothing is shrunk there may be no inverse: directions without any spread then count for nothing.
    weight = means @ torch.linalg.pinv(covariance, hermitian=True)
    prior = torch.bincount(labels, minlength=context.num_classes).double() / len(labels)
    bias = prior.log() - (weight * means).sum(1) / 2
    return lambda output, rows: (output.embedding.double() @ weight.T + bias).float()


def shrunk(centred: Tensor, share: float) -> Tensor:
    """Compute the covariance of vectors (N, D) with mean 0, with `share` of it a multiple of the identity: (D, D)."""
    covariance = centred.T @ centred / len(centred)
    size = covariance.diagonal().mean()
    return (1 - share) * covariance + share * size * torch.eye(len(covariance), dtype=covariance.dtype)


def ledoit_wolf(centred: Tensor) -> float:
    """Estimate the share of the identity that minimises the expected squared error of the covariance, from vectors (N, D) with
    mean 0 (Ledoit & Wolf 2004, lemmas 3.2 to 3.4)."""
    count, dim = centred.shape
    covariance = centred.T @ centred / count
    size = covariance.diagonal().mean()
    # d^2, how far the covariance is from that multiple of the identity, and b^2, how much of that is chance.
    apart = covariance.square().sum() - dim * size**2
    chance = (centred.square().sum(1).square().sum() / count - covariance.square().sum()) / count
    return float((chance / apart).clamp(0, 1)) if apart > 0 else 1.0


def fit_mahalanobis(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit means and covariances of the classes to the training images' embeddings (N, D).

    No covariance of a class is ever made: D times D for each class would be gigabytes. Along the eigenvectors of S, the
    matrix (1 - l_c) S + b I is diagonal; what l_c S_c adds has as many directions as the class has images, and at most D
    (Woodbury).
    """
    x, labels, classes = features.output.embedding.double(), features.labels, context.num_classes
    centred = x - x.mean(0)
    variances, basis = torch.linalg.eigh(centred.T @ centred / max(len(x) - 1, 1))
    x = x @ basis
    means = class_means(x, labels, classes)
    counts = torch.bincount(labels, minlength=classes)
    own = (counts / (counts + 1)).double()
    ridge = context.options.number("covariance_ridge") * variances.mean().clamp_min(torch.finfo(x.dtype).tiny)
    inverse = 1 / ((1 - own[:, None]) * variances.clamp_min(0) + ridge)  # (C, D)
    directions = x.new_zeros(classes, min(int(counts.max()), x.shape[1]), x.shape[1])
    for label in range(classes):
        spread = x[labels == label] - means[label]
        spread = spread * (own[label] / max(len(spread) - 1, 1)).sqrt()  # S_c is the sum of their outer products
        inner = spread * inverse[label]
        factor = torch.linalg.cholesky(torch.eye(len(spread), dtype=x.dtype) + inner @ spread.T)
        rows = torch.linalg.solve_triangular(factor, inner, upper=False)
        if len(rows) > rows.shape[1]:  # as many as there are dimensions say the same
            rows = torch.linalg.qr(rows, mode="r").R
        directions[label, : len(rows)] = rows
    offset = torch.einsum("cnd,cd->cn", directions, means)
    scaled = inverse * means
    constant = (scaled * means).sum(1)

    def distances(queries: Tensor) -> Tensor:
        plain = queries.square() @ inverse.T - 2 * queries @ scaled.T + constant
        along = torch.einsum("qd,cnd->qcn", queries, directions) - offset
        squared: Tensor = plain - along.square().sum(2)
        return squared

    def score(output: Output, rows: Tensor | None) -> Tensor:
        queries = output.embedding.double() @ basis
        turn = max(1, VALUES // offset.numel())
        if torch.compiler.is_exporting() or len(queries) <= turn:  # a graph is for any number of queries
            return (-distances(queries) / 2).float()
        return torch.cat([(-distances(part) / 2).float() for part in queries.split(turn)])

    return score
