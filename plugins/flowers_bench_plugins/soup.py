"""Model soups: the weights of several fine-tuned networks, averaged into one.

Paper: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (arXiv:2203.05482), section 2. With theta_1 .. theta_k fine-tuned from one pretrained network, by
other seeds or recipes,

    uniform   theta = 1/k sum over i of theta_i

    greedy    (recipe 1) theta_1 .. theta_k in the order of their accuracy on validation, the best first; S = {}; for i = 1 .. k:
              if  acc(mean of S and theta_i) >= acc(mean of S)  then  S <- S and theta_i;  theta = mean of S

with acc the accuracy on validation images: the test split is not seen. Networks that started from the same weights often lie in one basin of the loss: their average is as good as an ensemble, and
costs as much as one network. Nothing is trained here; what its ingredients took stands in its cost as inherited, those too that
the greedy soup tried and left out; the 2k - 1 passes over validation in its own time.

The ingredients are finished trials of the same run store, by their ids, which are part of the soup's identity:

    flowers-bench --plugin transfer/k0 --seeds 5
    flowers-bench --plugin soup --set ingredients=0123456789abcdef,123456789abcdef0 --seeds 1

What differs from the paper: its ingredients are up to 72 networks of a search; here as many as are named. It holds validation
images out of the training set for choosing; here they are the data's validation split, which has chosen the ingredients' epochs before. Running
statistics of batch norms are averaged like weights, where the authors' transformers have none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, UsageError, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Classifier


def build_soup(context: ModelContext) -> nn.Module:
    """Build the network whose weights are the ingredients' mean, frozen. Raises `UsageError` where they are fewer than two, or no
    networks of one kind."""
    from flowers_bench.nn import Classifier, freeze

    model = Classifier(context.backbone.create())
    model.load_state_dict(mean_of(ingredients_of(context, model)))
    freeze(model)
    return model


def build_greedy_soup(context: ModelContext) -> nn.Module:
    """Build the network whose weights are the mean of those ingredients that validation keeps, frozen; its buffer `kept` (k,) is 1 for
    each of these, in the order of their names. Raises `UsageError` as `build_soup` does."""
    import torch

    from flowers_bench.nn import Classifier, freeze

    class GreedySoup(Classifier):
        only_backbone_sees_images = True

    model = GreedySoup(context.backbone.create())
    weights = ingredients_of(context, model)
    chosen = chosen_by_validation(context, model, weights)
    model.load_state_dict(mean_of([weights[i] for i in chosen]))
    kept = torch.tensor([int(i in chosen) for i in range(len(weights))])
    model.register_buffer("kept", kept)
    freeze(model)
    return model


def ingredients_of(context: ModelContext, model: Classifier) -> list[dict[str, Tensor]]:
    """Read the weights of the trials that `ingredients` names, each once, in that order. Raises `UsageError` where they are fewer than
    two, or one has other tensors than `model`."""
    from flowers_bench.nn import same_shapes

    ids = list(dict.fromkeys(part.strip() for part in context.options.text("ingredients").split(",") if part.strip()))
    if len(ids) < 2:
        raise UsageError(
            "a soup has at least two ingredients: --set ingredients=ID,ID; `flowers-bench leaderboard --trials` shows the ids."
        )
    weights, own = [context.trial(id).weights() for id in ids], model.state_dict()
    for id, tensors in zip(ids, weights, strict=True):
        if not same_shapes(tensors, own):
            raise UsageError(
                f"trial {id} is not a plain {context.backbone.name} with a linear classifier: only such networks can be averaged."
            )
    return weights


def mean_of(weights: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Compute the mean of networks' tensors, by name, in float64; of those that count something, take the first network's."""
    import torch

    first = weights[0]
    return {
        name: torch.stack([tensors[name].double() for tensors in weights]).mean(0).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def chosen_by_validation(
    context: ModelContext, model: Classifier, weights: Sequence[Mapping[str, Tensor]]
) -> list[int]:
    """Choose the greedy soup's ingredients, in the order in which they were added; all of them where there is no validation, and the
    values do not matter. `model` is overwritten."""

    def accuracy(of: Sequence[int]) -> float | None:
        model.load_state_dict(mean_of([weights[i] for i in of]))
        return context.validation_top1(model)

    alone = [accuracy([i]) for i in range(len(weights))]
    scores = [score for score in alone if score is not None]
    if len(scores) < len(weights):
        return list(range(len(weights)))
    order = sorted(range(len(weights)), key=lambda i: -scores[i])  # equal ones stay in the order of their names
    chosen, best = order[:1], scores[order[0]]
    for i in order[1:]:
        found = accuracy([*chosen, i])
        if found is not None and found >= best:
            chosen, best = [*chosen, i], found
    return chosen


@hookimpl
def register_models() -> list[Model]:
    ingredients = {"ingredients": Option("", "ids of finished trials of the same run store, separated by commas")}
    excused = {"model says what it needs": "it takes the one backbone that its ingredients have"}
    return [
        Model(
            "soup", "the average of finished trials' networks", options=ingredients, build=build_soup, excused=excused
        ),
        Model(
            "greedy-soup",
            "the average of those finished trials' networks that validation keeps",
            options=ingredients,
            build=build_greedy_soup,
            excused=excused,
        ),
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="soup",
            summary="the average of several fine-tuned networks' weights, nothing trained",
            papers=(
                "Wortsman et al. 2022, Model soups: averaging weights of multiple fine-tuned models improves accuracy without "
                "increasing inference time, arXiv:2203.05482",
            ),
            model="soup",
            loss="cross-entropy",
            augmentation="none",
            recipe=Recipe(epochs=0, warmup_epochs=0),
            weights="none",
            variants={
                "greedy": Variant("those that validation keeps", model="greedy-soup", baseline="uniform"),
                "uniform": Variant("all ingredients alike"),
            },
            default="greedy",
        )
    ]
