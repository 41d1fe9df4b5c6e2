"""Optimiser, learning rates per parameter group, schedule: what a `Recipe` means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import timm.optim
import torch
from timm.models import group_parameters
from torch import nn

from flowers_bench.contract.optimizer import OWN_OPTIMIZERS, ParameterGroups, Schedule
from flowers_bench.contract.step import take_usual_step
from flowers_bench.contract.technique import Recipe
from flowers_bench.models.network import classifier_names
from flowers_bench.training.epochs import has_begin_epoch
from flowers_bench.util.errors import UsageError, unknown_name

#: Makes an optimiser of parameter groups.
Make = Callable[[ParameterGroups], torch.optim.Optimizer]
#: Names of timm's whose step needs more than gradients.
_UNFIT = ("adahessian",)


def build_optimizer(
    recipe: Recipe, model: nn.Module, criterion: object, step: object = None, make: Make | None = None
) -> torch.optim.Optimizer:
    """Build the recipe's optimiser over everything trainable in the model, the loss and the step, grouped by learning rate and
    weight decay; of a model that may unfreeze (`begin_epoch`), over all of it. Each group has `lr_scale`, the factor on the
    scheduled learning rate.

    Args:
        make: of a registered optimiser; None for torch's and timm's.

    Raises:
        UsageError: `layer_decay` is not 1, and the backbone does not name its layers.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    layer_scales, undecayed, roles = _layer_scales(recipe, model), _never_decayed(model), _classifier_roles(model)
    for name, parameter in _updated(model, criterion, step):
        scale = layer_scales.get(name, 1.0) * _pattern_scale(recipe, name, roles.get(name, name))
        decay = recipe.weight_decay if parameter.ndim > 1 and name not in undecayed else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    arguments = [
        {"params": parameters, "lr": recipe.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    # The fused one refuses parameters that get their first gradient later than others.
    all_at_once = step in (None, take_usual_step) and not has_begin_epoch(model)
    return (make or partial(_make, recipe, fused=all_at_once))(arguments)


def _make(recipe: Recipe, groups: ParameterGroups, *, fused: bool = True) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=0.9, nesterov=True, fused=fused)
    if recipe.optimizer in OWN_OPTIMIZERS:
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        return kind(groups, lr=recipe.lr, fused=True)
    made: torch.optim.Optimizer = timm.optim.create_optimizer_v2(
        list(groups), recipe.optimizer, recipe.lr, recipe.weight_decay
    )
    return made


def check_optimizer(recipe: Recipe, registered: Iterable[str]) -> None:
    """Refuse a name that no plugin registered and that timm does not have, or cannot build here.

    Raises:
        UsageError: the message gives names that are meant, or what is missing.
    """
    name = recipe.optimizer
    if name in OWN_OPTIMIZERS or name in registered:
        return
    known = [*OWN_OPTIMIZERS, *registered, *timm.optim.list_optimizers(exclude_filters=["bnb*", "fused*"])]
    if name not in timm.optim.list_optimizers():
        raise unknown_name("optimizer", name, known)
    if name in _UNFIT:
        raise UsageError(f"optimizer={name}: it needs second derivatives, which no step computes. Choose another.")
    try:
        _make(recipe, [{"params": [nn.Parameter(torch.zeros(2, 2))], "weight_decay": recipe.weight_decay}])
    except Exception as error:  # a package that is missing, or a setting that timm does not give
        raise UsageError(f"optimizer={name} cannot be built here: {type(error).__name__}: {error}") from error


def revision(recipe: Recipe, model: nn.Module) -> int:
    """Give the revision of the rules that group the parameters: 2 where the groups differ from those of the first
    version, which decayed layers by stages and exempted only vectors from weight decay; else 1. It is part of a trial's
    identity where it is not 1. Raises `UsageError` as `build_optimizer` does, so that what cannot be grouped is refused
    when it is planned."""
    exempt = _never_decayed(model)
    decays_otherwise = recipe.weight_decay and any(p.ndim > 1 and name in exempt for name, p in _trainable(model))
    return 2 if _layer_scales(recipe, model) or decays_otherwise else 1


def _trainable(module: object) -> list[tuple[str, nn.Parameter]]:
    if not isinstance(module, nn.Module):
        return []
    return [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]


def _updated(model: nn.Module, criterion: object, step: object) -> list[tuple[str, nn.Parameter]]:
    """List what may be updated, by name, each once: a step may hold the model."""
    found = list(model.named_parameters()) if has_begin_epoch(model) else _trainable(model)
    found += [(f"loss.{n}", p) for n, p in _trainable(criterion)] + [(f"step.{n}", p) for n, p in _trainable(step)]
    return list({id(p): (n, p) for n, p in reversed(found)}.values())[::-1]


def _pattern_scale(recipe: Recipe, *names: str) -> float:
    """Find the factor of the first pattern that matches one of a parameter's names; 1 if none does."""
    matching = (f for pattern, f in recipe.lr_scale.items() if any(fnmatchcase(name, pattern) for name in names))
    return next(matching, 1.0)


def _classifier_roles(model: nn.Module) -> dict[str, str]:
    """Name the parameters of the backbone's classifier by what they are, `classifier.weight`: timm calls it `fc`, `head` or
    otherwise in each family, and a recipe is for any of them."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, nn.Module) or not hasattr(backbone, "default_cfg"):
        return {}
    return {
        f"backbone.{module}.{name}": f"classifier.{name}"
        for module in classifier_names(backbone)
        for name, _ in backbone.get_submodule(module).named_parameters()
    }


def _layer_scales(recipe: Recipe, model: nn.Module) -> dict[str, float]:
    """Compute each parameter's factor from layer-wise decay, by name, as timm's `param_groups_layer_decay` does (after
    BEiT, Bao et al. 2022): 1 for the classifier, `layer_decay` for the last block, its square for the one before, and
    so on down to the embeddings, which are a layer of their own. What a technique adds beside the blocks (prompts) has
    1, what it adds to a block (low-rank updates) has the block's factor."""
    backbone = getattr(model, "backbone", None)
    if recipe.layer_decay == 1.0 or not isinstance(backbone, nn.Module):
        return {}
    matcher: Any = getattr(backbone, "group_matcher", None)
    if matcher is None:
        raise UsageError(
            f"layer_decay={recipe.layer_decay:g}: {type(backbone).__name__} does not tell its layers (timm's group_matcher). "
            "Say --set layer_decay=1."
        )
    layers = group_parameters(backbone, matcher(coarse=False), reverse=True)
    last = max(layers.values())
    return {f"backbone.{name}": recipe.layer_decay ** (last - layer) for name, layer in layers.items()}


def _never_decayed(model: nn.Module) -> set[str]:
    """Name the parameters that the backbone's own recipe exempts from weight decay beside vectors, such as class token
    and position embedding (timm's `no_weight_decay`)."""
    backbone = getattr(model, "backbone", None)
    exempt: Any = getattr(backbone, "no_weight_decay", None)
    if not isinstance(backbone, nn.Module) or exempt is None:
        return set()
    patterns = list(exempt())
    names = [name for name, _ in backbone.named_parameters()]
    return {f"backbone.{name}" for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}


def schedule_factor(recipe: Recipe, progress: float, schedule: Schedule) -> float:
    """Compute the factor on the learning rate after `progress` epochs (a fraction counts): linear warm-up, then the
    schedule."""
    if progress < recipe.warmup_epochs:
        return progress / recipe.warmup_epochs
    remaining = max(1e-12, recipe.epochs - recipe.warmup_epochs)
    return schedule.factor(min(1.0, (progress - recipe.warmup_epochs) / remaining), recipe)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
