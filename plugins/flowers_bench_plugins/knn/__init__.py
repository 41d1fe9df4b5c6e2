"""k nearest neighbours on the features of a network that is not trained: what the initial weights know already.

Papers: Wu et al. 2018, "Unsupervised feature learning via non-parametric instance discrimination" (arXiv:1805.01978),
section 3.4: with s_i the cosine between a test image and training image i, of class y_i, and T = 0.07,

    score of class c = sum over the k nearest training images of class c of  exp(s_i / T)

and Caron et al. 2021 (DINO, arXiv:2104.14294), who judge pretrained networks by it. Seconds, no settings but k, and no
seed: a number that every trained technique should beat. `nearest-mean` keeps one mean per class instead of all images.

What differs from the paper: Wu votes among k = 200, Caron reports the best of several k (10 or 20 as a rule), on data
sets with hundreds of images of each class; with ten, k is 5 here, and `--set k=` any other. The scores are normalised,
which makes them probabilities and changes no order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import (
    Features,
    Loss,
    LossContext,
    Option,
    Predictor,
    PredictorContext,
    Recipe,
    Technique,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.nn import Output


def build_none(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build a loss that is zero whatever the model gives."""
    return lambda output, target: output.embedding.sum() * 0


def fit_knn(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Keep the training images, whose `k` nearest vote on an image."""
    from flowers_bench_plugins.knn.predictor import fit_knn

    return fit_knn(context, features)


@hookimpl
def register_predictors() -> list[Predictor]:
    return [
        Predictor(
            "knn",
            "the vote of the k most similar training images",
            options={"k": Option(5, "how many nearest neighbours vote", minimum=1, maximum=100000, search=(1, 20))},
            fit=fit_knn,
            probabilities=False,
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "none",
            "nothing is trained; prediction by neighbours",
            needs=frozenset({"embedding"}),
            build=build_none,
            predictor="knn",
            probabilities=False,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    frozen = {"embedding_dim": 0, "freeze": -1}
    return [
        Technique(
            name="knn",
            summary="k nearest neighbours on frozen features, nothing trained",
            papers=(
                "Wu et al. 2018, Unsupervised feature learning via non-parametric instance discrimination, arXiv:1805.01978",
                "Caron et al. 2021, Emerging properties in self-supervised vision transformers, arXiv:2104.14294",
            ),
            model="embedding",
            loss="none",
            augmentation="none",
            recipe=Recipe(epochs=0, warmup_epochs=0),
            weights="pretrained",
            variants={
                **{f"k{k}": Variant(f"{k} nearest neighbours", options={**frozen, "k": k}) for k in (1, 5, 20)},
                "nearest-mean": Variant("the nearest class mean", options=frozen, predictor="nearest-mean"),
                "untrained": Variant(
                    "k = 5 on random initial weights: the floor", options={**frozen, "k": 5}, weights="none"
                ),
            },
            default="k5",
        )
    ]
