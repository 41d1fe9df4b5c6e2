"""`flowers-bench answer`: say which technique to take, how sure that is, and what to do next."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.util.errors import unknown_name

FORMATS = ("text", "md", "json")


def answer(root: Path, store: str, format: str, margin: float = 1.0) -> int:
    """Print the answer of each table of the store to stdout in this format; return the exit code.

    Args:
        store: what the user calls the store.
        margin: in points, within which techniques are the same for practical purposes.

    Raises:
        UsageError: the store is empty, or the format is unknown.
    """
    from flowers_bench.cli.damage import read_store
    from flowers_bench.report.answer import answers, json_text, markdown_lines, print_text
    from flowers_bench.report.leaderboard import Leaderboard

    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    contents, code = read_store(root)
    found = answers(
        Leaderboard.of(contents.finished, margin=margin / 100, states=contents.states), contents.unfinished, store
    )
    if format == "json":
        print(json_text(found, store))
    elif format == "md":
        print("\n".join(markdown_lines(found, store)))
    else:
        print_text(found, store)
    return code
