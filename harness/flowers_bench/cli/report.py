"""`flowers-bench report`: write everything in the store as one page."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.util.errors import UsageError


def report(runs: Path, output: Path, margin: float = 1.0, store: str | None = None) -> int:
    """Write the page, say so, and return the exit code; as `write_report`."""
    from flowers_bench.util.text import counted

    code, trials, size = write_report(runs, output, margin, store)
    print(f"{output}: {counted(trials, 'trial')}, {size / 1e6:.1f} MB; open it in a browser")
    return code


def write_report(runs: Path, output: Path, margin: float = 1.0, store: str | None = None) -> tuple[int, int, int]:
    """Write the page, and give the exit code, how many trials it shows, and its size in bytes.

    Args:
        margin: in points, within which techniques are the same for practical purposes.
        store: what the user calls the store; the folder's path unless given.

    Raises:
        UsageError: the store is empty, or the page cannot be written.
    """
    from flowers_bench.cli.damage import print_damaged, read_store
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.page import render
    from flowers_bench.report.pictures import damaged_pictures
    from flowers_bench.store.folder import Store
    from flowers_bench.util.files import write_atomically

    contents, code = read_store(runs)
    searches = Store(runs).of_searches().read()
    pictures = damaged_pictures(contents.finished)
    code = print_damaged([*searches.damaged, *pictures]) or code
    if not output.parent.is_dir():
        raise UsageError(f"{output} cannot be written: there is no folder {output.parent}.")
    text = render(
        Leaderboard.of(contents.finished, margin=margin / 100),
        contents.unfinished,
        [*searches.finished, *searches.unfinished],
        damaged=[*contents.damaged, *searches.damaged, *pictures],
        store=store or str(runs),
    )
    try:
        write_atomically(output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error}.") from error
    return code, len(contents.finished), len(text.encode())
