"""The parts of a variant, and which settings are for which: what is unknown or does not go together is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from flowers_bench.contract.host import Host, Registered
from flowers_bench.contract.optimizer import Optimizer, Schedule
from flowers_bench.contract.options import Option, Options, OptionValue
from flowers_bench.contract.predictor import CLASSIFIER, Predictor
from flowers_bench.contract.step import Step
from flowers_bench.contract.technique import RECIPE_FIELDS, Augmentation, Loss, Model, Recipe, Technique, Variant
from flowers_bench.plan.request import Request
from flowers_bench.store.identity import Label
from flowers_bench.training import optimizer
from flowers_bench.util.errors import UsageError, unknown_name


@dataclass(frozen=True)
class ChosenParts:
    """What a variant is made of, with what the request changed of it; optimiser and schedule once its recipe is known."""

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
    def options(self) -> dict[str, Option]:
        """What `--set` may change of its parts, by name."""
        # An option that a part declares replaces the predictor's option of the same name: both are one setting.
        given = dict(self.predictor.value.options)
        optimizer = [self.optimizer.value] if self.optimizer else []
        for part in (self.model.value, self.loss.value, self.augmentation.value, self.step.value, *optimizer):
            given.update(part.options)
        return given

    @property
    def label(self) -> str:
        """`technique/variant`."""
        return self.as_label.text

    @property
    def as_label(self) -> Label:
        """The name of the trials, with the name of their baseline."""
        baseline = f"{self.technique.name}/{self.variant.baseline}" if self.variant.baseline else None
        return Label(self.technique.name, self.variant_name, baseline)


def choose_parts(host: Host, request: Request, name: str) -> ChosenParts:
    """Find the parts of `technique/variant`. Raises `UsageError` where one is unknown, or needs what the others do not provide."""
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
    parts = ChosenParts(technique, variant_name, variant, model, loss, augmentation, predictor, step)
    _refuse_misfits(parts)
    return parts


def _refuse_misfits(parts: ChosenParts) -> None:
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


def renamed(chosen: Sequence[ChosenParts], settings: Mapping[str, str]) -> dict[str, str]:
    """Give the settings the names that the options have now."""
    former = {o.formerly: name for parts in chosen for name, o in parts.options.items() if o.formerly}
    return {former.get(key, key): value for key, value in settings.items()}


def refuse_unknown_settings(chosen: Sequence[ChosenParts], settings: Mapping[str, str]) -> None:
    """Refuse a setting that any of the variants does not have. Raises `UsageError`, which names those that all have."""
    recipe_fields = set(RECIPE_FIELDS)
    for key in settings:
        known = recipe_fields | {name for parts in chosen for name in parts.options}
        if key not in known:
            raise unknown_name("setting", key, known)
        lacking = [f"{p.technique.name}/{p.variant_name}" for p in chosen if key not in recipe_fields | set(p.options)]
        if lacking:
            shared = recipe_fields | set.intersection(*(set(parts.options) for parts in chosen))
            raise UsageError(
                f"{key}: {', '.join(lacking)} has no such option. Valid choices: {', '.join(sorted(shared))}."
            )


def own_settings(chosen: Sequence[ChosenParts], settings: Mapping[str, str]) -> list[dict[str, str]]:
    """Give each variant the settings that are for it: an option by which variants of one technique differ leaves alone the
    baseline, and any other variant that is defined by it.

    Raises:
        UsageError: an option defines all of them, so that they would become one training.
    """
    own = [dict(settings) for _ in chosen]
    for key in settings:
        for name in dict.fromkeys(parts.technique.name for parts in chosen):
            group = [p for p in chosen if p.technique.name == name and key in p.options]
            for parts in _left_alone(key, group):
                del own[chosen.index(parts)][key]
    return own


def _left_alone(key: str, group: Sequence[ChosenParts]) -> list[ChosenParts]:
    """Choose the variants of one technique that keep their own value of an option."""

    def values(of: Sequence[ChosenParts]) -> set[OptionValue]:
        return {parts.variant.options.get(key, parts.options[key].default) for parts in of}

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


def with_recipe(host: Host, parts: ChosenParts, recipe: Recipe, settings: Mapping[str, str]) -> ChosenParts:
    """Find what the recipe names, registered optimiser and schedule. Raises `UsageError` for a name that there is not."""
    optimizer.check_optimizer(recipe, host.optimizers)
    schedule = host.find("schedule", host.schedules, recipe.schedule)
    if schedule.value.warms_up and "warmup_epochs" in settings and recipe.warmup_epochs:
        raise UsageError(
            f"{parts.label}: schedule {recipe.schedule!r} warms up by itself. Leave out --set warmup_epochs, or set it to 0."
        )
    return replace(parts, optimizer=host.optimizers.get(recipe.optimizer), schedule=schedule)


def without_warmup(parts: ChosenParts, recipe: Recipe) -> Recipe:
    """Take the warm-up out of a recipe whose schedule warms up by itself."""
    warms_up = parts.schedule is not None and parts.schedule.value.warms_up
    return recipe.changed(warmup_epochs=0) if warms_up else recipe


def defined_otherwise(parts: ChosenParts, options: Options) -> list[str]:
    """Say which options that define the variant have other values."""
    declared = parts.options
    return [
        f"{parts.label} is defined by {key}={value}; here {key}={options[key]}"
        for key, value in parts.variant.options.items()
        if key in declared and declared[key].parse(key, value) != options[key]
    ]


def code_of(host: Host, parts: ChosenParts, source: str, recipe: Recipe, model: nn.Module) -> dict[str, str]:
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
