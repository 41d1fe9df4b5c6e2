"""`flowers-bench compare`: compare techniques pairwise on the same images and seeds."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.util.errors import Unreadable, UsageError, unknown_name

if TYPE_CHECKING:
    from flowers_bench.report.aggregate import Configuration, Row
    from flowers_bench.store.folder import TrialFolder


def compare(
    names: Sequence[str],
    out: Path,
    format: str,
    against: str | None = None,
    margin: float = 1.0,
    *,
    wide: bool = False,
) -> int:
    """Print the comparison to stdout in this format; return the exit code.

    Args:
        names: what is compared; none for the pairs of the leaderboard, table by table.
        against: a name that each of `names` is compared with; without it, all pairs of `names` are compared.
        margin: in points, within which techniques are the same for practical purposes.
        wide: whether the text has all columns.

    Raises:
        UsageError: a name is unknown or ambiguous, or no pair may be compared.
    """
    from flowers_bench.cli.damage import read_store
    from flowers_bench.report.comparison import Comparison
    from flowers_bench.report.comparison_text import FORMATS, print_text, refusal
    from flowers_bench.report.robustness import under_stress

    if format != "text" and format not in FORMATS:
        raise unknown_name("format", format, ["text", *FORMATS])
    if not names and against is None:
        return _compare_all(out, format, margin, wide=wide)
    if len(names) < 2 and against is None:
        raise UsageError(
            "compare takes two names or more: flowers-bench compare deformable/stage3 deformable/plain; one, and "
            "--against another; or none, for all pairs of the leaderboard"
        )
    contents, code = read_store(out)
    try:
        rows = rows_of([*names, *([] if against is None else [against])], out, contents.finished)
    except UsageError as error:
        if code:  # the named trials may be among the damaged ones
            raise Unreadable(str(error)) from error
        raise
    comparison = (
        Comparison.all_of(rows, margin / 100)
        if against is None
        else Comparison.against(rows[:-1], rows[-1], margin / 100)
    )
    if not comparison.pairs:
        reasons = "\n".join(refusal(refused) for refused in comparison.refused)
        raise (Unreadable if code else UsageError)(reasons)
    pairs = itertools.combinations(rows, 2) if against is None else ((row, rows[-1]) for row in rows[:-1])
    # CSV has no columns for changed images.
    stressed = [found for pair in pairs if (found := under_stress(*pair))] if format != "csv" else []
    if format == "text":
        print_text(comparison, stressed, wide=wide)
    else:
        print(FORMATS[format](comparison, stressed))
    return code


def _compare_all(out: Path, format: str, margin: float, *, wide: bool) -> int:
    """Print the pairs of each table of the leaderboard: of its best rows, and each row with its baseline."""
    from flowers_bench.cli.damage import read_store
    from flowers_bench.report.comparison_text import FORMATS, print_text
    from flowers_bench.report.formatting import markdown_cell
    from flowers_bench.report.leaderboard import Leaderboard

    contents, code = read_store(out)
    board = Leaderboard.of(contents.finished, margin=margin / 100, states=contents.states)
    found = [group for group in board.groups if group.compared.pairs]
    if not found:
        raise (Unreadable if code else UsageError)(
            f"{out} has no two techniques that can be compared: of one dataset, split and protocol."
        )
    if format in ("csv", "json"):  # one table, whose column `family` says what each claim is adjusted for
        first, *others = [group.compared for group in found]
        print(FORMATS[format](first, others=others))
        return code
    for place, group in enumerate(found):
        if place:
            print()
        if format == "text":
            print_text(group.compared, title=group.title, wide=wide)
        else:
            print(f"**{markdown_cell(group.title)}**\n\n{FORMATS[format](group.compared)}")
    return code


def rows_of(names: Sequence[str], out: Path, folders: Sequence[TrialFolder] | None = None) -> list[Row]:
    """Find the row of each name: `NAME[/VARIANT] [KEY=VALUE ...]`, or a trial's id for that trial alone.

    Args:
        folders: the finished trials of the store `out` to choose from; None for all that can be read.

    Raises:
        UsageError: a name is unknown or ambiguous, or two names mean the same row.
    """
    from flowers_bench.report.aggregate import build_row, by_configuration
    from flowers_bench.report.kept_trials import load_each
    from flowers_bench.report.names import distinct_names
    from flowers_bench.store.folder import Store

    if folders is None:
        folders = Store(out).read().finished
    configurations = by_configuration(load_each(folders))
    chosen = _together([_matching(name, configurations, out) for name in names])
    for name, found in zip(names, chosen, strict=True):
        if len(found) > 1:
            raise _ambiguous(name, found, out)
    meant = [found[0] for found in chosen]
    shown = distinct_names([configuration.config for configuration in meant])
    for (name, one), (other_name, other) in itertools.combinations(zip(names, meant, strict=True), 2):
        if one.trials == other.trials:
            raise UsageError(f"{name!r} and {other_name!r} are the same: {shown[meant.index(one)]}.")
    unique = [
        f"{name} (trial {one.id})" if name in shown[:i] + shown[i + 1 :] and len(one.trials) == 1 else name
        for i, (name, one) in enumerate(zip(shown, meant, strict=True))
    ]
    return list(map(build_row, unique, meant))


def _matching(name: str, configurations: Sequence[Configuration], out: Path) -> list[Configuration]:
    from flowers_bench.report.aggregate import Configuration
    from flowers_bench.report.names import ABSENT, kinds, merged, read_name

    label, wanted = read_name(name)
    labels = sorted({configuration.label for configuration in configurations})
    trials = {
        t.folder.id: t for c in configurations for t in c.trials
    }  # a trial with several names occurs several times
    by_id = [Configuration.alone(t) for trial_id, t in trials.items() if trial_id.startswith(label)]
    named = [text for text in labels if text == label] or [text for text in labels if text.startswith(f"{label}/")]
    if not named and by_id and re.fullmatch("[0-9a-f]{4,16}", label):
        return by_id
    if not named:
        raise unknown_name(f"technique in {out}", label, [*labels, "a trial's id"])
    default = _default_label(label, named)
    candidates = [configuration for configuration in configurations if configuration.label == default]
    facts = [merged(kinds(configuration.config)) for configuration in candidates]
    found = [
        configuration
        for configuration, own in zip(candidates, facts, strict=True)
        if all(own.get(key, ABSENT) == value for key, value in wanted.items())
    ]
    if not found:
        settings = " ".join(f"{key}={value}" for key, value in wanted.items())
        raise UsageError(f"{default} was not run with {settings}. {_ambiguous(name, candidates, out)}")
    return found


def _default_label(label: str, named: Sequence[str]) -> str:
    """Choose the variant that a bare technique name means: the only one, or the technique's default.

    Raises:
        UsageError: there are several, and the default is not among them.
    """
    if len(named) == 1:
        return named[0]
    from flowers_bench.contract.host import discover

    registered = discover().techniques.get(label)
    default = f"{label}/{registered.value.default}" if registered else None
    if default is not None and default in named:
        return default
    raise UsageError(f"{label!r} names {len(named)} variants: {', '.join(named)}. Name one.")


def _together(candidates: Sequence[list[Configuration]]) -> list[list[Configuration]]:
    """Keep, if a name means several configurations, those that can be compared with one of every other name."""
    from flowers_bench.report.aggregate import obstacles

    if all(len(found) == 1 for found in candidates):
        return list(candidates)

    def fits(configuration: Configuration) -> bool:
        trial = configuration.trials[0]
        return all(any(not obstacles(trial, other.trials[0]) for other in found) for found in candidates)

    return [[c for c in found if fits(c)] or found for found in candidates]


def _ambiguous(name: str, found: Sequence[Configuration], out: Path) -> UsageError:
    from flowers_bench.report.names import distinct_names

    names = distinct_names([configuration.config for configuration in found])
    lines = [
        f"  {shlex.quote(text)}   seeds {', '.join(str(t.config.seed) for t in one.trials)}; "
        f"trials {', '.join(t.folder.id[:8] for t in one.trials)}"
        for text, one in zip(names, found, strict=True)
    ]
    plural = "s" if len(found) > 1 else ""
    return UsageError(
        f"{name!r} names {len(found)} configuration{plural} in {out}; name one by what tells it apart, or by a trial's id:\n"
        + "\n".join(lines)
    )
