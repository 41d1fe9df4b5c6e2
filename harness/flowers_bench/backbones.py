"""Backbones in a technique's hands, for plugins: their stages, their classifier, what is frozen.

`context.backbone.create()` gives a model's `build` a timm network with its initial weights; these functions look at it and
change it in place. A backbone that does not fit is refused by a `UsageError` that says which ones would. `Backbone` and
`Weights` are what a plugin's own tests build a `ModelContext` with.
"""

from flowers_bench.models.backbones import (
    Backbone,
    Stage,
    freeze_stages,
    mean_and_std,
    replace_classifier,
    stages,
    train_only_classifier,
    vision_transformer,
)
from flowers_bench.models.weights import Weights

__all__ = [
    "Backbone",
    "Stage",
    "Weights",
    "freeze_stages",
    "mean_and_std",
    "replace_classifier",
    "stages",
    "train_only_classifier",
    "vision_transformer",
]
