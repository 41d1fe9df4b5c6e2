"""A suite's figures, from the finished trials of a run store: files that say what they show, of how much."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowers_bench.grid import Figure
from flowers_bench.report.drawings import DRAWINGS, Panel
from flowers_bench.report.rows import Finished, Row, build_row, by_configuration, distinct_names, protocol
from flowers_bench.store import TrialFolder, file_name


@dataclass(frozen=True)
class Drawn:
    """A figure, and the files it became; where there are none, `why` in words."""

    figure: Figure
    files: tuple[Path, ...]
    why: str = ""


def draw_figures(figures: Sequence[Figure], folders: Iterable[TrialFolder], directory: Path) -> list[Drawn]:
    """Write each figure to `directory`, a file for each dataset, protocol and backbone that it has trials of."""
    trials = [Finished.load(folder) for folder in folders]
    rows: dict[str, Row] = {}  # a row is read once, however many figures show it
    return [_draw(figure, trials, rows, directory) for figure in figures]


def _draw(figure: Figure, trials: Sequence[Finished], rows: dict[str, Row], directory: Path) -> Drawn:
    chosen = [trial for trial in trials if _label(trial) in figure.technique]
    if not chosen:
        return Drawn(figure, (), f"no finished trial of {', '.join(figure.technique)}")
    groups: dict[str, list[Finished]] = {}
    for trial in chosen:
        facts = {**protocol(trial.config), "backbone": trial.config["backbone"]}
        groups.setdefault(json.dumps(facts, sort_keys=True), []).append(trial)
    files: list[Path] = []
    why = []
    for _, found in sorted(groups.items()):
        panel = Panel(figure, _rows(figure, found, rows))
        write = DRAWINGS[figure.draw](panel)
        if isinstance(write, str):
            why.append(write)
            continue
        path = _free(directory, _stem(figure, panel.rows[0].config), write.suffix, files)
        write.save(path)
        files.append(path)
    return Drawn(figure, tuple(files), "" if files else why[0])


def _label(trial: Finished) -> str:
    return f"{trial.config['technique']}/{trial.config['variant']}"


def _rows(figure: Figure, trials: Sequence[Finished], known: dict[str, Row]) -> tuple[Row, ...]:
    """In the order of the figure's techniques."""
    configurations = by_configuration(trials)
    names = distinct_names([seeds[0].config for seeds in configurations], shown=("backbone",))
    found = []
    for name, seeds in zip(names, configurations, strict=True):
        key = json.dumps([name, sorted(trial.folder.id for trial in seeds)])
        if key not in known:
            known[key] = build_row(name, seeds)
        found.append(known[key])
    order = {label: place for place, label in enumerate(figure.technique)}
    return tuple(sorted(found, key=lambda row: (order[_label(row.trials[0])], row.name)))


def _stem(figure: Figure, config: dict[str, Any]) -> str:
    words = [figure.name, str(config["dataset"]["name"]), str(config["backbone"])]
    return file_name("-".join(words))


def _free(directory: Path, stem: str, suffix: str, taken: Sequence[Path]) -> Path:
    """Trials that may not be compared, on data of one name, get files of their own."""
    number = 1
    while (path := directory / f"{stem}{'' if number == 1 else f'-{number}'}{suffix}") in taken:
        number += 1
    return path
