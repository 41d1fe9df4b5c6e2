"""`flowers-bench report`: write everything in the store as one page."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from flowers_bench.store.folder import TrialFolder


#: What the user calls other stores of the same page, and where they are.
Beside = Mapping[str, Path]


def report(
    runs: Path, output: Path, margin: float = 1.0, store: str | None = None, beside: Beside = MappingProxyType({})
) -> int:
    """Write the page, say so, and return the exit code; as `write_report`."""
    from flowers_bench.util.text import counted

    code, trials, size = write_report(runs, output, margin, store, beside)
    print(f"{output}: {counted(trials, 'trial')}, {size / 1e6:.1f} MB; open it in a browser")
    return code


def follow(
    runs: Path,
    output: Path,
    margin: float = 1.0,
    store: str | None = None,
    beside: Beside = MappingProxyType({}),
    every: float = 2.0,
) -> int:
    """Write the page anew after each epoch, until all trials of the stores are finished or the user stops it; return the
    exit code.

    Args:
        every: seconds between two looks at the store.

    Raises:
        UsageError: there is no store, or the page cannot be written.
    """
    from flowers_bench.store.folder import Store

    for root in (runs, *beside.values()):
        if not root.is_dir():
            raise UsageError(f"there is no run store {root} yet: start the run first, then follow it.")
    before: dict[str, dict[str, float]] = {}
    code = 0
    try:
        while True:
            stores = (Store(root).trials() for root in (runs, *beside.values()))
            folders = [folder for store_ in stores for folder in store_ if folder.prepared()]
            now = {folder.id: folder.changed() for folder in folders}
            open_ = sum(not folder.finished() and not folder.failed() for folder in folders)
            if now != before and folders:
                words = _progress_words(folders, open_) if open_ else None
                code, _, _ = write_report(runs, output, margin, store, beside, words)
                print(f"{output}: {words or f'all {len(folders)} trials are finished'}", flush=True)
                before = now
            if not open_ and folders:
                return code
            time.sleep(every)
    except KeyboardInterrupt:
        with contextlib.suppress(UsageError):  # nothing is finished yet
            write_report(runs, output, margin, store, beside)
        return code


def _progress_words(folders: Sequence[TrialFolder], unfinished: int) -> str:
    """Say how many trials are finished, and how long the others take, at most."""
    from flowers_bench.report.formatting import duration
    from flowers_bench.report.remaining import Pace

    left = None
    with contextlib.suppress(OSError, UsageError):  # a damaged trial is named on the page
        left = Pace(folders).seconds_left()
    beside = "" if left is None else f"; at most {duration(left)} left in all, one trial at a time"
    return f"{len(folders) - unfinished} of {len(folders)} trials are finished{beside}"


def write_report(
    runs: Path,
    output: Path,
    margin: float = 1.0,
    store: str | None = None,
    beside: Beside = MappingProxyType({}),
    live: str | None = None,
) -> tuple[int, int, int]:
    """Write the page, and give the exit code, how many trials it shows, and its size in bytes.

    Args:
        margin: in points, within which techniques are the same for practical purposes.
        store: what the user calls the store; the folder's path unless given.
        beside: other stores whose trials come into the same tables; a trial that several have is shown once.
        live: of a run that goes on, what is left of it in words: no trial need be finished then.

    Raises:
        UsageError: a store is empty, two stores have other predictions of one trial, or the page cannot be written.
    """
    from flowers_bench.cli.damage import print_damaged, read_store
    from flowers_bench.report.leaderboard import Leaderboard
    from flowers_bench.report.page import render
    from flowers_bench.report.pictures import damaged_pictures
    from flowers_bench.store.folder import Store
    from flowers_bench.store.merge import united
    from flowers_bench.util.files import write_atomically

    name = store or str(runs)
    roots = {name: runs, **beside}
    read = [(Store(root).read(), 0) if live else read_store(root) for root in roots.values()]
    contents, code = read[0]
    searches = Store(runs).of_searches().read()
    if beside:
        contents, code = united(found for found, _ in read), max(code for _, code in read)
        searches = united(Store(root).of_searches().read() for root in roots.values())
    pictures = damaged_pictures(contents.finished)
    code = print_damaged([*searches.damaged, *pictures]) or code
    if not output.parent.is_dir():
        raise UsageError(f"{output} cannot be written: there is no folder {output.parent}.")
    text = render(
        Leaderboard.of(contents.finished, margin=margin / 100, states=contents.states),
        contents.unfinished,
        [*searches.finished, *searches.unfinished],
        damaged=[*contents.damaged, *searches.damaged, *pictures],
        store=name,
        stores=_stores(contents.finished, roots) if beside else {},
        live=live,
    )
    try:
        write_atomically(output, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error}.") from error
    return code, len(contents.finished), len(text.encode())


def _stores(folders: Sequence[TrialFolder], roots: Beside) -> dict[str, str]:
    """Give what the user calls the store of each trial, by the trial's id."""
    names = {root: name for name, root in roots.items()}
    return {folder.id: names[folder.path.parent] for folder in folders}
