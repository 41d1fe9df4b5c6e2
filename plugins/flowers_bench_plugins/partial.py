"""What the techniques that train few parameters share: what they are compared with, and how parameters are chosen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flowers_bench import UsageError, Variant

if TYPE_CHECKING:
    from torch import nn

#: Full fine-tuning's recipe: that of `lora`, `prompt-tuning` and `focal-margin`.
FULL = {
    "optimizer": "adamw",
    "lr": 2e-4,
    "layer_decay": 0.75,
    "weight_decay": 0.05,
    "warmup_epochs": 3,
    "epochs": 30,
    "batch_size": 32,
    "clip_norm": 1.0,
}


def baselines() -> dict[str, Variant]:
    """Make the variants that train least and most: the classifier alone, by the technique's recipe, and everything."""
    return {
        "frozen": Variant("linear probe: only the classifier is trained", model="classifier", options={"freeze": -1}),
        "full": Variant("full fine-tuning", model="classifier", options={"freeze": 0}, recipe=FULL),
    }


def train_classifier_and(backbone: nn.Module, chosen: Iterable[nn.Parameter], what: str) -> None:
    """Freeze the backbone but for its classifier and the chosen parameters.

    Raises:
        UsageError: none is chosen; `what` says what they would have been.
    """
    from flowers_bench.backbones import train_only_classifier

    found = list(chosen)
    train_only_classifier(backbone)
    before = sum(parameter.requires_grad for parameter in backbone.parameters())
    for parameter in found:
        parameter.requires_grad_(True)
    if sum(parameter.requires_grad for parameter in backbone.parameters()) == before:
        raise UsageError(
            f"{type(backbone).__name__} has no {what} outside of its classifier. Choose another --backbone."
        )
