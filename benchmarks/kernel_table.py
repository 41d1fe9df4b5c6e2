"""python benchmarks/kernel_table.py: the ratio table of docs/performance/cpu.md, from one run.

Peers take turns within each round, so that a change of the machine's speed affects all of them equally. A cell is the median
over the rounds of that round's ratio. torchvision is slow, and takes part in a third of the rounds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path

import torch
from cases import BATCHES, STAGES, Call, Case, forward, forward_backward, why_not
from tables import Table

from flowers_bench.measure.hardware import describe_hardware, environment
from flowers_bench.ops import kernel


def interleaved(runs: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Measure the seconds of each peer in each round; torchvision only in every third, whose time the next two repeat."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for turn in range(rounds):
        for name, run in runs.items():
            if name == "torchvision" and turn % 3:
                seconds[name].append(seconds[name][-1])
                continue
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(found: dict[str, list[float]], above: str, below: str) -> float:
    """Compute the median over the rounds of one peer's time divided by another's; NaN if one did not take part."""
    if above not in found or below not in found:
        return math.nan
    return statistics.median(a / b for a, b in zip(found[above], found[below], strict=True))


def cell(value: float, digits: int = 2) -> str:
    """Write a number for the table; an empty cell for NaN."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def geometric_mean(values: list[float]) -> float:
    """Compute the geometric mean of positive numbers."""
    return math.exp(statistics.fmean(math.log(v) for v in values))


def rows(batches: tuple[int, ...], rounds: int, peers: tuple[str, ...]) -> Table:
    """Print the table of every stage and batch, and below it the geometric means that the targets are set for."""
    table = Table(
        [
            "stage",
            "batch",
            "direction",
            "ours ms",
            "conv2d ms",
            "ours / conv2d",
            "NCHW / channels-last",
            "torchvision / ours",
            "onnxruntime / ours",
        ]
    )
    means: dict[tuple[int, str], list[float]] = {}
    for stage in STAGES:
        for batch in batches:
            for direction in (forward, forward_backward):
                name = direction.__name__
                runs = {
                    peer: direction(Case(stage, batch), peer)
                    for peer in peers
                    if not why_not(peer, direction, torch.float32)
                }
                runs["nchw"] = direction(Case(stage, batch, layout=torch.contiguous_format), "flowers_bench")
                found = interleaved(runs, rounds)
                ours, plain = (1000 * statistics.median(found[peer]) for peer in ("flowers_bench", "conv2d"))
                against = ratio(found, "flowers_bench", "conv2d")
                if batch >= 8:
                    means.setdefault((stage, name), []).append(against)
                table.add(
                    stage, batch, name, f"{ours:.1f}", f"{plain:.1f}", cell(against),
                    cell(ratio(found, "nchw", "flowers_bench")),
                    cell(ratio(found, "torchvision", "flowers_bench"), 1),
                    cell(ratio(found, "onnxruntime", "flowers_bench")),
                )  # fmt: skip
    print("\nGeometric means over batches of 8 and more, ours / conv2d:")
    for (stage, name), values in means.items():
        print(f"stage {stage} {name}: {geometric_mean(values):.2f}")
    return table


def alone(run: Call) -> Call:
    """Wrap `run` so that it uses one thread."""

    def with_one_thread() -> object:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return run()
        finally:
            torch.set_num_threads(threads)

    return with_one_thread


def scaling(rounds: int) -> Table:
    """Print how much faster all threads are than one, for our kernel and the plain convolution; and bfloat16 than float32."""
    gain = f"1 thread / {torch.get_num_threads()} threads"
    print()
    table = Table(["stage", "direction", f"{gain}, ours", f"{gain}, conv2d", "bfloat16 / float32"])
    for stage in STAGES:
        for direction in (forward, forward_backward):
            ours, plain = (direction(Case(stage, 8), peer) for peer in ("flowers_bench", "conv2d"))
            half = direction(Case(stage, 8, torch.bfloat16), "flowers_bench")
            runs = {"ours": ours, "half": half, "plain": plain, "ours1": alone(ours), "plain1": alone(plain)}
            found = interleaved(runs, rounds)
            table.add(
                stage, direction.__name__, cell(ratio(found, "ours1", "ours")), cell(ratio(found, "plain1", "plain")),
                cell(ratio(found, "half", "ours")),
            )  # fmt: skip
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peers", nargs="+", default=["flowers_bench", "conv2d", "torchvision", "onnxruntime"])
    parser.add_argument("--csv", type=Path, help="write the table here too, and what threads gain beside it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    facts = environment(torch.device("cpu"))
    print(
        f"{describe_hardware(facts)}, torch {torch.__version__}, kernel {kernel()}, {options.threads} threads; ", end=""
    )
    print(f"float32, 3x3, mask, channels-last, offsets of standard deviation 1; {options.rounds} rounds\n")
    found = rows(tuple(options.batches), options.rounds, tuple(options.peers))
    gains = scaling(options.rounds) if options.threads > 1 else None
    if options.csv:
        found.write(options.csv)
        if gains:
            gains.write(options.csv.with_stem(f"{options.csv.stem}-threads"))


if __name__ == "__main__":
    main()
