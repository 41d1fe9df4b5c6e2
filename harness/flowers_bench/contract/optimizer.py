"""How weights are updated, and how the learning rate goes: what a plugin registers, and what the host has.

A recipe names both. Beside what is registered here, `optimizer` may be any name of timm's. Nothing here imports torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from flowers_bench.contract.options import Options, ReadsOptions
from flowers_bench.contract.technique import Part, Recipe

if TYPE_CHECKING:
    from torch.optim import Optimizer as TorchOptimizer

#: As torch's optimisers take them.
ParameterGroups: TypeAlias = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class OptimizerContext(ReadsOptions):
    """What an optimiser's `build` receives: the recipe, and the optimiser's options."""

    recipe: Recipe
    options: Options


@dataclass(frozen=True)
class Optimizer(Part):
    """Updates weights; a recipe names it.

    Attributes:
        build: makes a `torch.optim.Optimizer` of parameter groups: dicts with `params`, `lr`, `weight_decay`, and `lr_scale`, which
            it must keep. The host sets each group's `lr` before every step. It must skip parameters whose `grad` is None, and its
            `state_dict` must hold tensors and plain values only.
    """

    build: Callable[[OptimizerContext, ParameterGroups], TorchOptimizer] = field(kw_only=True)


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes; a recipe names it.

    Attributes:
        factor: gives the factor on `lr` from the progress after the warm-up, 0 to 1, and the recipe.
        warms_up: whether it begins with a warm-up of its own. Then the recipe's is left out: `warmup_epochs` is 0.
        revision: raised when it would give other numbers.
    """

    name: str
    summary: str
    factor: Callable[[float, Recipe], float]
    warms_up: bool = False
    revision: int = 1


def cosine(progress: float, recipe: Recipe) -> float:
    """Compute half a cosine from 1 to 0 (Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


#: What the host has.
SCHEDULES = (
    Schedule("cosine", "half a cosine to zero", cosine),
    Schedule("constant", "always the same", lambda progress, recipe: 1.0),
)
#: Optimisers that the host builds itself, of torch's; every other one that nobody registers is timm's.
OWN_OPTIMIZERS = ("adam", "adamw", "sgd")
