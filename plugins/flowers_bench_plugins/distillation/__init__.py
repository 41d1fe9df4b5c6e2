"""Distillation: a small network learns what a trained one thinks of each image, wrong answers included.

Paper: Hinton, Vinyals & Dean 2015, "Distilling the knowledge in a neural network" (arXiv:1503.02531), section 2.
With student logits z, teacher logits v, temperature T, weight a:

    L = a T^2 KL(softmax(v / T) || softmax(z / T)) + (1 - a) CE(z, y)

A high temperature shows how the teacher ranks the wrong classes, which a label does not. T^2 undoes the 1 / T^2 by
which the temperature shrinks the gradients (section 2.1), so that a means the same at every T. The paper writes the
first term as a cross-entropy with soft targets: the same but for the teacher's entropy, which is constant.

The teacher is a finished trial of the same run store, by its id, which is thereby part of the student's own identity:

    flowers-bench run --plugin distillation --set teacher=0123456789abcdef ...

It must have been trained on the same dataset and the same split, or images that it trained on could be among those
that judge the student. It sees the student's images, augmented alike (Beyer et al. 2022, arXiv:2106.05237: "a good
teacher is patient and consistent"), resized and normalised to what it was trained with.

What differs from the paper: the paper names no a, only a "considerably lower" weight for the labels, which is 0.1 here;
its temperatures are 1 to 20, and 4 is ours. Its students are smaller networks of the teacher's kind, on digits and
speech; here the student is pretrained like its teacher and may be of any kind. Beyer's patience is thousands of epochs,
here it is 60.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flowers_bench import (
    Loss,
    LossContext,
    Model,
    ModelContext,
    Option,
    Recipe,
    Technique,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output


def build_distilled(context: ModelContext) -> nn.Module:
    """Build the student, with the teacher beside it where the loss uses it. Raises `UsageError` if that trial cannot
    teach."""
    from flowers_bench.backbones import mean_and_std
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.distillation.layers import Distilled
    from flowers_bench_plugins.distillation.teacher import find_teacher

    teacher = find_teacher(context)
    backbone = context.backbone.create()
    if context.options.number("distill_weight") == 0:
        return Classifier(backbone)
    mean, std = mean_and_std(backbone)
    return Distilled(backbone, partial(teacher.logits, mean=mean, std=std))


def build_distillation(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build L above; targets are hard (N,) or soft (N, C)."""
    from flowers_bench_plugins.distillation.loss import distillation

    options = context.options
    return partial(distillation, weight=options.number("distill_weight"), temperature=options.number("temperature"))


WEIGHT = Option(0.9, "a, the teacher's share of the loss; 0: no teacher", minimum=0, maximum=1, search=(0.5, 1.0))


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "distilled",
            "any timm backbone with a linear classifier, beside a trained network",
            options={
                "teacher": Option("", "id of a finished trial of the same run store"),
                "distill_weight": WEIGHT,
            },
            build=build_distilled,
            provides=frozenset({"logits", "embedding", "teacher"}),
        )
    ]


@hookimpl
def register_losses() -> list[Loss]:
    return [
        Loss(
            "distillation",
            "agreement with a teacher's softened predictions, and cross-entropy",
            needs=frozenset({"logits", "teacher"}),
            options={
                "distill_weight": WEIGHT,
                "temperature": Option(
                    4.0, "T, how much the predictions are softened", minimum=0.01, maximum=1000, search=(1.0, 10.0)
                ),
            },
            build=build_distillation,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="distillation",
            summary="a network learns from the predictions of a finished trial",
            papers=("Hinton et al. 2015, Distilling the knowledge in a neural network, arXiv:1503.02531",),
            model="distilled",
            loss="distillation",
            augmentation="standard",
            # The paper gives no recipe for small image sets; its temperatures are 1 to 20. Patience pays (Beyer 2022).
            recipe=Recipe(optimizer="adamw", lr=1e-3, epochs=60, warmup_epochs=3),
            backbone="resnet18",
            weights="pretrained",
            variants={
                "hinton": Variant("nine tenths teacher, temperature 4", baseline="alone"),
                "soft-only": Variant("the teacher alone, no labels", options={"distill_weight": 1.0}, baseline="alone"),
                **{
                    f"t{t:g}": Variant(f"temperature {t:g}", options={"temperature": t}, baseline="alone")
                    for t in (1.0, 2.0, 10.0, 20.0)
                },
                # The temperature is given so that no search tries others: without a teacher it has no effect.
                "alone": Variant(
                    "the same student without a teacher", options={"distill_weight": 0.0, "temperature": 4.0}
                ),
            },
            default="hinton",
        )
    ]
