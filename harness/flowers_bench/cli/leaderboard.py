"""`flowers-bench leaderboard`: the store's finished trials as tables."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.errors import unknown_name


def print_leaderboard(out: Path, format: str, trials: bool) -> None:
    """Print to stdout in the format asked for. Raises `UsageError` for an empty store or an unknown format."""
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.text import FORMATS, print_text, trials_table
    from flowers_bench.store import Store

    if format != "text" and format not in FORMATS:
        raise unknown_name("format", format, ["text", *FORMATS])
    folders = Store(out).finished_or_refuse()
    if trials:
        print(trials_table(folders))
    elif format == "text":
        print_text(Leaderboard.of(folders))
    else:
        print(FORMATS[format](Leaderboard.of(folders)))
