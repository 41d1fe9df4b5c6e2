"""Linear probe: a linear classifier on the features of a network that is not trained.

Papers: Kornblith et al. 2019, "Do better ImageNet models transfer better?" (arXiv:1805.08974), section 3.1, who fit
logistic regression to the features; Radford et al. 2021 (CLIP, arXiv:2103.00020), section 3.2, who judge networks by
it; Chen et al. 2020 (SimCLR, arXiv:2002.05709) for the classifier trained by gradient steps.

With f the frozen features, standardised, of N training images, the probe (W, b) minimises

    mean over i of  -log softmax(W f(x_i) + b)[y_i]  +  l2 / 2 * |W|^2

`head` trains it by the harness's loop, with augmented images, and keeps it with the network; `logistic` solves it
exactly, on images without augmentation, in seconds: the problem is convex, and there is no seed, rate or schedule to
choose. What the probe reaches is what the features know; what full fine-tuning (`full`) adds is what they did not.

What differs from the paper: neither Kornblith nor Radford standardises the features, on whose scale the penalty
depends; both choose l2 on validation data for each data set; here it is an option (`--set l2=`), with a default, and
chosen so by `--search`. `head` is trained by AdamW, SimCLR's by SGD with Nesterov's momentum and without colour jitter.
`logistic` keeps its coefficients out of the stored network: they are fitted again from the training split whenever it
predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Features, Option, Predictor, PredictorContext, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.nn import Output


def fit_probe(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the probe (W, b) on the training split."""
    from flowers_bench_plugins.linear_probe.predictor import fit_probe

    return fit_probe(context, features)


@hookimpl
def register_predictors() -> list[Predictor]:
    penalty = Option(0.01, "weight of the squared coefficients' penalty", minimum=0, maximum=1e3, search=(1e-4, 1.0))
    return [
        Predictor(
            "logistic",
            "logistic regression on the training split's embeddings",
            options={"l2": penalty},
            fit=fit_probe,
            probabilities=True,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="linear-probe",
            summary="a linear classifier on frozen features",
            papers=(
                "Kornblith et al. 2019, Do better ImageNet models transfer better?, arXiv:1805.08974",
                "Radford et al. 2021, Learning transferable visual models from natural language supervision, arXiv:2103.00020",
            ),
            model="classifier",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-2, weight_decay=0.0, batch_size=64, epochs=30, warmup_epochs=1),
            weights="pretrained",
            variants={
                "head": Variant("the classifier trained with augmentation", options={"freeze": -1}, baseline="full"),
                "plain-head": Variant(
                    "the classifier trained without augmentation",
                    options={"freeze": -1},
                    augmentation="none",
                    baseline="full",
                ),
                "logistic": Variant(
                    "logistic regression on the features, solved exactly, in seconds",
                    model="embedding",
                    loss="none",
                    augmentation="none",
                    options={"freeze": -1, "embedding_dim": 0, "normalize": False},
                    predictor="logistic",
                    recipe={"epochs": 0, "warmup_epochs": 0},
                    baseline="full",
                ),
                "full": Variant("full fine-tuning, at a rate that suits it", recipe={"lr": 1e-3, "weight_decay": 0.05}),
            },
            default="head",
        )
    ]
