"""`flowers-bench merge A B ... -o DIR`: one run store of several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def merge(sources: Sequence[Path], output: Path) -> int:
    """Print what was taken, and name what is damaged and was left out; returns the exit code. Raises `UsageError` for
    stores that contradict each other; nothing is written then."""
    from flowers_bench.cli.damage import print_damaged
    from flowers_bench.store.merge import merge_stores

    merged = merge_stores(sources, output)
    print(f"{merged.taken} trials taken, {merged.present} were there already; {output} has {merged.total}")
    return print_damaged(merged.damaged)
