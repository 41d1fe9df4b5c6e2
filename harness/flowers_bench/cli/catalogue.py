"""`flowers-bench list`, `describe` and `plugins`: print what is installed, as plain text, without importing torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from flowers_bench.contract.host import Host, Registered, discover, outdated
from flowers_bench.contract.options import Option
from flowers_bench.contract.technique import Technique, Variant, in_use
from flowers_bench.hookspecs import OLDEST_PLUGIN_API, PLUGIN_API
from flowers_bench.util.text import printable


def _say(text: str) -> None:
    """Print text that comes from other people's code and files, without control characters."""
    print(printable(text))


def print_all(files: Sequence[Path]) -> None:
    """Print everything that is registered, by kind."""
    host = discover(files)
    _say("techniques (flowers-bench --plugin NAME[/VARIANT])")
    for name, registered in sorted(host.techniques.items()):
        technique = registered.value
        _line(name, technique.summary, registered.plugin)
        _say(f"      variants: {', '.join(_variant_names(technique))}")
        _say(f"      starts from: {_start(host, technique, technique.variants[technique.default])}")
    for title, table in (
        ("models", host.models),
        ("losses", host.losses),
        ("augmentations", host.augmentations),
        ("predictors", host.predictors),
        ("steps (--step NAME)", host.steps),
        ("optimizers (--set optimizer=NAME; beside these adam, adamw, sgd, and any of timm's)", host.optimizers),
        ("schedules (--set schedule=NAME)", host.schedules),
    ):
        _parts(title, table)
    _say("\ndatasets (--data NAME)")
    for name, source in sorted(host.datasets.items()):
        _line(name, source.value.summary, source.plugin)
        if source.value.options:
            _say(f"      options: {', '.join(f'data.{k}={v}' for k, v in source.value.defaults().items())}")
    _print_broken(host)


def _start(host: Host, technique: Technique, variant: Variant) -> str:
    """Say which backbone and weights a variant takes unasked, and which on data that has its own."""
    from flowers_bench.models.weights.source import weights_on

    backbone, weights = variant.backbone or technique.backbone, variant.weights or technique.weights
    words = f"{backbone}, weights {weights}"
    for name, registered in sorted(host.datasets.items()):
        source = registered.value
        own = source.backbones.get(backbone, backbone)
        meant = weights_on(source, weights, own)
        if (own, meant) != (backbone, weights):
            words += f" (on {name}: {own}, weights {meant})"
    return words


def _variant_names(technique: Technique) -> Iterable[str]:
    return (f"{name} (default)" if name == technique.default else name for name in technique.variants)


def _line(name: str, summary: str, plugin: str) -> None:
    _say(f"  {name:<18} {summary}  [{plugin}]")


def _parts(title: str, table: Mapping[str, Registered[Any]]) -> None:
    _say(f"\n{title}")
    for name, registered in sorted(table.items()):
        part = registered.value
        _line(name, part.summary, registered.plugin)
        if getattr(part, "needs", None):
            _say(f"      needs: {', '.join(sorted(part.needs))}")
        if getattr(part, "provides", None):
            _say(f"      provides: {', '.join(sorted(part.provides))}")


def _print_broken(host: Host) -> None:
    for status in host.broken():
        _say(f"\nbroken plugin {status.name} ({status.origin}), skipped: {status.error}")


def describe(name: str, files: Sequence[Path]) -> None:
    """Print one technique in full.

    Raises:
        UsageError: there is no such technique.
    """
    host = discover(files)
    registered = host.find("technique", host.techniques, name.partition("/")[0])
    technique = registered.value
    _say(f"{technique.name}: {technique.summary}  [{registered.plugin}, {host.plugins[registered.plugin].code}]")
    for paper in technique.papers:
        _say(f"  {paper}")
    _say(f"\nstarts from {_start(host, technique, technique.variants[technique.default])}")
    tables: tuple[tuple[str, Mapping[str, Registered[Any]]], ...] = (
        ("model", host.models),
        ("loss", host.losses),
        ("augmentation", host.augmentations),
        ("step", host.steps),
    )
    for kind, table in tables:
        part = host.find(kind, table, getattr(technique, kind)).value
        _say(f"{kind} {part.name}: {part.summary}")
        _options(part.options)
    chosen = technique.variants[technique.default]
    meant = chosen.predictor or host.find("loss", host.losses, chosen.loss or technique.loss).value.predictor
    predictor = host.find("predictor", host.predictors, meant).value
    _say(f"predictor {predictor.name}: {predictor.summary}")
    _options(predictor.options)
    trained = technique.recipe.epochs > 0
    _say("\nrecipe (--set KEY=VALUE)" if trained else "\nnothing is trained (--set KEY=VALUE)")
    for field in fields(technique.recipe):
        if field.name in in_use(vars(technique.recipe), trained=trained):
            _say(f"  {field.name} = {getattr(technique.recipe, field.name)}")
    _say("\nvariants")
    for key, variant in technique.variants.items():
        marks = ["default"] if key == technique.default else []
        marks += [f"compared with {variant.baseline}"] if variant.baseline else []
        _say(f"  {technique.name}/{key}: {variant.summary}{' (' + ', '.join(marks) + ')' if marks else ''}")
        trained = technique.recipe.changed(**variant.recipe).epochs > 0
        changes = {**variant.options, **in_use(variant.recipe, trained=trained), **_replaced(variant)}
        words = [f"{k}={v}" for k, v in changes.items()]
        if not trained and technique.recipe.epochs:
            words.append("nothing trained")
        if words:
            _say(f"      {', '.join(words)}")


def _replaced(variant: Any) -> dict[str, str]:
    names = ("model", "loss", "augmentation", "predictor", "step", "backbone", "weights")
    return {name: getattr(variant, name) for name in names if getattr(variant, name) is not None}


def _options(options: Mapping[str, Option]) -> None:
    for name, option in options.items():
        choices = f" ({', '.join(map(str, option.choices))})" if option.choices else ""
        _say(f"  --set {name}={option.default}: {option.help}{choices}{_searched(option)}")


def _searched(option: Option) -> str:
    """Say which values `--search` tries; empty if it does not search this option."""
    if not option.search:
        return ""
    numbers = not isinstance(option.default, (bool, str))
    return f"; --search tries {(' to ' if numbers else ', ').join(map(str, option.search))}"


def print_plugins(files: Sequence[Path]) -> None:
    """Print which versions of the plugin API are accepted, and one line per plugin; broken ones with the reason."""
    _say(f"plugin API {OLDEST_PLUGIN_API} to {PLUGIN_API} (docs/plugin-api-policy.md)\n")
    rows = [("name", "version", "API", "origin", "status", "hooks")]
    found = list(discover(files).plugins.values())
    for status in found:
        state = "off" if status.off else "BROKEN" if status.error else "ok"
        api = "-" if status.api is None else str(status.api)
        more = status.error or ", ".join(status.hooks)
        rows.append((status.name, status.version or "-", api, status.origin, state, more))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    for row in rows:
        _say("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip())
    for status in found:
        if warning := outdated(status):
            _say(f"\n{warning}")
