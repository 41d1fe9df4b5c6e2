"""Whether what was chosen fits together: backbone and weights, the model built of them, the data and the batches."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from flowers_bench.contract.dataset import Dataset, DatasetSource
from flowers_bench.contract.host import files_of_trial
from flowers_bench.contract.options import Options
from flowers_bench.contract.technique import ModelContext, Recipe
from flowers_bench.data.samplers import SAMPLERS
from flowers_bench.measure.episodic import queries_per_class
from flowers_bench.models.backbones import Backbone, check_backbone, check_beyond, check_image_size, check_weights
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.source import NoNetwork, resolve_weights, weights_on
from flowers_bench.plan.request import Loaded, Request
from flowers_bench.plan.variants import ChosenParts
from flowers_bench.store.folder import Store
from flowers_bench.training.finished import TrialFinder
from flowers_bench.training.probe import linear_classifier
from flowers_bench.util.errors import UsageError, unknown_name

#: Before a trial's id, in `--weights`.
_TRIAL = "trial:"


@dataclass(frozen=True)
class Initial:
    """Where a technique's training starts: the name of a timm model, and the weights that may be meant, of which the first is
    used that fits what the technique makes of it."""

    backbone: str
    weights: tuple[Weights, ...]


def find_initial(
    request: Request,
    plugin_files: Sequence[Path],
    parts: ChosenParts,
    source: DatasetSource,
    recipe: Recipe,
    loaded: Loaded,
) -> Initial:
    """Find the backbone and its weights, and check that they fit each other and the image size."""
    name = backbone_for(source, parts, request)
    check_backbone(name)
    check_image_size(name, recipe.image_size)
    said = request.weights or weights_on(source, parts.variant.weights or parts.technique.weights, name)
    try:
        weights = (
            _of_trial(request, said, plugin_files, loaded) if said.startswith(_TRIAL) else resolve_weights(said, name)
        )
    except NoNetwork as error:
        raise UsageError(f"{parts.label}: {error}\n{_without_weights(parts)}") from error
    check_weights(weights[-1], name, recipe.image_size)
    return Initial(name, tuple(weights))


def backbone_for(source: DatasetSource, parts: ChosenParts, request: Request) -> str:
    """Name the backbone: the one asked for, or the data's stand-in for the technique's."""
    default = parts.variant.backbone or parts.technique.backbone
    return request.backbone or source.backbones.get(default, default)


def _of_trial(request: Request, said: str, plugin_files: Sequence[Path], loaded: Loaded) -> list[Weights]:
    """Find the weights of a finished trial of the run store, which are exported once for a plan. Raises `UsageError`
    where there is none."""
    from flowers_bench.training.initial_weights import weights_of_trial
    from flowers_bench.training.trained import Sources

    if request.store is None:
        raise UsageError(f"--weights {said}: there is no run store to find it in.")
    folder = Store(request.store).find_trained(said.removeprefix(_TRIAL))
    if folder.id not in loaded.weights:
        plugins = files_of_trial(folder.config().code, plugin_files)
        loaded.weights[folder.id] = [weights_of_trial(folder, Sources(plugins, request.cache_dir))]
    return loaded.weights[folder.id]


def _without_weights(parts: ChosenParts) -> str:
    """Name variants that need no weights, for a machine without network: the technique's, else training from scratch."""
    technique = parts.technique
    names = [
        f"{technique.name}/{n}" for n, v in technique.variants.items() if (v.weights or technique.weights) == "none"
    ]
    return f"  --plugin {' or '.join(names[:3]) or 'transfer/scratch'}  which needs no weights"


def that_fits(candidates: Sequence[Weights], built: Backbone, label: str) -> Weights:
    """Choose the first weights whose every tensor the model has that was built, without values, from a backbone, and that have what
    it requires. Raises `UsageError` where the last ones do not fit either."""
    for weights in candidates[:-1]:
        with contextlib.suppress(UsageError):
            check_beyond(weights, built)
            return weights
    try:
        check_beyond(candidates[-1], built)
    except UsageError as error:
        raise UsageError(f"{label}: {error}") from error
    return candidates[-1]


