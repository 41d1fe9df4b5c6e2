"""How training images come to the device that trains: the one place that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import torch

from flowers_bench.contract.dataset import Images
from flowers_bench.data.on_device import fit_on
from flowers_bench.data.processes import can_fork
from flowers_bench.ops import draws_on
from flowers_bench.training.distributed import Ranks


class Feeding(Enum):
    """What draws a step's images. The value stands in `hardware.drawn` of results from other devices than a CPU."""

    IN_TURN = "in turn"  # this process, when the step is taken
    ON_DEVICE = "on the device"  # the GPU, when the step is taken: all decoded images lie there
    BY_THREAD = "by a thread"  # a thread of this process, two steps ahead
    BY_PROCESSES = "by processes"  # copies of this process, some steps ahead


def choose_feeding(device: torch.device, ranks: Ranks, by_parameters: bool, splits: Sequence[Images]) -> Feeding:
    """Choose what draws the images of a training.

    On a CPU the trials' threads keep all cores busy already, so that nothing is gained by drawing ahead.

    Args:
        by_parameters: whether all are drawn by parameters. Otherwise they are drawn from torch's global generator, which a process
            has once and threads would have to share.
        splits: those that images are drawn of.
    """
    if device.type == "cpu":
        return Feeding.IN_TURN
    if by_parameters and device.type == "cuda":
        fit = draws_on("cuda") and fit_on(device, splits)
        # All ranks take one way: what one of them draws in turn, the others wait for.
        if all(ranks.all_gather(fit)):
            return Feeding.ON_DEVICE
    if ranks.count > 1:
        return Feeding.IN_TURN
    if by_parameters:
        return Feeding.BY_THREAD
    return Feeding.BY_PROCESSES if device.type == "cuda" and can_fork() else Feeding.IN_TURN
