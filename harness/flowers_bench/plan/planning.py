"""Turn a request into trials: all names are resolved, and what does not fit is refused before anything is trained."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from flowers_bench.contract.dataset import DataRequest, Dataset, DatasetSource, Progress, silent
from flowers_bench.contract.host import Host, Registered, files_of_trial
from flowers_bench.contract.optimizer import Optimizer, Schedule
from flowers_bench.contract.options import Option, Options, OptionValue, parse_options
from flowers_bench.contract.predictor import CLASSIFIER, Predictor
from flowers_bench.contract.step import Step
from flowers_bench.contract.technique import (
    RECIPE_FIELDS,
    Augmentation,
    Loss,
    Model,
    ModelContext,
    Recipe,
    Technique,
    Variant,
)
from flowers_bench.data.pixels import stored_side
from flowers_bench.data.samplers import SAMPLERS
from flowers_bench.data.shots import few_shot
from flowers_bench.measure.episodic import queries_per_class
from flowers_bench.models.backbones import Backbone, check_backbone, check_beyond, check_image_size, check_weights
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.provenance import refuse_seen
from flowers_bench.models.weights.source import NoNetwork, resolve_weights, weights_on
from flowers_bench.store.folder import Store, config_of, under_name
from flowers_bench.store.identity import Label, Protocol, Trial
from flowers_bench.store.records import Config, Run
from flowers_bench.training import optimizer
from flowers_bench.training.epochs import has_begin_epoch
from flowers_bench.training.finished import TrialFinder
from flowers_bench.util.errors import UsageError, unknown_name
from flowers_bench.util.system import available_cores

#: At most so many parameters, and images of at most so many pixels a side, make a small network: see `at_once`.
SMALL, SMALL_SIDE = 2_000_000, 96
#: Before a trial's id, in `--weights`.
_TRIAL = "trial:"


@dataclass(frozen=True)
class Request:
    """What the user asks for; None means the technique's or dataset's default.

    Attributes:
        techniques: `NAME` or `NAME/VARIANT`; a bare name brings the technique's baseline along, in a list too.
        data: dataset name or path.
        seeds: how many seeds; they count from 0.
        settings: the values of `--set`: recipe fields, options of parts, and `data.KEY` for the dataset.
        store: where the trials will be kept, for techniques that build on finished ones.
        shots: training images of each class; None for all of them.
        search: how many configurations `search.search` is to try for each technique; `plan` plans the recipes as they are.
        jobs: how many trials will run at once; the processor's threads are divided among them.
        threads: threads of each trial. If None, `OMP_NUM_THREADS` is used where it is set, else that share.
        devices: how many devices each trial is divided among. The number is not in the trial's id, because its batches
            stay the same.
        device: what trials compute on, one of `DEVICES`; None for CUDA where there is it, else the processor.
        recipe: fields that replace those of the technique and the variant. The dataset's recipe and `settings` replace
            these in turn.
        label: what a suite calls these trials; None for `technique/variant`.
        floor: whether a bare technique brings the dataset's floor along too, where nothing is said that the floor cannot follow.
    """

    techniques: Sequence[str]
    data: str
    cache_dir: Path
    seeds: int
    backbone: str | None = None
    weights: str | None = None
    loss: str | None = None
    augmentation: str | None = None
    predictor: str | None = None
    step: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    store: Path | None = None
    shots: int | None = None
    search: int = 0
    jobs: int = 1
    threads: int | None = None
    devices: int = 1
    device: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    label: Label | None = None
    floor: bool = False

    @property
    def title(self) -> str:
        """The names of the request's trials, in one text."""
        return self.label.text if self.label else " ".join(self.techniques)


@dataclass(frozen=True)
class TrialPlan:
    """A trial, what it is called, and where it finds what it needs on this machine.

    Attributes:
        labels: the trial's names, at least one. There are several if several requested variants mean this one training.
        run: the content of `run.json`, as far as it is known before the trial runs.
        trains: whether any optimiser step is taken. If not, only the image size of the recipe matters.
        parameters: how many the model has.
        notes: how the weight file was understood, and which settings leave it alone; printed before the trial runs.
        draws: whether its training images are drawn by parameters.
    """

    trial: Trial
    labels: tuple[Label, ...]
    run: Run
    trains: bool = True
    parameters: int = 0
    notes: tuple[str, ...] = ()
    draws: bool = False

    @property
    def label(self) -> str:
        """The trial's names, `technique/variant`, with `=` between them."""
        return " = ".join(label.text for label in self.labels)

    def described(self) -> Config:
        """Give the trial's `config.json` with the technique and variant of its first name, as `TrialFolder.described` does."""
        return under_name(config_of(self.trial), self.labels[0])


