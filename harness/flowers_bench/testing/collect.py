"""Which checks a plugin is given, as calls, and as tests of a module that pytest collects."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flowers_bench.contract.host import NO_PLUGIN, Host, Registered, discover, installed, outdated
from flowers_bench.contract.predictor import CLASSIFIER, Predictor
from flowers_bench.contract.step import Step
from flowers_bench.contract.technique import Loss, Model, Recipe, Technique, Variant
from flowers_bench.testing.contract import CHECKS
from flowers_bench.testing.datasets import loads_what_a_dataset_is
from flowers_bench.testing.subject import Nonconformance, Subject, require
from flowers_bench.util.errors import TrialFailed, UsageError, unknown_name

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True

#: The variant's name of a technique that is made up here for a part that none has.
ALONE = "alone"


@dataclass(frozen=True)
class Check:
    """One check of one variant, or of the plugin itself, to be called; with the reason if a part is excused from it."""

    label: str
    name: str
    function: Callable[[], None]
    excuse: str = ""

    def __call__(self) -> None:
        """Run the check. Raises `Nonconformance`, or whatever the plugin raises."""
        self.function()

    def __str__(self) -> str:
        return f"{self.label}: {self.name}"


def checks(
    plugin: str | Path,
    *,
    backbone: str | None = None,
    settings: Mapping[str, str] = MappingProxyType({}),
    store: Path | None = None,
) -> list[Check]:
    """List the checks of a plugin: those of every variant of its techniques, and those of parts that none of its
    techniques uses.

    Args:
        plugin: a plugin's name, one technique's `NAME/VARIANT`, or the path of a .py file.
        backbone: a timm model to check with, where neither of the two tiny ones fits.
        settings: options without which a technique does not run, as `--set` takes them.
        store: the run store of techniques that build on finished trials.

    Raises:
        UsageError: there is no such plugin, file or variant.
    """
    files = [Path(plugin)] if str(plugin).endswith(".py") else []
    host = discover(files)
    name, _, variant = (files[0].stem, "", "") if files else str(plugin).partition("/")
    if variant:
        technique = host.find("technique", host.techniques, name).value
        return checks_of(Subject(host, f"{name}/{technique.variant(variant)[0]}", files, backbone, settings, store))
    if name not in host.plugins:
        raise UsageError(
            f"{unknown_name('plugin', name, host.plugins)} A package's plugin is found once the package is installed "
            "(pip install -e .), a file by its path (./mine.py)."
        )
    found = [
        Check(name, "loads", partial(_loads, host, name)),
        Check(name, "does not import torch to be listed", partial(_imports_no_torch, name, files)),
    ]
    for registered in host.datasets.values():
        if registered.plugin == name:
            check = partial(loads_what_a_dataset_is, registered.value)
            found.append(Check(f"dataset {registered.value.name}", "loads what a dataset is", check))
    for label in [*_labels(host, name), *_made_up(host, name)]:
        found += checks_of(Subject(host, label, files, backbone, settings, store))
    return found


def checks_of(subject: Subject) -> list[Check]:
    """List all checks of one variant. They share what they plan and load.

    Raises:
        UsageError: a part is excused from a check that there is not, or without a reason.
    """
    excuses = {name: f"{part.name}: {why}" for part in subject.parts() for name, why in part.excused.items()}
    known = [f.__name__.replace("_", " ") for f in CHECKS]
    for name, why in excuses.items():
        if name not in known:
            raise unknown_name("check to be excused from", name, known)
        if not why.partition(": ")[2].strip():
            raise UsageError(f"{subject.label} is excused from {name!r} without a reason: write one.")
    return [
        Check(subject.label, n, partial(_with_one_thread, f, subject), excuses.get(n, ""))
        for n, f in zip(known, CHECKS, strict=True)
    ]


def _with_one_thread(check: Callable[[Subject], None], subject: Subject) -> None:
    """Run a check. Several threads would wait for each other more than they compute: the networks are tiny, and where other
    programs keep the cores busy, the checks would take fifty times as long."""
    from flowers_bench.training.process import with_threads

    with with_threads(1):
        check(subject)


def conformance_tests(plugin: str | Path, **how: Any) -> Callable[..., None]:
    """Make a test function for pytest, with one test for each check: assign it to a name that begins with `test_`.

    A failed check shows what to change, without a traceback; an exception of the plugin's own shows where it was raised, and not
    what the kit did before (`pytest --full-trace` does).

    Args:
        plugin, how: as for `checks`. The path of a .py file is best built from the test's own `__file__`.
    """
    import pytest

    try:
        found = checks(plugin, **how)
    except UsageError as error:
        raise pytest.Collector.CollectError(str(error)) from error

    @pytest.mark.parametrize("check", found, ids=str)
    def test_conformance(check: Check) -> None:
        if check.excuse:
            pytest.skip(check.excuse)
        failed = None
        try:
            check()
        except (Nonconformance, TrialFailed, UsageError) as error:
            failed = str(error)
        if failed is not None:  # not in the handler: pytest would show each message twice
            pytest.fail(failed, pytrace=False)

    return test_conformance


def _loads(host: Host, name: str) -> None:
    status = host.plugins[name]
    require(not status.off, f"it is switched off: unset {NO_PLUGIN}.")
    require(status.error is None, f"it is broken and would be skipped: {status.error}")
    if warning := outdated(status):
        warnings.warn(warning, stacklevel=2)


def _imports_no_torch(name: str, files: Sequence[Path]) -> None:
    others = [found.name for found in installed() if found.name != name and not found.built_in]
    code = (
        "import sys; from pathlib import Path; from flowers_bench.contract.host import discover\n"
        "discover([Path(p) for p in sys.argv[1:]]); sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, NO_PLUGIN: ",".join(others)}
    done = subprocess.run([sys.executable, "-c", code, *map(str, files)], env=environment, check=False)
    require(
        done.returncode == 0, "importing it imports torch: import torch inside the build functions, not at the top."
    )


def _labels(host: Host, plugin: str) -> list[str]:
    """List the variants of the plugin's techniques, as `technique/variant`."""
    techniques = [found.value for found in host.techniques.values() if found.plugin == plugin]
    return [f"{technique.name}/{variant}" for technique in techniques for variant in technique.variants]


