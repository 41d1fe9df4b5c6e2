"""Unfreezing: a pretrained network is trained from its classifier downwards, so that what it knows is not torn down at once.

Papers: Kumar et al. 2022, "Fine-tuning can distort pretrained features and underperform out-of-distribution"
(arXiv:2202.10054), section 3.4; Howard & Ruder 2018, "Universal language model fine-tuning for text classification" (ULMFiT,
arXiv:1801.06146), sections 3.2 and 3.3.

A new classifier's first gradients are large and say little. Sent through the whole network, they change features that were good.

- `lp-ft`: the first part of the epochs trains the classifier alone (linear probing), the rest everything (fine-tuning):

      trained in epoch e of E:   the classifier                for e <= share * E
                                 everything                    after that

  or, in `solved`, the classifier starts as the logistic regression on the pretrained features, and everything is trained from there;

- `gradual-unfreezing`: the first epoch trains the classifier alone, and each further one a stage more, from the last to the
  first; `discriminative` also has rates that fall with depth, by a factor for each layer.

What differs from the paper: Kumar probes and fine-tunes in two trainings with a schedule and a rate each, chosen on validation data;
here `half` and `quarter` are one training with one schedule, in which the classifier has ten times the rate of the rest, as its
baseline's has; `solved` is Kumar's order, its penalty and rates not chosen for each data set. ULMFiT
unfreezes the layers of a language model, an LSTM; here a stage is what timm calls one. Its rates fall by 2.6 for each of
three layers; here by 1 / 0.7 for each of the many that timm tells. Its slanted triangular schedule is a cosine here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build_lp_ft(context: ModelContext) -> nn.Module:
    """Build a classifier whose backbone is frozen for the first `probe_share` of the epochs, rounded."""
    from flowers_bench.backbones import train_only_classifier
    from flowers_bench.nn import Classifier

    share = context.options.number("probe_share")

    class ProbedFirst(Classifier):
        only_backbone_sees_images = True

        def begin_epoch(self, epoch: int, epochs: int) -> None:
            """Freeze all but the classifier while it is probed."""
            self.backbone.requires_grad_(True)
            if epoch <= round(share * epochs):
                train_only_classifier(self.backbone)

    return ProbedFirst(context.backbone.create())


def build_gradual(context: ModelContext) -> nn.Module:
    """Build a classifier of which each epoch trains one stage more, from the last. Raises `UsageError` if the backbone has no
    stages."""
    from flowers_bench.backbones import freeze_stages, stages, train_only_classifier
    from flowers_bench.nn import Classifier

    class UnfrozenGradually(Classifier):
        only_backbone_sees_images = True

        def begin_epoch(self, epoch: int, epochs: int) -> None:
            """Freeze what has not had its turn."""
            self.backbone.requires_grad_(True)
            if epoch == 1:
                train_only_classifier(self.backbone)
            else:
                freeze_stages(self.backbone, max(0, len(stages(self.backbone)) - (epoch - 1)))

    backbone = context.backbone.create()
    stages(backbone)
    return UnfrozenGradually(backbone)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "lp-ft",
            "a backbone whose classifier is trained alone first",
            options={
                "probe_share": Option(
                    0.5, "share of the epochs that train the classifier alone", minimum=0, maximum=1, search=(0.1, 0.9)
                )
            },
            build=build_lp_ft,
        ),
        Model(
            "gradual-unfreezing",
            "a backbone of which each epoch trains one stage more, from the last",
            needs=frozenset({"stages"}),
            build=build_gradual,
        ),
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    recipe = Recipe(optimizer="adamw", lr=1e-3, lr_scale={"classifier.*": 10.0}, epochs=20, warmup_epochs=1)
    full = Variant("everything trained from the first epoch", model="classifier", options={"freeze": 0})
    return [
        Technique(
            name="lp-ft",
            summary="the classifier first, then everything",
            papers=(
                "Kumar et al. 2022, Fine-tuning can distort pretrained features and underperform out-of-distribution, arXiv:2202.10054",
            ),
            model="lp-ft",
            loss="cross-entropy",
            augmentation="standard",
            recipe=recipe,
            weights="pretrained",
            variants={
                "half": Variant("half of the epochs for the classifier", options={"probe_share": 0.5}, baseline="full"),
                "quarter": Variant("a quarter of them", options={"probe_share": 0.25}, baseline="full"),
                "solved": Variant(
                    "the classifier solved exactly, then everything trained",
                    model="classifier",
                    options={"freeze": 0},
                    recipe={"classifier_start": "probe", "lr": 3e-4, "lr_scale": {}, "warmup_epochs": 0},
                    baseline="full",
                ),
                "full": full,
            },
            default="half",
        ),
        Technique(
            name="gradual-unfreezing",
            summary="one stage more in each epoch, from the last",
            papers=(
                "Howard & Ruder 2018, Universal language model fine-tuning for text classification, arXiv:1801.06146",
            ),
            model="gradual-unfreezing",
            loss="cross-entropy",
            augmentation="standard",
            recipe=recipe,
            weights="pretrained",
            variants={
                "gradual": Variant("one rate for all stages", baseline="full"),
                "discriminative": Variant(
                    "rates that fall with depth", recipe={"layer_decay": 0.7}, baseline="full-discriminative"
                ),
                "full": full,
                "full-discriminative": Variant(
                    "everything from the first epoch, rates that fall with depth",
                    model="classifier",
                    options={"freeze": 0},
                    recipe={"layer_decay": 0.7},
                ),
            },
            default="gradual",
        ),
    ]
