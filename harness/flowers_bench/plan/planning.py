"""Turn a request into trials: all names are resolved, and what does not fit is refused before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from flowers_bench.contract.dataset import DataRequest, Dataset, DatasetSource, Progress, silent
from flowers_bench.contract.host import Host
from flowers_bench.contract.options import Option, OptionValue, parse_options
from flowers_bench.contract.technique import RECIPE_FIELDS, Recipe
from flowers_bench.data.pixels import stored_side
from flowers_bench.data.shots import few_shot
from flowers_bench.models.backbones import Backbone, check_weights
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.provenance import refuse_seen
from flowers_bench.plan.fitting import (
    Initial,
    backbone_for,
    find_initial,
    refuse_no_probe,
    refuse_no_unlabelled,
    refuse_undescribed,
    that_fits,
    try_building,
    try_sampling,
)
from flowers_bench.plan.request import Loaded, Request, TrialPlan, in_order
from flowers_bench.plan.threads import threads_of_each
from flowers_bench.plan.variants import (
    ChosenParts,
    choose_parts,
    code_of,
    defined_otherwise,
    own_settings,
    refuse_unknown_settings,
    renamed,
    with_recipe,
    without_warmup,
)
from flowers_bench.store.identity import Protocol, Trial
from flowers_bench.store.records import Run
from flowers_bench.training.epochs import has_begin_epoch
from flowers_bench.util.errors import UsageError, unknown_name


def plan(
    host: Host,
    request: Request,
    plugin_files: Sequence[Path],
    progress: Progress = silent,
    loaded: Loaded | None = None,
) -> list[TrialPlan]:
    """Plan the trials of a request, in the order in which they run: all techniques of seed 0, then of seed 1, ...

    Args:
        loaded: what earlier calls for the same plan have read; this call adds its own.

    Raises:
        UsageError: something is unknown, contradicts something else, or does not fit. Nothing has been trained then.
    """
    request = _with_named_data(host, request)
    source, path = find_source(host, request.data)
    names = _with_baselines(host, request.techniques)
    chosen = [choose_parts(host, request, name) for name in [*names, *_floor(host, source, request, names)]]
    request = replace(request, settings=renamed(chosen, request.settings))
    data_options, settings = _split_settings(source, request.settings)
    recipes = [_recipe(source, parts, request, settings) for parts in chosen]
    chosen = [with_recipe(host, parts, recipe, settings) for parts, recipe in zip(chosen, recipes, strict=True)]
    recipes = [without_warmup(parts, recipe) for parts, recipe in zip(chosen, recipes, strict=True)]
    refuse_unknown_settings(chosen, settings)
    own = own_settings(chosen, settings)
    loaded = loaded or Loaded()
    # Mistakes in the weights are found before the data are loaded, which may take a download or minutes of drawing.
    initial = [
        find_initial(request, plugin_files, parts, source, recipe, loaded)
        for parts, recipe in zip(chosen, recipes, strict=True)
    ]
    planned: list[TrialPlan] = []
    for parts, recipe, start, given in zip(chosen, recipes, initial, own, strict=True):
        key = (source.name, path, recipe.image_size, tuple(sorted((k, str(v)) for k, v in data_options.items())))
        if key not in loaded.datasets:
            data = DataRequest(
                request.cache_dir, path, stored_side(recipe.image_size), source.option_values(data_options), progress
            )
            loaded.datasets[key] = source.load(data)
        run = Run(
            data_source=source.name,
            data_path=str(path.resolve()) if path else None,
            cache_dir=str(request.cache_dir.resolve()),
            store=str(request.store.resolve()) if request.store else None,
            plugin_files=[str(file.resolve()) for file in plugin_files],
            threads=request.threads or threads_of_each(request.jobs),
            devices=request.devices,
            device=request.device,
            weights_path=None,
        )
        dataset = few_shot(loaded.datasets[key], request.shots, 0)
        planned += _trials(
            host, replace(request, settings=given), source, parts, start, recipe, dataset, data_options, run
        )
    return in_order(planned)


def one_by_one(host: Host, request: Request) -> list[Request]:
    """Divide the request into one request for each of its techniques, including their baselines, with the settings that each
    takes of it."""
    chosen = [choose_parts(host, request, label) for label in _with_baselines(host, request.techniques)]
    own = own_settings(chosen, renamed(chosen, request.settings))
    return [replace(request, techniques=[parts.label], settings=each) for parts, each in zip(chosen, own, strict=True)]


def searchable(host: Host, request: Request) -> tuple[Recipe, dict[str, Option]]:
    """Give what a search for the request's only technique starts from: its recipe, and its options that declare bounds.

    Options that the variant or the request sets are not searched, because they define what is measured.

    Raises:
        UsageError: as in `plan`.
    """
    request = _with_named_data(host, request)
    source, _ = find_source(host, request.data)
    _, settings = _split_settings(source, request.settings)
    (label,) = request.techniques
    parts = choose_parts(host, request, label)
    recipe = _recipe(source, parts, request, settings)
    parts = with_recipe(host, parts, recipe, settings)
    fixed = {*parts.variant.options, *settings}
    options = {name: option for name, option in parts.options.items() if option.search and name not in fixed}
    return without_warmup(parts, recipe), options


def find_source(host: Host, data: str) -> tuple[DatasetSource, Path | None]:
    """Find the dataset source for `--data`: by its name, the layout of a folder or the extension of a file; and the folder or
    file, or None.

    Raises:
        UsageError: there is no such dataset, folder or file, or no dataset plugin recognises it.
    """
    if data in host.datasets:
        return host.datasets[data].value, None
    path = Path(data).expanduser()
    read = {suffix: entry.value for _, entry in sorted(host.datasets.items()) for suffix in entry.value.files}
    if path.is_file() and path.suffix.lower() in read:
        return read[path.suffix.lower()], path
    if not path.is_dir():
        if path.exists():
            raise UsageError(f"--data {data}: not a folder, and no file of {' or '.join(sorted(read))}.")
        if "/" in data or path.suffix.lower() in read:
            raise UsageError(f"--data {data}: no such folder or file.")
        raise host.unknown("dataset", data, [*host.datasets, "a folder's path", "a table's path"])
    for name in sorted(host.datasets, key=lambda name: (name == "folder", name)):
        source = host.datasets[name].value
        if source.recognises is not None and source.recognises(path):
            return source, path
    raise UsageError(
        f"--data {data}: no dataset plugin recognises this folder. Expected train/ val/ test/ class folders."
    )


def _with_named_data(host: Host, request: Request) -> Request:
    """Turn `--data NAME:TEXT` into the source's name and the options that the text means."""
    name, colon, text = request.data.partition(":")
    source = host.datasets[name].value if colon and name in host.datasets else None
    if source is None or source.named is None:
        return request
    given = {f"data.{key}": value for key, value in source.named(text).items()}
    return replace(request, data=name, settings={**given, **request.settings})


