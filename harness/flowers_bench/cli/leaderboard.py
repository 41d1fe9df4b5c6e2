"""`flowers-bench leaderboard`: print the store's finished trials as tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.util.errors import unknown_name

if TYPE_CHECKING:
    from flowers_bench.store.folder import Contents

FORMATS = ("text", "md", "latex", "csv", "json")


def print_leaderboard(out: Path, format: str, trials: bool, margin: float = 1.0, *, wide: bool = False) -> int:
    """Print the leaderboard, or one line for each trial, to stdout in this format; return the exit code.

    Args:
        margin: in points, within which techniques are the same for practical purposes.
        wide: whether the text has all columns.

    Raises:
        UsageError: the store is empty, or the format is unknown.
    """
    from flowers_bench.cli.damage import read_store
    from flowers_bench.report.table import terminal_width
    from flowers_bench.store import index
    from flowers_bench.store.reading import PLANS

    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    contents, code = read_store(out)
    plans = sorted((out / PLANS).glob("*.json"))
    states = [(path.name, (s := path.stat()).st_size, s.st_mtime_ns, s.st_ctime_ns) for path in plans]
    asked = (format, trials, margin, wide, terminal_width(), states)
    key = (
        index.key_of(((f.id, contents.states.get(f.id)) for f in contents.finished), *asked)
        if (out / index.FOLDER).is_dir()
        else None
    )
    kept_as = f"leaderboard-{'trials' if trials else format}"
    text = index.kept(out, kept_as, key)
    if text is None:
        text = _text(contents, format, trials, margin, wide=wide).encode()
        index.keep(out, kept_as, key, text)
    sys.stdout.write(text.decode())
    return code


def _text(contents: Contents, format: str, trials: bool, margin: float, *, wide: bool) -> str:
    """Compute what `print_leaderboard` prints."""
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.text import FORMATS as WRITERS
    from flowers_bench.report.text import text, trials_table

    if trials:
        return trials_table(contents.finished) + "\n"
    board = Leaderboard.of(contents.finished, margin=margin / 100, states=contents.states)
    return text(board, wide=wide) if format == "text" else WRITERS[format](board) + "\n"
