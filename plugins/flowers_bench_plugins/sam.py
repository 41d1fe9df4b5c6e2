"""Sharpness-aware minimisation: the weights go down the gradient of the worst point nearby, towards flat minima.

Paper: Foret, Kleiner, Mobahi & Neyshabur 2021, "Sharpness-aware minimization for efficiently improving generalization" (ICLR,
arXiv:2010.01412), algorithm 1 and equation 2.

With weights w, the loss L of a batch, g its gradient at w, and a radius rho:

    e = rho g / |g|                  the norm is over all trained weights together
    w <- w - lr * grad L(w + e)      by the recipe's optimiser; w itself is put back before

A step computes two gradients, and so takes about twice as long.

What differs from the paper: it trains ResNets and PyramidNets by SGD at 32 to 224 px, with rho 0.05 by default and 0.1 on CIFAR-100, and
fine-tunes EfficientNets; here the optimiser is AdamW, as that of the plain twin. The paper computes e on each accelerator's share of a batch
(section 4.1 finds smaller shares better); here it is that of the whole batch, on however many devices. Its weight decay is in L; AdamW's is not. Batch norm
updates its running statistics in both passes, also at w + e, as the authors' code does. Label smoothing is left out. A
pretrained network's classifier starts as a linear probe: at rates that suit what is good already, a fresh one learns too slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import Batch, Option, Recipe, Step, StepContext, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


#: Of variants without pretrained weights.
FROM_SCRATCH = {"classifier_start": "fresh", "lr": 1e-3, "warmup_epochs": 2}


def build_sam(context: StepContext) -> Callable[[Batch], Tensor]:
    """Build the step of algorithm 1."""
    import torch

    rho = context.options.number("rho")

    def step(batch: Batch) -> Tensor:
        loss = batch.loss()
        batch.backward(loss)
        pairs = [(parameter, parameter.grad) for parameter in batch.parameters if parameter.grad is not None]
        graded: list[Tensor] = [parameter for parameter, _ in pairs]
        before = [parameter.detach().clone() for parameter in graded]
        norm = torch.stack([grad.norm() for _, grad in pairs]).norm() + 1e-12
        with torch.no_grad():
            torch._foreach_add_(graded, [rho * grad / norm for _, grad in pairs])
        batch.backward(batch.loss())
        with torch.no_grad():
            torch._foreach_copy_(graded, before)
        batch.update()
        return loss

    return step


@hookimpl
def register_steps() -> list[Step]:
    rho = Option(0.05, "radius in which the worst point is sought", minimum=0, maximum=100, search=(0.01, 0.2))
    return [
        Step(
            "sam",
            "sharpness-aware minimisation: two gradients, one update",
            options={"rho": rho},
            build=build_sam,
            uses_images=False,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="sam",
            summary="sharpness-aware minimisation of all weights",
            papers=("Foret et al. 2021, Sharpness-aware minimization, arXiv:2010.01412",),
            model="classifier",
            loss="cross-entropy",
            augmentation="standard",
            step="sam",
            recipe=Recipe(optimizer="adamw", lr=3e-4, epochs=30, warmup_epochs=0, classifier_start="probe"),
            weights="pretrained",
            variants={
                "sam": Variant("rho 0.05", baseline="plain"),
                "rho0.1": Variant("rho 0.1, the paper's on CIFAR-100", options={"rho": 0.1}, baseline="plain"),
                "scratch": Variant(
                    "from random weights", recipe=FROM_SCRATCH, weights="none", baseline="plain-scratch"
                ),
                "plain": Variant("one gradient a step", step="usual"),
                "plain-scratch": Variant(
                    "one gradient a step, from random weights", recipe=FROM_SCRATCH, weights="none", step="usual"
                ),
            },
            default="sam",
        )
    ]
