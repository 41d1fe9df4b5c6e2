"""Write a suite's figures from the finished trials of a run store; each file says what it shows and of how many trials."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flowers_bench.plan.suites import Figure
from flowers_bench.report.aggregate import Finished, Row, build_row, by_configuration, protocol
from flowers_bench.report.drawings import DRAWINGS, Panel
from flowers_bench.report.kept_trials import load_each
from flowers_bench.report.names import disambiguate, distinct_names
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.records import Config
from flowers_bench.util.files import file_name


@dataclass(frozen=True)
class Drawn:
    """A figure and its files; if there are none, `why` says the reason."""

    figure: Figure
    files: tuple[Path, ...]
    why: str = ""


def draw_figures(figures: Sequence[Figure], folders: Iterable[TrialFolder], directory: Path) -> list[Drawn]:
    """Write each figure to `directory`: one file for each dataset, protocol and backbone that it has trials of."""
    trials = load_each(folders)
    rows: dict[str, Row] = {}  # by id: a row is read once, even if several figures show it
    return [_draw(figure, trials, rows, directory) for figure in figures]


def _draw(figure: Figure, trials: Sequence[Finished], rows: dict[str, Row], directory: Path) -> Drawn:
    chosen = [trial for trial in trials if trial.label.text in figure.technique]
    if not chosen:
        return Drawn(figure, (), f"no finished trial of {', '.join(figure.technique)}")
    files: list[Path] = []
    why = []
    for panel in _panels(figure, chosen, rows):
        write = DRAWINGS[figure.draw](panel)
        if isinstance(write, str):
            why.append(write)
            continue
        path = _free(directory, _stem(figure, panel.rows[0].config), write.suffix, files)
        write.save(path)
        files.append(path)
    return Drawn(figure, tuple(files), "" if files else why[0])


def _panels(figure: Figure, trials: Sequence[Finished], rows: dict[str, Row]) -> list[Panel]:
    """Make the panels of a figure, one for each dataset, protocol and backbone."""
    groups: dict[str, list[Finished]] = {}
    for trial in trials:
        facts = {**protocol(trial.config), "backbone": trial.config.backbone}
        groups.setdefault(json.dumps(facts, sort_keys=True), []).append(trial)
    ordered = sorted(groups.items())
    apart = [[protocol(found[0].config), {"group": key}] for key, found in ordered]
    abouts = disambiguate([_about(found[0].config) for _, found in ordered], apart, "; {}: {}".format)
    return [Panel(figure, _rows(figure, found, rows), about) for about, (_, found) in zip(abouts, ordered, strict=True)]


def _about(config: Config) -> str:
    data = config.dataset
    sizes = f"{data.n_train} train / {data.n_val} val / {data.n_test} test images"
    return f"{data.name}: {data.classes} classes, {sizes}, split {data.split_checksum[:8]}. {config.backbone}"


def _rows(figure: Figure, trials: Sequence[Finished], known: dict[str, Row]) -> tuple[Row, ...]:
    """Make the rows of these trials, in the order of the figure's techniques."""
    configurations = by_configuration(trials)
    names = distinct_names([configuration.config for configuration in configurations])
    for configuration in configurations:
        if configuration.id not in known:
            known[configuration.id] = build_row("", configuration)
    rows = [replace(known[own.id], name=name) for name, own in zip(names, configurations, strict=True)]
    order = {label: place for place, label in enumerate(figure.technique)}
    return tuple(sorted(rows, key=lambda row: (order[row.trials[0].label.text], row.name)))


def _stem(figure: Figure, config: Config) -> str:
    return file_name("-".join([figure.name, config.dataset.name, config.backbone]))


def _free(directory: Path, stem: str, suffix: str, taken: Sequence[Path]) -> Path:
    """Find a free file name: trials that must not be compared get separate files, even if their datasets have one name."""
    number = 1
    while (path := directory / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}") in taken:
        number += 1
    return path
