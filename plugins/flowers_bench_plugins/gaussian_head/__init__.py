"""Gaussian classes on frozen features: what the spread of a class says, beside its mean. Nothing is trained.

Papers: Hayes & Kanan 2020, "Lifelong machine learning with deep streaming linear discriminant analysis"
(arXiv:1909.01520), for Fisher's discriminant on a deep network's features; Ledoit & Wolf 2004, "A well-conditioned estimator
for large-dimensional covariance matrices" (doi:10.1016/S0047-259X(03)00096-4), equation 14 and lemmas 3.2 to 3.4; Bateni et
al. 2020, "Improved few-shot visual classification" (Simple CNAPS, arXiv:1912.03432), section 4.

With f the frozen features, mu_c the mean of a class's n_c training images and N of all, each class is a Gaussian around its
mean. What differs between the variants is its covariance:

    nearest-mean   the identity:  score of c = -|f(x) - mu_c|^2
    lda            one S for all classes, the covariance within them, shrunk towards a multiple of the identity:
                   S = (1 - a) W + a tr(W) / D I,      W = 1/N sum over i of (f(x_i) - mu_yi) (f(x_i) - mu_yi)^T
                   score of c = mu_c^T S^-1 f(x) - 1/2 mu_c^T S^-1 mu_c + log(n_c / N)
    mahalanobis    one Q_c for each class, its own covariance and that of all images, mixed:
                   Q_c = l_c S_c + (1 - l_c) S + b I,      l_c = n_c / (n_c + 1)
                   score of c = -1/2 (f(x) - mu_c)^T Q_c^-1 (f(x) - mu_c)

With ten images of a class in hundreds of dimensions no covariance can be inverted as it is; a, and b, are what makes it
possible. a is Ledoit and Wolf's estimate, which minimises the expected squared error of S, or a number (`--set shrinkage=`).
Of one image a class W is zero; S is then the identity times the features' mean variance, and `lda` finds the nearest mean.

What differs from the paper: Hayes shrinks by a constant, 1e-4. Ledoit and Wolf subtract one mean, here each image's class
mean is subtracted first. Simple CNAPS adapts the network to each task, here it stays; and its b is 1, on features whose
variance is about that, here it is a multiple of the features' mean variance tr(S) / D, so that their scale, which differs
between networks, changes nothing. As there, the Gaussian's normaliser log |Q_c| is left out of the score.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Features, Option, Predictor, PredictorContext, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.nn import Output


def fit_lda(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the means and the common covariance S."""
    from flowers_bench_plugins.gaussian_head.predictor import fit_lda

    return fit_lda(context, features)


def fit_mahalanobis(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the means and the covariance Q_c of each class."""
    from flowers_bench_plugins.gaussian_head.predictor import fit_mahalanobis

    return fit_mahalanobis(context, features)


@hookimpl
def register_predictors() -> list[Predictor]:
    shrinkage = Option(
        -1.0,
        "a, the identity's share of the covariance; below 0: Ledoit and Wolf's estimate",
        minimum=-1,
        maximum=1,
    )
    ridge = Option(
        1.0,
        "b, what is added to each variance, as a multiple of the mean variance",
        minimum=1e-6,
        maximum=1e6,
        search=(0.01, 10.0),
    )
    return [
        Predictor(
            "lda",
            "linear discriminant analysis of the training split's embeddings, with a shrunk covariance",
            options={"shrinkage": shrinkage},
            fit=fit_lda,
            probabilities=True,
        ),
        Predictor(
            "mahalanobis",
            "the nearest class mean, by a covariance of each class's own",
            options={"covariance_ridge": ridge},
            fit=fit_mahalanobis,
            probabilities=True,
        ),
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="gaussian-head",
            summary="linear discriminant analysis, or a covariance for each class, on frozen features; nothing trained",
            papers=(
                "Hayes & Kanan 2020, Lifelong machine learning with deep streaming linear discriminant analysis, arXiv:1909.01520",
                "Ledoit & Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices, "
                "doi:10.1016/S0047-259X(03)00096-4",
                "Bateni et al. 2020, Improved few-shot visual classification, arXiv:1912.03432",
            ),
            model="frozen-features",
            loss="none",
            augmentation="none",
            recipe=Recipe(epochs=0, warmup_epochs=0),
            weights="pretrained",
            variants={
                "lda": Variant(
                    "one covariance for all classes, shrunk by Ledoit and Wolf's estimate",
                    predictor="lda",
                    baseline="nearest-mean",
                ),
                "mahalanobis": Variant(
                    "a covariance for each class, as in Simple CNAPS", predictor="mahalanobis", baseline="nearest-mean"
                ),
                "nearest-mean": Variant("no covariance: the nearest class mean", predictor="nearest-mean"),
            },
            default="lda",
        )
    ]
