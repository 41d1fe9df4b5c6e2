"""python benchmarks/bfloat16_table.py: what bfloat16 costs and loses on this processor, by one thread.

Times are of the processor (this thread's, whatever else runs meanwhile), and each ratio is the median over the rounds of
that round's ratio. Errors are those of one image against float64 with the same inputs: the norm of the difference over
the norm of the result. FLOWERS_BENCH_KERNEL=avx512bf16 multiplies in pairs, avx512 in float32; with `--csv FILE` the
table is added to what the file holds, and the errors to a file beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from cases import STAGES, Call, Case, forward, forward_backward
from kernel_table import cell, ratio
from tables import Table
from torch import Tensor

from flowers_bench.ops import deform_conv2d, kernel

TENSORS = ("input", "offset", "weight", "mask")


def interleaved(runs: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Measure the processor's seconds of each peer in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if turn:  # the first warms up
                seconds[name].append(time.process_time() - started)
    return seconds


def times(batches: list[int], rounds: int) -> Table:
    """Print the table of every stage and batch."""
    table = Table(
        ["kernel", "stage", "batch", "direction", "ours ms", "conv2d ms", "ours / conv2d",
         "bfloat16 / float32, ours", "bfloat16 / float32, conv2d"]
    )  # fmt: skip
    for stage in STAGES:
        for batch in batches:
            for direction in (forward, forward_backward):
                half, full = Case(stage, batch, torch.bfloat16), Case(stage, batch)
                runs = {"ours": direction(half, "flowers_bench"), "conv2d": direction(half, "conv2d"),
                        "ours32": direction(full, "flowers_bench"), "conv2d32": direction(full, "conv2d")}  # fmt: skip
                found = interleaved(runs, rounds)
                ours, plain = (1000 * statistics.median(found[peer]) for peer in ("ours", "conv2d"))
                ratios = [
                    ratio(found, *pair) for pair in (("ours", "conv2d"), ("ours", "ours32"), ("conv2d", "conv2d32"))
                ]
                table.add(kernel(), stage, batch, direction.__name__, f"{ours:.1f}", f"{plain:.1f}", *map(cell, ratios))
    return table


def results(case: Case, dtype: torch.dtype) -> list[Tensor]:
    """Compute the output and all gradients of a case in another type."""
    given = {name: getattr(case, name).detach().to(dtype).requires_grad_() for name in TENSORS}
    out = deform_conv2d(**given, padding=1)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)
    return [out.detach(), *torch.autograd.grad(out, [given[name] for name in TENSORS], grad)]


def errors() -> Table:
    """Print the relative error of each result."""
    labels = ["output", *(f"gradient of {name}" for name in TENSORS)]
    table = Table(["kernel", "stage", *labels])
    for stage in STAGES:
        case = Case(stage, 1, torch.bfloat16)
        pairs = zip(results(case, torch.bfloat16), results(case, torch.float64), strict=True)
        table.add(
            kernel(), stage, *(f"{((got.double() - want).norm() / want.norm()).item():.5f}" for got, want in pairs)
        )
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--csv", type=Path, help="add the table to this file, and the errors to FILE-errors.csv")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{kernel()}, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}\n")
    for name, table in (("", times(options.batches, options.rounds)), ("-errors", errors())):
        if options.csv:
            path = options.csv.with_stem(options.csv.stem + name).absolute()
            before = Table.read(path).rows if path.exists() else []
            Table(table.columns, before + table.rows).write(path)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
