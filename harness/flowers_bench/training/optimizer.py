"""Optimiser, learning rates per parameter group, schedule: what a `Recipe` means."""

from __future__ import annotations

import math
from fnmatch import fnmatchcase

import torch
from torch import nn

from flowers_bench.backbone import stages
from flowers_bench.technique import Recipe


def build_optimizer(recipe: Recipe, model: nn.Module, criterion: object) -> torch.optim.Optimizer:
    """The recipe's optimiser over everything trainable in the model and in the loss, grouped by learning rate
    and weight decay. Each group has `lr_scale`, the factor on the scheduled learning rate."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    depth_scale = _depth_scales(recipe, model)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if isinstance(criterion, nn.Module):
        named += [(f"loss.{n}", p) for n, p in criterion.named_parameters() if p.requires_grad]
    for name, parameter in named:
        scale = depth_scale.get(name, 1.0) * _pattern_scale(recipe, name)
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    arguments = [
        {"params": parameters, "lr": recipe.lr * scale, "lr_scale": scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(arguments, lr=recipe.lr, momentum=0.9, nesterov=True, fused=True)
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    return kind(arguments, lr=recipe.lr, fused=True)


def _pattern_scale(recipe: Recipe, name: str) -> float:
    return next((factor for pattern, factor in recipe.lr_scale.items() if fnmatchcase(name, pattern)), 1.0)


def _depth_scales(recipe: Recipe, model: nn.Module) -> dict[str, float]:
    """Factor per parameter name from layer-wise decay: the last stage has `layer_decay`, the one before its square."""
    backbone = getattr(model, "backbone", None)
    if recipe.layer_decay == 1.0 or not isinstance(backbone, nn.Module):
        return {}
    found = stages(backbone)
    return {
        f"backbone.{module}.{name}".replace("..", "."): recipe.layer_decay ** (len(found) - index)
        for index, stage in enumerate(found)
        for module in stage.modules
        for name, _ in backbone.get_submodule(module).named_parameters(recurse=False)
    }


def schedule_factor(recipe: Recipe, progress: float) -> float:
    """Factor on the learning rate after `progress` epochs (a fraction counts): linear warm-up, then cosine to zero
    (Loshchilov & Hutter 2017, arXiv:1608.03983) or constant."""
    if progress < recipe.warmup_epochs:
        return progress / recipe.warmup_epochs
    if recipe.schedule == "constant":
        return 1.0
    remaining = max(1e-12, recipe.epochs - recipe.warmup_epochs)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - recipe.warmup_epochs) / remaining)))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group `lr` times its own factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