def try_building(
    parts: ChosenParts,
    backbone: Backbone,
    dataset: Dataset,
    recipe: Recipe,
    options: Options,
    store: Path | None,
) -> nn.Module:
    """Build the model without memory for its weights: a misfit with the backbone is found here, not in the trial.

    Raises:
        UsageError: the model cannot be built.
    """
    from flowers_bench.models.meta import without_values

    model = parts.model.value
    values = Options({key: options[key] for key in model.options})
    with without_values():
        try:
            return model.build(
                ModelContext(
                    backbone,
                    dataset.num_classes,
                    recipe.image_size,
                    values,
                    dataset.facts(),
                    store,
                    descriptions=dataset.descriptions,
                    class_names=dataset.class_names,
                    finder=TrialFinder(store, dataset.facts()),
                )
            )
        except UsageError as error:
            raise UsageError(f"{parts.label} does not fit backbone {backbone.name}: {error}") from error
        except Exception as error:  # a mistake in the plugin is reported like any other reason not to start
            raise UsageError(
                f"{parts.label} cannot be built: model {model.name!r} of plugin {parts.model.plugin!r} raised "
                f"{type(error).__name__}: {error}"
            ) from error


def try_sampling(parts: ChosenParts, dataset: Dataset, recipe: Recipe, options: Options, devices: int) -> None:
    """Draw the indices of one batch: a sampler that does not fit the data is refused here, not in the trial.

    Raises:
        UsageError: the sampler is unknown, or the dataset has too few images or classes for its batches.
    """
    sampler = parts.loss.value.sampler
    try:
        if sampler not in SAMPLERS:
            raise unknown_name("sampler", sampler, SAMPLERS)
        labels = np.asarray(dataset.train.labels)
        batch = next(iter(SAMPLERS[sampler](labels, recipe.batch_size, options, np.random.default_rng(0))))
        if len(batch) < devices:
            raise UsageError(f"--devices {devices}: batches of {len(batch)} images cannot be divided among so many.")
        if sampler == "episodes":
            test = np.asarray(dataset.test.labels)
            queries_per_class(test, options.integer("eval_way", 5), options.integer("eval_shot", 5), "the test split")
    except UsageError as error:
        raise UsageError(f"{parts.label} on {dataset.name}: {error}") from error


def refuse_undescribed(parts: ChosenParts, dataset: Dataset) -> None:
    """Refuse a model that reads descriptions of the classes where the data have none. Raises `UsageError`."""
    if "descriptions" in parts.model.value.needs and len(dataset.descriptions) != dataset.num_classes:
        raise UsageError(
            f"{parts.label}: model {parts.model.value.name!r} needs descriptions of the classes, which {dataset.name} does not have. "
            "Choose --data petals, or a plugin's dataset that gives `Dataset.descriptions`."
        )


def refuse_no_unlabelled(parts: ChosenParts, dataset: Dataset) -> None:
    """Refuse a step that learns from images without labels where there are none. Raises `UsageError`."""
    if parts.step.value.unlabelled and not len(dataset.unlabelled):
        raise UsageError(
            f"{parts.label}: step {parts.step.value.name!r} learns from images without labels, and {dataset.name} has none. Give "
            "--shots K: the training images beyond K of each class are then used without their labels."
        )


def refuse_no_probe(parts: ChosenParts, recipe: Recipe, model: nn.Module) -> None:
    """Refuse a start from a linear probe of a model that has no linear classifier. Raises `UsageError`."""
    if recipe.classifier_start == "probe":
        try:
            linear_classifier(model)
        except UsageError as error:
            raise UsageError(f"{parts.label}: {error}") from error