def _split_settings(
    source: DatasetSource, settings: Mapping[str, str]
) -> tuple[dict[str, OptionValue], dict[str, str]]:
    data = {key.removeprefix("data."): value for key, value in settings.items() if key.startswith("data.")}
    for key in data:
        if key not in source.options:
            raise unknown_name(f"option of dataset {source.name}", key, source.options)
    return {**source.defaults(), **data}, {key: value for key, value in settings.items() if not key.startswith("data.")}


def _with_baselines(host: Host, names: Sequence[str]) -> list[str]:
    """Add the variants that names mean: `deformable` is its default variant and its baseline, `deformable/stage4` is itself."""
    found: list[str] = []
    for name in names:
        base, _, variant = name.partition("/")
        technique = host.find("technique", host.techniques, base).value
        chosen, value = technique.variant(variant or None)
        found.append(f"{base}/{chosen}")
        if not variant and value.baseline:
            found.append(f"{base}/{value.baseline}")
    return list(dict.fromkeys(found))


def _floor(host: Host, source: DatasetSource, request: Request, names: Sequence[str]) -> list[str]:
    """Name the dataset's floor where it belongs beside a bare technique: none if it is asked for anyway, or if anything is said
    that it cannot follow, such as another loss."""
    if not request.floor or source.floor is None or source.floor in names:
        return []
    bare = len(request.techniques) == 1 and "/" not in request.techniques[0]
    parts = request.loss or request.augmentation or request.predictor or request.step
    said = request.weights or parts or request.search
    options = [key for key in request.settings if key not in RECIPE_FIELDS and not key.startswith("data.")]
    known = source.floor.partition("/")[0] in host.techniques
    return [source.floor] if bare and known and not said and not options else []