def _made_up(host: Host, plugin: str) -> list[str]:
    """Register a technique for each part that none of the plugin's own techniques uses, and give their labels."""
    techniques = [found.value for found in host.techniques.values() if found.plugin == plugin]
    used = {pair for technique in techniques for pair in _used(host, technique)}
    labels = []
    for kind, part in _parts(host, plugin):
        if (kind, part.name) not in used:
            title = f"{kind} {part.name}"
            own = {kind: part.name} if kind in ("predictor", "step") else {}
            alone = {ALONE: Variant("one part on its own", **own)}
            technique = Technique(
                title, part.summary, (), **_fitting(host, kind, part), recipe=Recipe(), variants=alone, default=ALONE
            )
            host.techniques[title] = Registered(technique, plugin)
            labels.append(f"{title}/{ALONE}")
    return labels


def _used(host: Host, technique: Technique) -> Iterator[tuple[str, str | None]]:
    """Give kind and name of the parts of a technique and its variants, and of the predictors that their losses name."""
    sources: tuple[Technique | Variant, ...] = (technique, *technique.variants.values())
    for source in sources:
        yield from (("model", source.model), ("loss", source.loss), ("augmentation", source.augmentation))
        if isinstance(source, Variant):
            yield "predictor", source.predictor
        yield "step", source.step
        if source.loss in host.losses:
            yield "predictor", host.losses[source.loss].value.predictor


def _parts(host: Host, plugin: str) -> Iterator[tuple[str, Any]]:
    tables: Sequence[tuple[str, Mapping[str, Registered[Any]]]] = (
        ("model", host.models),
        ("loss", host.losses),
        ("augmentation", host.augmentations),
        ("predictor", host.predictors),
        ("step", host.steps),
    )
    return ((kind, r.value) for kind, table in tables for r in table.values() if r.plugin == plugin)


def _fitting(host: Host, kind: str, part: Any) -> dict[str, str]:
    """Name a model, a loss and an augmentation that fit each other: the part itself, and beside it the plain ones, or
    the first that fit it."""
    models, losses = [r.value for r in host.models.values()], [r.value for r in host.losses.values()]
    chosen = {"model": "classifier", "loss": "cross-entropy", "augmentation": "standard"}
    if kind in chosen:
        chosen[kind] = part.name
    if isinstance(part, Model) and "logits" not in part.provides:
        reading = [loss.name for loss in losses if loss.predictor != CLASSIFIER.name and loss.needs <= part.provides]
        if not reading:
            raise UsageError(
                f"model {part.name!r} provides {', '.join(sorted(part.provides)) or 'nothing'}, with which no loss can do. "
                "Register one, or provide logits."
            )
        chosen["loss"] = reading[0]
    if isinstance(part, (Loss, Predictor, Step)):
        wanted = {need for need in part.needs if not need.endswith("_targets") and need != "second_view"}
        fitting = [model.name for model in models if wanted <= model.provides]
        if not fitting:
            raise UsageError(
                f"{kind} {part.name!r} needs {', '.join(sorted(wanted))}, which no model provides. Register one."
            )
        chosen["model"] = "classifier" if "classifier" in fitting else fitting[0]
        if "soft_targets" in part.needs:
            mixing = (r.value for r in host.augmentations.values() if "soft_targets" in r.value.provides)
            chosen["augmentation"] = next(augmentation.name for augmentation in mixing)
        if "second_view" in part.needs:
            twofold = [r.value.name for r in host.augmentations.values() if r.value.second is not None]
            if not twofold:
                raise UsageError(f"{kind} {part.name!r} needs second_view, which no augmentation has. Register one.")
            chosen["augmentation"] = twofold[0]
    return chosen
