"""`flowers-bench leaderboard`: print the store's finished trials as tables."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.util.errors import unknown_name


def print_leaderboard(out: Path, format: str, trials: bool, margin: float = 1.0, *, wide: bool = False) -> int:
    """Print the leaderboard, or one line for each trial, to stdout in this format; return the exit code.

    Args:
        margin: in points, within which techniques are the same for practical purposes.
        wide: whether the text has all columns.

    Raises:
        UsageError: the store is empty, or the format is unknown.
    """
    from flowers_bench.cli.damage import read_store
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.text import FORMATS, print_text, trials_table

    if format != "text" and format not in FORMATS:
        raise unknown_name("format", format, ["text", *FORMATS])
    contents, code = read_store(out)
    folders = contents.finished
    if trials:
        print(trials_table(folders))
    elif format == "text":
        print_text(Leaderboard.of(folders, margin=margin / 100), wide=wide)
    else:
        print(FORMATS[format](Leaderboard.of(folders, margin=margin / 100)))
    return code