@dataclass
class Loaded:
    """What was read for a plan, which several calls share.

    Attributes:
        datasets: by their source, folder, input size and options.
        weights: of finished trials, exported, by the trial's id.
    """

    datasets: dict[tuple[object, ...], Dataset] = field(default_factory=dict)
    weights: dict[str, list[Weights]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Initial:
    """Where a technique's training starts: the name of a timm model, and the weights that may be meant, of which the first is
    used that fits what the technique makes of it."""

    backbone: str
    weights: tuple[Weights, ...]


@dataclass(frozen=True)
class _Parts:
    technique: Technique
    variant_name: str
    variant: Variant
    model: Registered[Model]
    loss: Registered[Loss]
    augmentation: Registered[Augmentation]
    predictor: Registered[Predictor]
    step: Registered[Step]
    optimizer: Registered[Optimizer] | None = None
    schedule: Registered[Schedule] | None = None

    @property
    def in_use(self) -> list[Registered[Any]]:
        """Everything that was registered and takes part."""
        found = [self.model, self.loss, self.augmentation, self.predictor, self.step, self.optimizer, self.schedule]
        return [part for part in found if part is not None]

    @property
    def label(self) -> str:
        """`technique/variant`."""
        return self.as_label.text

    @property
    def as_label(self) -> Label:
        """The name of the trials, with the name of their baseline."""
        baseline = f"{self.technique.name}/{self.variant.baseline}" if self.variant.baseline else None
        return Label(self.technique.name, self.variant_name, baseline)


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
    chosen = [_parts(host, request, name) for name in [*names, *_floor(host, source, request, names)]]
    request = replace(request, settings=_renamed(chosen, request.settings))
    data_options, settings = _split_settings(source, request.settings)
    recipes = [_recipe(source, parts, request, settings) for parts in chosen]
    chosen = [_with_recipe(host, parts, recipe, settings) for parts, recipe in zip(chosen, recipes, strict=True)]
    recipes = [_without_warmup(parts, recipe) for parts, recipe in zip(chosen, recipes, strict=True)]
    _refuse_unknown_settings(chosen, settings)
    own = _own_settings(chosen, settings)
    loaded = loaded or Loaded()
    # Mistakes in the weights are found before the data are loaded, which may take a download or minutes of drawing.
    initial = [
        _initial(request, plugin_files, parts, source, recipe, loaded)
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
    chosen = [_parts(host, request, label) for label in _with_baselines(host, request.techniques)]
    own = _own_settings(chosen, _renamed(chosen, request.settings))
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
    parts = _parts(host, request, label)
    recipe = _recipe(source, parts, request, settings)
    parts = _with_recipe(host, parts, recipe, settings)
    fixed = {*parts.variant.options, *settings}
    options = {name: option for name, option in _options(parts).items() if option.search and name not in fixed}
    return _without_warmup(parts, recipe), options


def in_order(planned: Iterable[TrialPlan]) -> list[TrialPlan]:
    """Keep each trial once, with all its names, and sort by seed, so that who stops early has complete comparisons."""
    unique: dict[str, TrialPlan] = {}
    for item in planned:
        before = unique[item.trial.id].labels if item.trial.id in unique else ()
        unique[item.trial.id] = replace(item, labels=tuple(dict.fromkeys((*before, *item.labels))))
    return sorted(unique.values(), key=lambda item: item.trial.seed)


def threads_of_environment() -> int | None:
    """Read `OMP_NUM_THREADS`; of a list, which OpenMP allows, take the first number. None if it is not set."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return (int(first) or None) if first.isdecimal() else None


def _share_of_threads(jobs: int) -> int | None:
    """Compute the threads of each of `jobs` trials that run at once; None (torch chooses) if there is only one."""
    return max(1, available_cores() // jobs) if jobs > 1 else None


def side_by_side(planned: Sequence[TrialPlan]) -> tuple[int, list[TrialPlan]]:
    """Choose how many trials run at once, and divide the processor's threads among them."""
    device = planned[0].run.device
    jobs = min(at_once(len(planned), i.parameters, i.trial.recipe.image_size, device) for i in planned)
    share = _share_of_threads(jobs)
    return jobs, [replace(i, run=replace(i.run, threads=i.run.threads or share)) for i in planned]


def at_once(trials: int, parameters: int, image_size: int, device: str | None) -> int:
    """Choose how many of so many trials of one network run at once.

    One for each core where the network is `SMALL`: a batch of such a network does not keep two threads busy. Else one,
    and where there is a GPU.
    """
    from flowers_bench.training.process import choose_device

    small = parameters <= SMALL and image_size <= SMALL_SIDE and choose_device(device).type == "cpu"
    return max(1, min(available_cores() if small else 1, trials))


def threads_of_each(jobs: int) -> int | None:
    """Give the threads of each of so many trials that run at once where nobody says how many; None where torch chooses."""
    return threads_of_environment() or _share_of_threads(jobs)


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


def _parts(host: Host, request: Request, name: str) -> _Parts:
    base, _, variant_name = name.partition("/")
    technique = host.find("technique", host.techniques, base).value
    variant_name, variant = technique.variant(variant_name)
    model = host.find("model", host.models, variant.model or technique.model)
    loss = host.find("loss", host.losses, request.loss or variant.loss or technique.loss)
    augmentation = host.find(
        "augmentation",
        host.augmentations,
        request.augmentation or variant.augmentation or technique.augmentation,
    )
    meant = request.predictor or (variant.predictor if not request.loss else None) or loss.value.predictor
    predictor = host.find("predictor", host.predictors, meant)
    step = host.find("step", host.steps, request.step or variant.step or technique.step)
    parts = _Parts(technique, variant_name, variant, model, loss, augmentation, predictor, step)
    _refuse_misfits(parts)
    return parts


def _refuse_misfits(parts: _Parts) -> None:
    """Refuse a loss, predictor, step or augmentation that needs what the model and the augmentation do not provide."""
    model, loss, augmentation = parts.model.value, parts.loss.value, parts.augmentation.value
    predictor = parts.predictor.value
    if predictor.name == CLASSIFIER.name and "logits" not in model.provides:
        raise UsageError(
            f"{parts.label}: predicts by its classifier, and model {model.name!r} has none. Choose another --predictor, or "
            "another --loss, such as one that predicts by neighbours or class means."
        )
    for need in sorted(predictor.needs - model.provides):
        raise UsageError(
            f"{parts.label}: predictor {predictor.name!r} needs {need}, which model {model.name!r} does not provide (it "
            f"provides {', '.join(sorted(model.provides))}). Choose another --predictor."
        )
    provided = model.provides | augmentation.offers()
    for part in (loss, parts.step.value):
        for need in sorted(part.needs - provided):
            by_images = need.endswith("_targets") or need == "second_view"
            giver, gives = (augmentation, augmentation.offers()) if by_images else (model, model.provides)
            kind = type(part).__name__.lower()
            raise UsageError(
                f"{parts.label}: {kind} {part.name!r} needs {need}, which "
                f"{type(giver).__name__.lower()} {giver.name!r} does not provide (it provides {', '.join(sorted(gives))}). "
                f"Choose another --{kind} or --augmentation; `flowers-bench list` shows what each needs."
            )
    if "soft_targets" in augmentation.provides and loss.sampler != "shuffled":
        raise UsageError(
            f"loss {loss.name!r} draws {loss.sampler} batches by class, which mixing augmentation {augmentation.name!r} would blur."
        )
    for need in sorted(augmentation.needs - model.provides):
        raise UsageError(
            f"augmentation {augmentation.name!r} needs {need}, which model {model.name!r} does not provide."
        )


def _renamed(chosen: Sequence[_Parts], settings: Mapping[str, str]) -> dict[str, str]:
    """Give the settings the names that the options have now."""
    former = {o.formerly: name for parts in chosen for name, o in _options(parts).items() if o.formerly}
    return {former.get(key, key): value for key, value in settings.items()}


def _refuse_unknown_settings(chosen: Sequence[_Parts], settings: Mapping[str, str]) -> None:
    recipe_fields = set(RECIPE_FIELDS)
    for key in settings:
        known = recipe_fields | {name for parts in chosen for name in _options(parts)}
        if key not in known:
            raise unknown_name("setting", key, known)
        lacking = [
            f"{p.technique.name}/{p.variant_name}" for p in chosen if key not in recipe_fields | set(_options(p))
        ]
        if lacking:
            shared = recipe_fields | set.intersection(*(set(_options(parts)) for parts in chosen))
            raise UsageError(
                f"{key}: {', '.join(lacking)} has no such option. Valid choices: {', '.join(sorted(shared))}."
            )


def _options(parts: _Parts) -> dict[str, Option]:
    # An option that a part declares replaces the predictor's option of the same name: both are one setting.
    given = dict(parts.predictor.value.options)
    optimizer = [parts.optimizer.value] if parts.optimizer else []
    for part in (parts.model.value, parts.loss.value, parts.augmentation.value, parts.step.value, *optimizer):
        for name, option in part.options.items():
            given[name] = option
    return given


def _with_recipe(host: Host, parts: _Parts, recipe: Recipe, settings: Mapping[str, str]) -> _Parts:
    """Find what the recipe names, registered optimiser and schedule. Raises `UsageError` for a name that there is not."""
    optimizer.check_optimizer(recipe, host.optimizers)
    schedule = host.find("schedule", host.schedules, recipe.schedule)
    if schedule.value.warms_up and "warmup_epochs" in settings and recipe.warmup_epochs:
        raise UsageError(
            f"{parts.label}: schedule {recipe.schedule!r} warms up by itself. Leave out --set warmup_epochs, or set it to 0."
        )
    return replace(parts, optimizer=host.optimizers.get(recipe.optimizer), schedule=schedule)


def _without_warmup(parts: _Parts, recipe: Recipe) -> Recipe:
    warms_up = parts.schedule is not None and parts.schedule.value.warms_up
    return recipe.changed(warmup_epochs=0) if warms_up else recipe


def _own_settings(chosen: Sequence[_Parts], settings: Mapping[str, str]) -> list[dict[str, str]]:
    """Give each variant the settings that are for it: an option by which variants of one technique differ leaves alone the
    baseline, and any other variant that is defined by it.

    Raises:
        UsageError: an option defines all of them, so that they would become one training.
    """
    own = [dict(settings) for _ in chosen]
    for key in settings:
        for name in dict.fromkeys(parts.technique.name for parts in chosen):
            group = [p for p in chosen if p.technique.name == name and key in _options(p)]
            for parts in _left_alone(key, group):
                del own[chosen.index(parts)][key]
    return own


def _left_alone(key: str, group: Sequence[_Parts]) -> list[_Parts]:
    """Choose the variants of one technique that keep their own value of an option."""

    def values(of: Sequence[_Parts]) -> set[OptionValue]:
        return {parts.variant.options.get(key, _options(parts)[key].default) for parts in of}

    if len(values(group)) < 2:
        return []
    baselines = {parts.variant.baseline for parts in group}
    kept = [parts for parts in group if parts.variant_name in baselines]
    rest = [parts for parts in group if parts not in kept]
    if len(values(rest)) > 1:
        kept += [parts for parts in rest if key in parts.variant.options]
        if len(kept) == len(group):
            raise UsageError(
                f"--set {key}: this is what {', '.join(parts.label for parts in rest)} differ by, and would make them one training. "
                "Name one of them, or leave it out."
            )
    return kept


def _recipe(source: DatasetSource, parts: _Parts, request: Request, settings: Mapping[str, str]) -> Recipe:
    recipe = parts.technique.recipe.changed(**parts.variant.recipe)
    # A learning rate that somebody has chosen is for the network that it was chosen for.
    if "lr" not in request.recipe:
        recipe = recipe.changed(lr=recipe.lr * source.lr_factors.get(_backbone(source, parts, request), 1.0))
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


def _backbone(source: DatasetSource, parts: _Parts, request: Request) -> str:
    default = parts.variant.backbone or parts.technique.backbone
    return request.backbone or source.backbones.get(default, default)


def _initial(
    request: Request,
    plugin_files: Sequence[Path],
    parts: _Parts,
    source: DatasetSource,
    recipe: Recipe,
    loaded: Loaded,
) -> _Initial:
    """Find the backbone and its weights, and check that they fit each other and the image size."""
    name = _backbone(source, parts, request)
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
    return _Initial(name, tuple(weights))


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


def _without_weights(parts: _Parts) -> str:
    """Name variants that need no weights, for a machine without network: the technique's, else training from scratch."""
    technique = parts.technique
    names = [
        f"{technique.name}/{n}" for n, v in technique.variants.items() if (v.weights or technique.weights) == "none"
    ]
    return f"  --plugin {' or '.join(names[:3]) or 'transfer/scratch'}  which needs no weights"


def _trials(
    host: Host,
    request: Request,
    source: DatasetSource,
    parts: _Parts,
    start: _Initial,
    recipe: Recipe,
    dataset: Dataset,
    data_options: Mapping[str, OptionValue],
    run: Run,
) -> list[TrialPlan]:
    name, given = start.backbone, {**source.settings, **parts.variant.options, **request.settings}
    options = parse_options(_options(parts), given)
    backbone = Backbone(name, Weights(), dataset.num_classes, recipe.image_size)
    _refuse_undescribed(parts, dataset)
    model = _try_building(parts, backbone, dataset, recipe, options, request.store)
    _refuse_no_unlabelled(parts, dataset)
    _refuse_no_probe(parts, recipe, model)
    weights = _that_fits(start.weights, backbone, parts.label)
    notes = [f"weights {weights.name}: {words}" for words in check_weights(weights, name, recipe.image_size).understood]
    if weights.provenance is not None:
        notes = [f"weights {weights.name}: {weights.provenance.summary}", *notes]
        notes += refuse_seen(weights.name, weights.provenance, dataset)
    notes += [] if request.label else _defined_otherwise(parts, options)
    may_train = has_begin_epoch(model) or any(parameter.requires_grad for parameter in model.parameters())
    trains = recipe.epochs > 0 and may_train
    _try_sampling(parts, dataset, recipe, options, request.devices)
    code = _code(host, parts, source.name, recipe, model)
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


def _refuse_no_unlabelled(parts: _Parts, dataset: Dataset) -> None:
    if parts.step.value.unlabelled and not len(dataset.unlabelled):
        raise UsageError(
            f"{parts.label}: step {parts.step.value.name!r} learns from images without labels, and {dataset.name} has none. Give "
            "--shots K: the training images beyond K of each class are then used without their labels."
        )


def _defined_otherwise(parts: _Parts, options: Options) -> list[str]:
    """Say which options that define the variant have other values."""
    declared = _options(parts)
    return [
        f"{parts.label} is defined by {key}={value}; here {key}={options[key]}"
        for key, value in parts.variant.options.items()
        if key in declared and declared[key].parse(key, value) != options[key]
    ]


def _code(host: Host, parts: _Parts, source: str, recipe: Recipe, model: nn.Module) -> dict[str, str]:
    """Collect what identifies the code of a trial: third-party plugins whose parts it uses, and revisions above 1.

    A built-in part is identified by its revision alone, so that a new release does not train anything again.
    """
    in_use = parts.in_use
    origins = {registered.plugin for registered in in_use if not host.is_built_in(registered.plugin)}
    # The fingerprint identifies the dataset of a package. A plugin file is noted too: it is needed to load the trial again.
    if host.plugins[host.datasets[source].plugin].is_file:
        origins.add(host.datasets[source].plugin)
    revisions = {f"{type(r.value).__name__.lower()} {r.value.name}": r.value.revision for r in in_use}
    revisions["optimizer"] = max(optimizer.revision(recipe, model), revisions.get("optimizer", 1))
    if recipe.clip_norm and not host.is_built_in(parts.loss.plugin):  # its own parameters were not clipped before
        revisions["clipping"] = 2
    return {
        **{plugin: host.plugins[plugin].code for plugin in sorted(origins)},
        **{what: f"revision {number}" for what, number in revisions.items() if number > 1},
    }


def _that_fits(candidates: Sequence[Weights], built: Backbone, label: str) -> Weights:
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


def _refuse_undescribed(parts: _Parts, dataset: Dataset) -> None:
    """Refuse a model that reads descriptions of the classes where the data have none. Raises `UsageError`."""
    if "descriptions" in parts.model.value.needs and len(dataset.descriptions) != dataset.num_classes:
        raise UsageError(
            f"{parts.label}: model {parts.model.value.name!r} needs descriptions of the classes, which {dataset.name} does not have. "
            "Choose --data petals, or a plugin's dataset that gives `Dataset.descriptions`."
        )


def _try_building(
    parts: _Parts,
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


def _refuse_no_probe(parts: _Parts, recipe: Recipe, model: nn.Module) -> None:
    from flowers_bench.training.probe import linear_classifier

    if recipe.classifier_start == "probe":
        try:
            linear_classifier(model)
        except UsageError as error:
            raise UsageError(f"{parts.label}: {error}") from error


def _try_sampling(parts: _Parts, dataset: Dataset, recipe: Recipe, options: Options, devices: int) -> None:
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
