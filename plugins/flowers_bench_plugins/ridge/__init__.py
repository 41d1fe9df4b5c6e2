"""Ridge regression on frozen features: least squares with a penalty, solved in closed form.

Papers: Hoerl & Kennard 1970, "Ridge regression: biased estimation for nonorthogonal problems"
(doi:10.1080/00401706.1970.10488634), equation 2.1; Bertinetto et al. 2019, "Meta-learning with differentiable closed-form
solvers" (arXiv:1805.08136), section 3.2, who classify images of few examples by it.

With f the frozen features, standardised, of N training images, and Y their labels, 1 for an image's class and -1 for the
others, the regression minimises

    mean over i of  |W f(x_i) + b - Y_i|^2  +  l2 |W|^2

which one linear system solves: W = (F^T F + N l2 I)^-1 F^T Y, with F's and Y's columns centred, and b the mean of Y. The
largest of the C outputs is the class. It takes a moment where logistic regression (`linear-probe/logistic`) iterates, and
has as little to choose: no seed, rate or schedule.

What differs from the paper: Bertinetto learns the features by differentiating through the solution, and a scale and a bias
that make its outputs logits; here the features stay as they are, and the outputs are no probabilities until temperature
scaling makes some of them. The bias is not penalised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Features, Option, Predictor, PredictorContext, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench.nn import Output


def fit_ridge(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Fit the regression (W, b) on the training split."""
    from flowers_bench_plugins.ridge.predictor import fit_ridge

    return fit_ridge(context, features)


@hookimpl
def register_predictors() -> list[Predictor]:
    penalty = Option(0.1, "weight of the squared coefficients' penalty", minimum=0, maximum=1e6, search=(1e-3, 10.0))
    return [
        Predictor(
            "ridge",
            "ridge regression on the training split's embeddings",
            options={"ridge_l2": penalty},
            fit=fit_ridge,
            probabilities=False,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="ridge",
            summary="ridge regression on frozen features, solved in closed form",
            papers=(
                "Hoerl & Kennard 1970, Ridge regression: biased estimation for nonorthogonal problems, "
                "doi:10.1080/00401706.1970.10488634",
                "Bertinetto et al. 2019, Meta-learning with differentiable closed-form solvers, arXiv:1805.08136",
            ),
            model="frozen-features",
            loss="none",
            augmentation="none",
            recipe=Recipe(epochs=0, warmup_epochs=0),
            weights="pretrained",
            variants={
                "ridge": Variant("ridge regression", predictor="ridge", baseline="nearest-mean"),
                "nearest-mean": Variant("the nearest class mean", predictor="nearest-mean"),
            },
            default="ridge",
        )
    ]
