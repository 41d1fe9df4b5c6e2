"""Prototypical networks: train on small classification problems, each class known by the mean of a few images.

Papers: Snell et al. 2017, "Prototypical networks for few-shot learning" (arXiv:1703.05175), equations 1 and 2 and
algorithm 1; Vinyals et al. 2016, "Matching networks" (arXiv:1606.04080) for episodes and the cosine.

An episode draws n classes (`n_way`), and of each k support images (`k_shot`) and some query images (`n_query`). With
the embedding f, the prototype of class c and the probability that a query x is of it are

    p_c = mean of f(support images of c)            P(c | x) = softmax over c of  -d(f(x), p_c) / T

and the loss is the mean over queries of -log P(true class | x). d is the squared Euclidean distance, or minus the
cosine. Nothing but the embedding is learned: new classes need no training, only a few images to average.

Two evaluations, which never share a column: the test accuracy is that of the nearest class mean among all classes,
the means taken over the training split; `episodic` in the result is few-shot accuracy among `eval_way` test classes,
each known by `eval_shot` images, with its interval. In the variant `held-out` a fifth of the classes is never seen in
an episode, and `episodic.held_out_classes` is the accuracy among those: what the paper is about.

What differs from the paper: embeddings have length 1, as in the study (`unnormalized` is the paper's), so that squared
distances lie in [0, 4], and a temperature T gives them contrast. On unit vectors the squared distance is 2 - 2 cosine;
the two differ here only by the prototypes, which are shorter than 1. The paper trains from scratch on hundreds of
episodes of up to 60 classes; here a pretrained network is tuned, by 10 episodes an epoch of 10 classes, 5 + 5 images
each: as many images as one pass over a data set of 1,020. Its Adam starts at 1e-3 and halves that every 2,000 episodes;
here it is 3e-4 and a cosine. With cosines, Vinyals weighs each support image; here, as in the paper's own comparison,
it is their mean. The checkpoint is chosen by the accuracy over all classes on the validation split; in `held-out` that
includes the classes that are held out of training.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flowers_bench import (
    Features,
    Loss,
    LossContext,
    Option,
    Predictor,
    PredictorContext,
    Recipe,
    Technique,
    UsageError,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.nn import Output


def build_prototypical(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build the loss of an episode. It raises `UsageError` if a batch is not an episode."""
    from flowers_bench_plugins.prototypical.loss import prototypical_loss

    options = context.options
    k_shot, distance, temperature = options.integer("k_shot"), options.text("distance"), options.number("temperature")
    per_class = k_shot + options.integer("n_query")

    def loss(output: Output, target: Tensor) -> Tensor:
        by_class = target.view(-1, per_class) if len(target) % per_class == 0 else target[:, None]
        if len(target) % per_class or not (by_class == by_class[:, :1]).all():
            raise UsageError("the prototypical loss needs episodes: images in order of their class.")
        return prototypical_loss(output.embedding, k_shot, per_class, distance, temperature)

    return loss


def fit_nearest_mean(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the class means p_c of the training split."""
    from flowers_bench_plugins.prototypical.predictor import fit_nearest_mean

    return fit_nearest_mean(context, features)


@hookimpl
def register_predictors() -> list[Predictor]:
    return [
        Predictor(
            "nearest-mean",
            "the class whose mean embedding, over the training split, is nearest",
            options={
                "distance": Option(
                    "euclidean", "between an embedding and a class mean", choices=("euclidean", "cosine")
                ),
                "temperature": Option(1.0, "scores are minus the distance over this", minimum=1e-3, maximum=1e3),
            },
            fit=fit_nearest_mean,
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "prototypical",
            "nearest class mean within episodes",
            needs=frozenset({"embedding", "hard_targets"}),
            options={
                "n_way": Option(10, "classes in a training episode", minimum=2, maximum=10000),
                "k_shot": Option(5, "support images of each", minimum=1, maximum=1000),
                "n_query": Option(5, "query images of each", minimum=1, maximum=1000),
                "episodes_per_epoch": Option(10, "training episodes in an epoch", minimum=1, maximum=100000),
                "held_out": Option(0.0, "share of the classes never shown in training", minimum=0, maximum=0.9),
                "distance": Option(
                    "euclidean", "between an embedding and a prototype, squared", choices=("euclidean", "cosine")
                ),
                "temperature": Option(
                    0.1, "T: scores are minus the distance over this", minimum=1e-3, maximum=1e3, search=(0.02, 1.0)
                ),
                "eval_way": Option(5, "classes in a test episode", minimum=2, maximum=10000),
                "eval_shot": Option(5, "support images of each", minimum=1, maximum=1000),
            },
            build=build_prototypical,
            sampler="episodes",
            predictor="nearest-mean",
        )
    ]


def _variant(summary: str, **options: Any) -> Variant:
    return Variant(summary, options={"embedding_dim": 0, **options}, baseline="cross-entropy")


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="prototypical",
            summary="few-shot episodes: the nearest class mean of a learned embedding",
            papers=(
                "Snell et al. 2017, Prototypical networks for few-shot learning, arXiv:1703.05175",
                "Vinyals et al. 2016, Matching networks for one shot learning, arXiv:1606.04080",
            ),
            model="embedding",
            loss="prototypical",
            augmentation="standard",
            recipe=Recipe(optimizer="adam", lr=3e-4, weight_decay=0.0, epochs=60, warmup_epochs=3),
            weights="pretrained",
            variants={
                "euclidean": _variant("normalised embedding, squared Euclidean distance"),
                "cosine": _variant("normalised embedding, cosine", distance="cosine"),
                "unnormalized": _variant(
                    "the paper's: no normalisation, squared Euclidean distance", normalize=False, temperature=1.0
                ),
                "projected": _variant("a projection to 128 dimensions in front", embedding_dim=128),
                "1-shot": _variant("one support image in training and evaluation", k_shot=1, eval_shot=1),
                "held-out": _variant("a fifth of the classes never shown, and measured apart", held_out=0.2),
                "cross-entropy": Variant(
                    "the twin without episodes: a linear classifier", model="classifier", loss="cross-entropy"
                ),
                "frozen": Variant(
                    "nothing trained: class means of the initial features",
                    augmentation="none",
                    # The temperature is given so that no search tries others: it does not change the order of the classes.
                    options={"embedding_dim": 0, "freeze": -1, "temperature": 0.1},
                    recipe={"epochs": 0, "warmup_epochs": 0},
                ),
            },
            default="euclidean",
        )
    ]
