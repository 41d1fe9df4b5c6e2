"""A map over threads: results in order, never far ahead of whoever takes them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from flowers_bench.util.system import available_cores

A = TypeVar("A")
B = TypeVar("B")
#: Results that may wait per thread. Executor.map has no such bound and would hold a whole decoded data set.
_AHEAD = 8


def in_order(
    function: Callable[[A], B], items: Iterable[A], workers: int | None = None, ahead: int = _AHEAD
) -> Iterator[B]:
    """Call `function` with each item, and give the results in order, computed on all available cores while it releases
    the interpreter lock.

    Args:
        workers: threads; None: as many as there are cores.
        ahead: results that may wait for each thread.

    Raises:
        whatever `function` raises, when its turn comes; nothing more is started after that.
    """
    workers = workers or available_cores()
    pool = ThreadPoolExecutor(workers)
    pending: deque[Future[B]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= workers * ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
