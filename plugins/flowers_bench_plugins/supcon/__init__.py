"""Supervised contrastive learning: images of one class attract each other, all others repel, and a classifier comes after.

Paper: Khosla et al. 2020, "Supervised contrastive learning" (arXiv:2004.11362), equation 2. With z = g(f(x)) / |g(f(x))| of a batch's
images, P(i) the other images of i's class and A(i) all other images,

    loss = mean over i of   -1 / |P(i)|  sum over p in P(i) of  log( exp(z_i . z_p / T) / sum over a in A(i) of exp(z_i . z_a / T) )

g is a network of two layers that exists in training alone: what is kept is f, on which a linear classifier is fitted
afterwards. That is the paper's two stages in one trial: `--predictor logistic` is its second stage, solved exactly, and `knn` asks the neighbours.

With a memory (`memory`), A(i) and P(i) also have the last Q images before the batch, with the z that they had then, without gradient: the paper's queue (section 4, "a memory-based
alternative"), as Wang et al. 2020 keep it ("Cross-batch memory for embedding learning", arXiv:1912.06798, algorithm 1).

What differs from the paper: its batches have two views of each of thousands of images; here a batch has P classes with K images each, one view of
each, so that every image has K - 1 positives. It trains from random weights by LARS for hundreds of epochs, here a pretrained
network is tuned by Adam, as in `triplet`. T is its 0.1, g's output its 128. Its memory has MoCo's second network, which changes slowly; this one has none, as in XBM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Loss, LossContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.nn import Output


def build_supcon(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build the loss with its network g; targets are hard (N,)."""
    from flowers_bench_plugins.supcon.loss import SupervisedContrastive

    options = context.options
    return SupervisedContrastive(
        context.embedding_dim, options.integer("projection_dim"), options.number("contrast_temperature")
    )


def build_supcon_memory(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build the loss with its network g and its memory; targets are hard (N,)."""
    from flowers_bench_plugins.supcon.loss import WithMemory

    options = context.options
    return WithMemory(
        context.embedding_dim,
        options.integer("projection_dim"),
        options.number("contrast_temperature"),
        options.integer("memory_size"),
    )


@hookimpl
def register_losses() -> list[Loss]:
    options = {
        "contrast_temperature": Option(
            0.1, "T: cosines are divided by it", minimum=1e-3, maximum=1e3, search=(0.02, 0.5)
        ),
        "projection_dim": Option(128, "how many values g gives", minimum=1, maximum=65536),
        "images_per_class": Option(4, "K of the P x K batches, P = batch_size / K", minimum=2, maximum=1000),
    }
    memory = {"memory_size": Option(512, "Q, how many past images are kept", minimum=1, maximum=1000000)}
    return [
        Loss(
            "supcon",
            "images of one class attract each other, all others repel",
            needs=frozenset({"embedding", "hard_targets"}),
            options=options,
            build=build_supcon,
            sampler="pk",
            predictor="logistic",
            probabilities=False,
        ),
        Loss(
            "supcon-memory",
            "the same, with images of past batches too",
            needs=frozenset({"embedding", "hard_targets"}),
            options={**options, **memory},
            build=build_supcon_memory,
            sampler="pk",
            predictor="logistic",
            probabilities=False,
        ),
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    kept = {"embedding_dim": 0, "normalize": False}
    return [
        Technique(
            name="supcon",
            summary="supervised contrastive learning, and a linear classifier on what it learned",
            papers=(
                "Khosla et al. 2020, Supervised contrastive learning, arXiv:2004.11362",
                "Wang et al. 2020, Cross-batch memory for embedding learning, arXiv:1912.06798",
            ),
            model="embedding",
            loss="supcon",
            augmentation="standard",
            recipe=Recipe(optimizer="adam", lr=3e-4, weight_decay=0.0, batch_size=64, epochs=60, warmup_epochs=3),
            weights="pretrained",
            variants={
                "logistic": Variant(
                    "logistic regression on the features, as in the paper", options=kept, baseline="cross-entropy"
                ),
                "memory": Variant(
                    "compared with the last 512 images too", options=kept, loss="supcon-memory", baseline="logistic"
                ),
                "knn": Variant("predicting by neighbours", options=kept, predictor="knn", baseline="cross-entropy"),
                "cross-entropy": Variant(
                    "the twin without contrast: a linear classifier, shuffled batches",
                    model="classifier",
                    loss="cross-entropy",
                ),
                "frozen": Variant(
                    "nothing trained: logistic regression on the initial features",
                    options={**kept, "freeze": -1},
                    loss="none",
                    augmentation="none",
                    predictor="logistic",
                    recipe={"epochs": 0, "warmup_epochs": 0},
                ),
            },
            default="logistic",
        )
    ]
