"""python benchmarks/kernel_memory.py: peak memory of one call beyond its inputs; each call has a separate process.

Linux records the peak (VmHWM in /proc/self/status, reset before the call), so that the table counts everything: results,
gradients, scratch memory, packed weights. Other systems are not supported.
"""

from __future__ import annotations

import argparse
import ctypes
import multiprocessing
from pathlib import Path

import torch
from cases import STAGES, Case, forward, forward_backward
from tables import Table

from flowers_bench.measure.hardware import describe_hardware, environment
from flowers_bench.ops import kernel

DIRECTIONS = {"forward": forward, "forward_backward": forward_backward}
PEERS = ("flowers_bench", "conv2d", "torchvision")


def resident(field: str) -> int:
    """Read `VmRSS` or `VmHWM` of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak(peer: str, direction: str, stage: int, batch: int, threads: int) -> float:
    """Measure the peak of the first call with this shape, in MiB; libraries and threads are loaded before."""
    torch.set_num_threads(threads)
    DIRECTIONS[direction](Case(4, 1), peer)()
    run = DIRECTIONS[direction](Case(stage, batch), peer)
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that is still resident would be used again without being counted
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    result = run()
    found = resident("VmHWM") - before
    del result
    return found / 2**20


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, help="write the table here too")
    options = parser.parse_args()
    print(
        f"{describe_hardware(environment(torch.device('cpu')))}, torch {torch.__version__}, kernel {kernel()}, "
        f"{options.threads} threads; float32, channels-last, batch {options.batch}\n"
    )
    table = Table(["stage", "direction", "ours MiB", "conv2d MiB", "torchvision MiB", "ours / conv2d"])
    context = multiprocessing.get_context("spawn")
    for stage in STAGES:
        for direction in DIRECTIONS:
            found = []
            for peer in PEERS:
                with context.Pool(1) as pool:
                    found.append(pool.apply(peak, (peer, direction, stage, options.batch, options.threads)))
            table.add(stage, direction, *(f"{value:.0f}" for value in found), f"{found[0] / found[1]:.2f}")
    if options.csv:
        table.write(options.csv)


if __name__ == "__main__":
    main()
