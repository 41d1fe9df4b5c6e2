"""FixRes: a network that was trained on small images predicts larger ones, after its last layers have been fitted to these.

Paper: Touvron et al. 2019, "Fixing the train-test resolution discrepancy" (arXiv:1906.06423), sections 3 and 4. Training crops show
objects larger than test crops do: a random crop of area sigma of an image is resized to the same S pixels as the whole. A test image
of more pixels than S brings objects back to the size that was trained on, and

    test at S' > S:     theta as trained at S                        the pooled features then have another distribution: sparser
    fine-tune at S':    phi <- argmin over phi of  sum of H(y, p(e(x); theta, phi))    which is mended by
    phi                 the classifier, and the batch norm before the global pooling (scale, shift and running statistics)
    e(x)                the evaluation crop at S', as the test will show it, without augmentation ("test DA")

H is cross-entropy. Everything before phi stays frozen, so that this is a few short epochs. The network comes from a finished trial of
the same run store, whose id is part of this trial's identity, and whose time stands in the cost as inherited:

    flowers-bench --plugin transfer/k0 --set image_size=48 --seeds 1
    flowers-bench --plugin fixres --set trained=0123456789abcdef --set image_size=64 --seeds 1

What differs from the paper: it fine-tunes on ImageNet by SGD at 0.001, for batches of 512 images; here by SGD with Nesterov's momentum
at 0.01, for batches of 32 and 20 epochs with a cosine, since a few hundred images make few steps. The batch norm "before the global pooling" is the last one that no shortcut holds; `tuned=all-norms` fits every batch norm. Networks
without any, such as transformers, can have their classifier fitted (`tuned=classifier`), where their layers take images of both sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, UsageError, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from flowers_bench.nn import Classifier

#: What may be fitted at the larger size.
LAST_NORM, ALL_NORMS, CLASSIFIER, NOTHING = "last-norm", "all-norms", "classifier", "nothing"
#: How timm's networks call what leads past a block.
SHORTCUTS = ("downsample", "shortcut")


def build_fixres(context: ModelContext) -> nn.Module:
    """Build a finished trial's network for larger images, with what `tuned` names to be trained.

    Raises:
        UsageError: there is no such trial, it is no plain network of this kind, or its images were as large already.
    """
    from flowers_bench.nn import Classifier

    model = Classifier(context.backbone.create())
    load_smaller(context, model)
    train_only(model, context.options.text("tuned"), context.backbone.name)
    return model


def load_smaller(context: ModelContext, model: Classifier) -> None:
    """Load the weights of the trial that `trained` names. Raises `UsageError` as `build_fixres` does."""
    from flowers_bench.nn import same_shapes

    id = context.options.text("trained")
    if not id:
        raise UsageError(
            "fixres starts from a network that was trained on smaller images: --set trained=ID; `flowers-bench leaderboard --trials` "
            "shows the ids."
        )
    trial = context.trial(id)
    if trial.image_size >= context.image_size:
        raise UsageError(
            f"trial {id} was trained on images of {trial.image_size} px, and here they have {context.image_size}: larger ones are "
            f"needed. Train it on smaller ones, or raise --set image_size={2 * trial.image_size}, say."
        )
    tensors, own = trial.weights(), model.state_dict()
    if not same_shapes(tensors, own):
        raise UsageError(
            f"trial {id} is not a plain {context.backbone.name} with a linear classifier that takes images of both "
            f"{trial.image_size} and {context.image_size} px. Name a trial of transfer/k0, say; of transformers, position embeddings have "
            "one size."
        )
    model.load_state_dict(tensors)


def train_only(model: Classifier, tuned: str, name: str) -> None:
    """Freeze all but what `tuned` names. Raises `UsageError` if the network has no batch norm, and one is to be trained."""
    from flowers_bench.backbones import train_only_classifier
    from flowers_bench.nn import freeze

    if tuned == NOTHING:
        freeze(model)
        return
    train_only_classifier(model.backbone)
    norms = batch_norms(model.backbone)
    if tuned != CLASSIFIER and not norms:
        raise UsageError(
            f"{name} has no batch norm to fit. Say --set tuned={CLASSIFIER}, or choose another --backbone."
        )
    for norm in {LAST_NORM: norms[-1:], ALL_NORMS: norms, CLASSIFIER: []}[tuned]:
        norm.requires_grad_(True)


def batch_norms(backbone: nn.Module) -> Sequence[nn.Module]:
    """List the batch norms, those in shortcuts first; the last one is that before the global pooling."""
    from torch.nn.modules.batchnorm import _BatchNorm

    found = [(name, module) for name, module in backbone.named_modules() if isinstance(module, _BatchNorm)]
    beside = {name for name, _ in found if any(part in SHORTCUTS for part in name.split("."))}
    return [module for _, module in sorted(found, key=lambda one: one[0] not in beside)]


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "fixres",
            "a finished trial's network on larger images, its last layers fitted to these",
            options={
                "trained": Option("", "id of a finished trial of the same run store, on smaller images"),
                "tuned": Option(
                    LAST_NORM, "what is fitted to them", choices=(LAST_NORM, ALL_NORMS, CLASSIFIER, NOTHING)
                ),
            },
            build=build_fixres,
            excused={"model says what it needs": "it takes the one backbone that the trial has"},
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    untrained = {"epochs": 0, "warmup_epochs": 0}
    return [
        Technique(
            name="fixres",
            summary="a network trained on small images predicts larger ones, its last layers fitted to these",
            papers=("Touvron et al. 2019, Fixing the train-test resolution discrepancy, arXiv:1906.06423",),
            model="fixres",
            loss="cross-entropy",
            augmentation="none",
            recipe=Recipe(optimizer="sgd", lr=1e-2, weight_decay=1e-4, epochs=20, warmup_epochs=0),
            weights="none",
            variants={
                "last-norm": Variant(
                    "classifier and last batch norm fitted", options={"tuned": LAST_NORM}, baseline="larger"
                ),
                "all-norms": Variant(
                    "classifier and all batch norms fitted", options={"tuned": ALL_NORMS}, baseline="larger"
                ),
                "classifier": Variant("the classifier fitted", options={"tuned": CLASSIFIER}, baseline="larger"),
                "larger": Variant("larger images, nothing fitted", options={"tuned": NOTHING}, recipe=untrained),
            },
            default="last-norm",
        )
    ]
