"""`flowers-bench report`: everything in the store as one page."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.errors import UsageError


def report(runs: Path, output: Path) -> None:
    """Write the page. Raises `UsageError` for an empty store, and where the page cannot be written."""
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.page import render
    from flowers_bench.store import Store, write_atomically

    store = Store(runs)
    folders = store.finished_or_refuse()
    if not output.parent.is_dir():
        raise UsageError(f"{output} cannot be written: there is no folder {output.parent}.")
    unfinished = [folder for folder in store.trials() if not folder.finished()]
    text = render(Leaderboard.of(folders), unfinished, list(store.of_searches().trials()))
    try:
        write_atomically(output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error}.") from error
    print(f"{output}: {len(folders)} trials, {len(text.encode()) / 1e6:.1f} MB; open it in a browser")