def _recipe(source: DatasetSource, parts: ChosenParts, request: Request, settings: Mapping[str, str]) -> Recipe:
    recipe = parts.technique.recipe.changed(**parts.variant.recipe)
    # A learning rate that somebody has chosen is for the network that it was chosen for.
    if "lr" not in request.recipe:
        recipe = recipe.changed(lr=recipe.lr * source.lr_factors.get(backbone_for(source, parts, request), 1.0))
    recipe = recipe.changed(**{**request.recipe, **source.recipe})
    probed = settings.get("classifier_start", recipe.classifier_start) == "probe"
    most = source.max_epochs_from_probe if probed else source.max_epochs
    if most is not None and recipe.epochs > most and "epochs" not in settings:
        recipe = recipe.changed(epochs=most, warmup_epochs=min(1, recipe.warmup_for(most)))
    given = {key: value for key, value in settings.items() if key in RECIPE_FIELDS}
    changed = recipe.changed(**{"warmup_epochs": 0, **given})
    if "warmup_epochs" not in given:
        changed = changed.changed(warmup_epochs=recipe.warmup_for(changed.epochs))
    return changed


def _trials(
    host: Host,
    request: Request,
    source: DatasetSource,
    parts: ChosenParts,
    start: Initial,
    recipe: Recipe,
    dataset: Dataset,
    data_options: Mapping[str, OptionValue],
    run: Run,
) -> list[TrialPlan]:
    name, given = start.backbone, {**source.settings, **parts.variant.options, **request.settings}
    options = parse_options(parts.options, given)
    backbone = Backbone(name, Weights(), dataset.num_classes, recipe.image_size)
    refuse_undescribed(parts, dataset)
    model = try_building(parts, backbone, dataset, recipe, options, request.store)
    refuse_no_unlabelled(parts, dataset)
    refuse_no_probe(parts, recipe, model)
    weights = that_fits(start.weights, backbone, parts.label)
    notes = [f"weights {weights.name}: {words}" for words in check_weights(weights, name, recipe.image_size).understood]
    if weights.provenance is not None:
        notes = [f"weights {weights.name}: {weights.provenance.summary}", *notes]
        notes += refuse_seen(weights.name, weights.provenance, dataset)
    notes += [] if request.label else defined_otherwise(parts, options)
    may_train = has_begin_epoch(model) or any(parameter.requires_grad for parameter in model.parameters())
    trains = recipe.epochs > 0 and may_train
    try_sampling(parts, dataset, recipe, options, request.devices)
    code = code_of(host, parts, source.name, recipe, model)
    facts = dataset.facts()
    if not host.is_built_in(host.datasets[source.name].plugin):
        facts["options"] = dict(data_options)
    if parts.step.value.unlabelled:
        facts["n_unlabelled"] = len(dataset.unlabelled)
    return [
        TrialPlan(
            Trial(
                model=parts.model.value.name,
                loss=parts.loss.value.name,
                augmentation=parts.augmentation.value.name,
                sampler=parts.loss.value.sampler,
                predictor=parts.predictor.value.name,
                options=options,
                dataset=facts,
                data_options=data_options,
                backbone=name,
                weights=weights.facts(),
                recipe=recipe,
                seed=seed,
                code=code,
                protocol=Protocol(shots=request.shots),
                step=parts.step.value.name,
            ),
            (request.label or parts.as_label,),
            replace(run, weights_path=str(weights.path) if weights.path else None),
            trains,
            sum(parameter.numel() for parameter in model.parameters()),
            tuple(notes),
            trains and parts.augmentation.value.parameters is not None,
        )
        for seed in range(request.seeds)
    ]
