"""How many trials run at once, and with how many threads each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace

from flowers_bench.plan.request import TrialPlan
from flowers_bench.util.system import available_cores

#: At most so many parameters, and images of at most so many pixels a side, make a small network: see `at_once`.
SMALL, SMALL_SIDE = 2_000_000, 96


def threads_of_environment() -> int | None:
    """Read `OMP_NUM_THREADS`; of a list, which OpenMP allows, take the first number. None if it is not set."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return (int(first) or None) if first.isdecimal() else None


def _share_of_threads(jobs: int) -> int | None:
    """Compute the threads of each of `jobs` trials that run at once; None (torch chooses) if there is only one."""
    return max(1, available_cores() // jobs) if jobs > 1 else None


def side_by_side(planned: Sequence[TrialPlan]) -> tuple[int, list[TrialPlan]]:
    """Choose how many trials run at once, and divide the processor's threads among them."""
    device = planned[0].run.device
    jobs = min(at_once(len(planned), i.parameters, i.trial.recipe.image_size, device) for i in planned)
    share = _share_of_threads(jobs)
    return jobs, [replace(i, run=replace(i.run, threads=i.run.threads or share)) for i in planned]


def at_once(trials: int, parameters: int, image_size: int, device: str | None) -> int:
    """Choose how many of so many trials of one network run at once.

    One for each core where the network is `SMALL`: a batch of such a network does not keep two threads busy. Else one,
    and where there is a GPU.
    """
    from flowers_bench.training.process import choose_device

    small = parameters <= SMALL and image_size <= SMALL_SIDE and choose_device(device).type == "cpu"
    return max(1, min(available_cores() if small else 1, trials))


def threads_of_each(jobs: int) -> int | None:
    """Give the threads of each of so many trials that run at once where nobody says how many; None where torch chooses."""
    return threads_of_environment() or _share_of_threads(jobs)
