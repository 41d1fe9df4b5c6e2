"""`flowers-bench report`: write everything in the store as one page."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.util.errors import UsageError


def report(runs: Path, output: Path, margin: float = 1.0, store: str | None = None) -> int:
    """Write the page, and return the exit code.

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
    from flowers_bench.util.text import counted

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
    print(
        f"{output}: {counted(len(contents.finished), 'trial')}, {len(text.encode()) / 1e6:.1f} MB; open it in a browser"
    )
    return code
