"""python benchmarks/kernel_table.py: the ratio table of docs/performance.md, from one run.

Peers take turns within each round, so that a machine whose speed drifts slows all of them alike; a cell is the ratio
of medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from cases import BATCHES, PEERS, STAGES, Case, forward, forward_backward

from flowers_bench.environment import describe_hardware, environment
from flowers_bench.ops import kernel


def medians(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if turn:  # the first turn warms up
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(rounds: int = 7) -> None:
    """Print the table as Markdown."""
    facts = environment(torch.device("cpu"))
    print(
        f"{describe_hardware(facts)}, torch {torch.__version__}, kernel {kernel()}, float32, 3x3, mask, {rounds} rounds\n"
    )
    print("| stage | batch | direction | ours ms | conv2d ms | torchvision ms | ours / conv2d | torchvision / ours |")
    print("|---:|---:|---|---:|---:|---:|---:|---:|")
    for stage in STAGES:
        for batch in BATCHES:
            for direction in (forward, forward_backward):
                case = Case(stage, batch)
                found = medians({peer: direction(case, peer) for peer in PEERS}, rounds)
                ours, plain, theirs = (1000 * found[peer] for peer in ("flowers_bench", "conv2d", "torchvision"))
                print(
                    f"| {stage} | {batch} | {direction.__name__} | {ours:.1f} | {plain:.1f} | {theirs:.1f} "
                    f"| {ours / plain:.2f} | {theirs / ours:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
