"""Model soups: the weights of several fine-tuned networks, averaged into one.

Paper: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time" (arXiv:2203.05482), section 2, uniform soup. With theta_1 .. theta_k fine-tuned from one pretrained network, by
other seeds or recipes,

    theta = 1/k sum over i of theta_i

Networks that started from the same weights often lie in one basin of the loss: their average is as good as an ensemble, and
costs as much as one network. Nothing is trained here; what its ingredients took stands in its cost as inherited.

The ingredients are finished trials of the same run store, by their ids, which are part of the soup's identity:

    flowers-bench --plugin transfer/k0 --seeds 5
    flowers-bench --plugin soup --set ingredients=0123456789abcdef,123456789abcdef0 --seeds 1

What differs from the paper: the greedy soup, which adds an ingredient only where validation gains by it, is left out: a model is built
without images. Its ingredients are up to 72 networks of a search; here as many as are named. Running statistics of batch
norms are averaged like weights, where the authors' transformers have none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, UsageError, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn


def build_soup(context: ModelContext) -> nn.Module:
    """Build the network whose weights are the ingredients' mean, frozen. Raises `UsageError` where they are fewer than two, or no
    networks of one kind."""
    import torch

    from flowers_bench.nn import Classifier, freeze

    ids = list(dict.fromkeys(part.strip() for part in context.options.text("ingredients").split(",") if part.strip()))
    if len(ids) < 2:
        raise UsageError(
            "a soup has at least two ingredients: --set ingredients=ID,ID; `flowers-bench leaderboard --trials` shows the ids."
        )
    weights = [context.trial(id).weights() for id in ids]
    model = Classifier(context.backbone.create())
    own = model.state_dict()
    for id, tensors in zip(ids, weights, strict=True):
        if {name: t.shape for name, t in tensors.items()} != {name: t.shape for name, t in own.items()}:
            raise UsageError(
                f"trial {id} is not a plain {context.backbone.name} with a linear classifier: only such networks can be averaged."
            )
    mean = {
        name: torch.stack([tensors[name].double() for tensors in weights]).mean(0).to(weights[0][name].dtype)
        if weights[0][name].is_floating_point()
        else weights[0][name]
        for name in own
    }
    model.load_state_dict(mean)
    freeze(model)
    return model


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "soup",
            "the average of finished trials' networks",
            options={"ingredients": Option("", "ids of finished trials of the same run store, separated by commas")},
            build=build_soup,
        )
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
            variants={"uniform": Variant("all ingredients alike")},
            default="uniform",
        )
    ]
