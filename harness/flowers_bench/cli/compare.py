"""`flowers-bench compare`: techniques against each other, pairwise, on the same images and seeds."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.errors import Unreadable, UsageError, unknown_name

if TYPE_CHECKING:
    from flowers_bench.report.rows import Finished, Row
    from flowers_bench.store import TrialFolder

    Configuration = list[Finished]


def compare(names: Sequence[str], out: Path, format: str) -> int:
    """Print to stdout in the format asked for; returns the exit code. Raises `UsageError` for unknown or ambiguous names, and
    where no pair may be compared."""
    from flowers_bench.cli.damage import read_store
    from flowers_bench.report.comparison import Comparison
    from flowers_bench.report.comparison_text import FORMATS, print_text, refusal
    from flowers_bench.report.stress import under_stress

    if format != "text" and format not in FORMATS:
        raise unknown_name("format", format, ["text", *FORMATS])
    if len(names) < 2:
        raise UsageError("compare takes two names or more: flowers-bench compare deformable/stage3 deformable/plain")
    contents, code = read_store(out)
    try:
        rows = rows_of(names, out, contents.finished)
    except UsageError as error:
        if code:  # what was asked for may be among what was left out
            raise Unreadable(str(error)) from error
        raise
    comparison = Comparison.all_of(rows)
    if not comparison.pairs:
        raise UsageError("\n".join(refusal(refused) for refused in comparison.refused))
    pairs = itertools.combinations(rows, 2) if format != "csv" else ()  # which has no place for changed images
    stressed = [found for pair in pairs if (found := under_stress(*pair))]
    if format == "text":
        print_text(comparison, stressed)
    else:
        print(FORMATS[format](comparison, stressed))
    return code


def rows_of(names: Sequence[str], out: Path, folders: Sequence[TrialFolder] | None = None) -> list[Row]:
    """The row of each name: `NAME[/VARIANT] [KEY=VALUE ...]`, or a trial's id for that trial alone; of these finished trials
    of the store `out`, or of all of them that can be read."""
    from flowers_bench.report.rows import Finished, build_row, by_configuration, distinct_names
    from flowers_bench.store import Store

    if folders is None:
        folders = Store(out).read().finished
    configurations = by_configuration(map(Finished.load, folders))
    chosen = _together([_matching(name, configurations, out) for name in names])
    for name, found in zip(names, chosen, strict=True):
        if len(found) > 1:
            raise _ambiguous(name, found, out)
    trials = [found[0] for found in chosen]
    shown = distinct_names([configuration[0].config for configuration in trials], ())
    for index, name in enumerate(shown):
        if name in shown[:index] and trials[index] == trials[shown.index(name)]:
            raise UsageError(f"{names[shown.index(name)]!r} and {names[index]!r} are the same: {name}.")
        if len(trials[index]) == 1 and name in shown[:index] + shown[index + 1 :]:
            shown[index] = f"{name} (trial {trials[index][0].folder.id})"
    return [build_row(name, configuration) for name, configuration in zip(shown, trials, strict=True)]


def _matching(name: str, configurations: Sequence[Configuration], out: Path) -> list[Configuration]:
    from flowers_bench.report.rows import factors

    label, *settings = name.split()
    labels = sorted({_label(configuration) for configuration in configurations})
    by_id = [[t] for c in configurations for t in c if t.folder.id.startswith(label)]
    named = [text for text in labels if text == label] or [text for text in labels if text.startswith(f"{label}/")]
    if not named and by_id and re.fullmatch("[0-9a-f]{4,16}", label):
        return by_id
    if not named:
        raise unknown_name(f"technique in {out}", label, [*labels, "a trial's id"])
    default = _default_label(label, named)
    wanted = dict(item.partition("=")[::2] for item in settings)
    found = [
        configuration
        for configuration in configurations
        if _label(configuration) == default and wanted.items() <= factors(configuration[0].config).items()
    ]
    if not found:
        stored = _ambiguous(name, [c for c in configurations if _label(c) == default], out)
        raise UsageError(f"{default} was not run with {' '.join(settings)}. {stored}")
    return found


def _label(configuration: Configuration) -> str:
    config = configuration[0].config
    return f"{config['technique']}/{config['variant']}"


def _default_label(label: str, named: Sequence[str]) -> str:
    """Which variant a bare technique name means: the only one there is, or the technique's default."""
    if len(named) == 1:
        return named[0]
    from flowers_bench.host import discover

    registered = discover().techniques.get(label)
    default = f"{label}/{registered.value.default}" if registered else None
    if default is not None and default in named:
        return default
    raise UsageError(f"{label!r} names {len(named)} variants: {', '.join(named)}. Name one.")


def _together(candidates: Sequence[list[Configuration]]) -> list[list[Configuration]]:
    """Where a name means several configurations: those that can be compared with one of every other name."""
    from flowers_bench.report.rows import obstacles

    if all(len(found) == 1 for found in candidates):
        return list(candidates)

    def fits(configuration: Configuration) -> bool:
        return all(any(not obstacles(configuration[0], c[0]) for c in found) for found in candidates)

    return [[c for c in found if fits(c)] or found for found in candidates]


def _ambiguous(name: str, found: Sequence[Configuration], out: Path) -> UsageError:
    from flowers_bench.report.rows import distinct_names

    names = distinct_names([configuration[0].config for configuration in found], ())
    lines = [
        f'  "{text}"   seeds {", ".join(str(t.config["seed"]) for t in trials)}; trials {", ".join(t.folder.id[:8] for t in trials)}'
        for text, trials in zip(names, found, strict=True)
    ]
    plural = "s" if len(found) > 1 else ""
    return UsageError(
        f"{name!r} names {len(found)} configuration{plural} in {out}; name one by what tells it apart, or by a trial's id:\n"
        + "\n".join(lines)
    )
