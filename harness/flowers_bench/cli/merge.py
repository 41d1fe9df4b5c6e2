"""`flowers-bench merge A B ... -o DIR`: merge several run stores into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def merge(sources: Sequence[Path], output: Path) -> int:
    """Merge the stores, print how many trials were copied, and name damaged ones, which are left out; return the exit code.

    Raises:
        UsageError: two stores contradict each other; nothing is written then.
    """
    from flowers_bench.cli.damage import print_damaged
    from flowers_bench.store.merge import merge_stores
    from flowers_bench.util.text import counted

    merged = merge_stores(sources, output)
    print(
        f"{counted(merged.taken, 'trial')} taken, {merged.present} {'was' if merged.present == 1 else 'were'} there already; {output} has {merged.total}"
    )
    return print_damaged(merged.damaged)
