"""`flowers-bench figures`: draw a suite's figures, or those of any run store."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.util.errors import UsageError
from flowers_bench.util.text import printable


def figures(suite: str | None, runs: Path, output: Path, store: str | None = None) -> int:
    """Write the files and print their names; return the exit code.

    Without a suite, they are accuracy against cost, curves and the matrix of each table of the store. Figures that cannot be drawn are named too, with the command that runs their trials.

    Raises:
        UsageError: the store is empty, the suite has no figures, or the folder cannot be written.
    """
    from flowers_bench.cli.damage import print_damaged, read_store
    from flowers_bench.plan.suites import read_suite
    from flowers_bench.report.figures import draw_figures
    from flowers_bench.report.pictures import damaged_pictures
    from flowers_bench.report.table import stdout

    if suite is None:
        return _of_store(runs, output)
    wanted = read_suite(suite)
    if not wanted.figures:
        raise UsageError(f"suite {wanted.path} has no [[figures]]; docs/study.md tells how to write some.")
    contents, code = read_store(runs)
    code = print_damaged(damaged_pictures(contents.finished)) or code
    try:
        output.mkdir(parents=True, exist_ok=True)
        drawn = draw_figures(wanted.figures, contents.finished, output)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error}.") from error
    console = stdout()
    for item in drawn:
        for path in item.files:
            console.print(printable(f"{path}: {item.figure.title}"), markup=False, soft_wrap=True)
    absent = [item for item in drawn if not item.files]
    for item in absent:
        console.print(
            printable(f"absent: {item.figure.name} ({item.figure.title}): {item.why}"), markup=False, soft_wrap=True
        )
    if absent:
        console.print(
            f"what is absent comes with: flowers-bench run {suite} --store {store or runs}",
            markup=False,
            soft_wrap=True,
        )
    return code


def _of_store(runs: Path, output: Path) -> int:
    from flowers_bench.cli.damage import read_store
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.store_figures import draw_store
    from flowers_bench.report.table import stdout

    contents, code = read_store(runs)
    board = Leaderboard.of(contents.finished, states=contents.states)
    try:
        output.mkdir(parents=True, exist_ok=True)
        drawn = draw_store(board, output)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error}.") from error
    console = stdout()
    for item in drawn:
        text = f"{', '.join(map(str, item.files))}: {item.title}" if item.files else f"absent: {item.title}: {item.why}"
        console.print(printable(text), markup=False, soft_wrap=True)
    return code
