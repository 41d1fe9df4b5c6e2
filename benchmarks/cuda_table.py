"""python benchmarks/cuda_table.py: the kernels' time on this GPU, beside conv2d, torchvision and what the peaks allow.

Calls are replayed as CUDA graphs, so that only the device is timed: the time that Python and the dispatcher take for a
call, which dominates small calls, is not included. Peers take turns within each round; a cell is the median over the
rounds. All peers compute float32 without TF32. "ours" are the general kernels and "columns" ours by columns, whichever
the operator would choose (harness/flowers_bench/ops/_cuda.py); "deterministic" are the general kernels with sums in one
order. Those by columns always have one order.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from cases import BATCHES, CUDA_DTYPES, PEERS, STAGES, Call, Case, forward, forward_backward, why_not
from kernel_table import cell, ratio
from roofline import Gpu, Work
from roofline import backward as backward_work
from roofline import forward as forward_work
from tables import Table

from flowers_bench.ops._cuda import Way, forced


def replayed(run: Call, calls: int) -> Call:
    """Record `calls` calls as one CUDA graph, and give the function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            run()
    return graph.replay


def seconds_of(run: Call, calls: int) -> float:
    """Measure `run`, which makes `calls` calls, by the device's clock; return the seconds of one call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


def interleaved(runs: dict[str, Call], rounds: int, calls: int = 20) -> dict[str, list[float]]:
    """Measure the seconds of each peer in each round; in a round, the peers take turns."""
    graphs = {name: replayed(run, calls) for name, run in runs.items()}
    for graph in graphs.values():
        graph()
    found: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            found[name].append(seconds_of(graph, calls))
    return found


def measured_peaks() -> Gpu:
    """Measure this GPU's peaks: bytes/s read and written by a large copy, and FLOP/s of large matrix products."""

    def best(run: Call, work: float) -> float:
        run()
        return work / min(seconds_of(run, 1) for _ in range(10))

    def copy() -> float:
        source = torch.randn(2**29, device="cuda")
        target = torch.empty_like(source)
        return best(lambda: target.copy_(source), 2 * 4 * source.numel())

    def product(dtype: torch.dtype) -> float:
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        return best(lambda: a @ b, 2 * 8192**3)

    return Gpu(torch.cuda.get_device_name(), product(torch.float16), product(torch.float32), copy())


def deterministically(run: Call) -> Call:
    """Wrap `run` so that it uses deterministic algorithms."""

    def run_deterministically() -> object:
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            return run()
        finally:
            torch.use_deterministic_algorithms(False)

    return run_deterministically


def computed_by(way: Way, run: Call) -> Call:
    """Wrap `run`, a call of ours, so that `way` computes it."""

    def run_so() -> object:
        with forced(way):
            return run()

    return run_so


def least(direction: Callable[..., Call], stage: int, batch: int, dtype: torch.dtype, gpu: Gpu) -> float:
    """Compute the least time that the peaks allow, in seconds (docs/roofline.md)."""
    works: list[Callable[[int, int, int], Work]] = [forward_work]
    if direction is forward_backward:
        works.append(backward_work)
    name = "float32" if dtype == torch.float32 else "float16"
    return sum(work(stage, batch, dtype.itemsize).seconds(gpu, name)[0] for work in works)


def rows(rounds: int, gpu: Gpu) -> Table:
    """Measure all cases, and print the table row by row."""
    table = Table(
        [
            "stage",
            "batch",
            "type",
            "direction",
            "ours us",
            "conv2d us",
            "ours / conv2d",
            "torchvision / ours",
            "NCHW / channels-last",
            "deterministic / ours",
            "ours / least",
            "columns us",
            "columns / conv2d",
            "torchvision / columns",
            "ours / columns",
            "deterministic / columns",
        ]
    )
    for stage in STAGES:
        for batch in BATCHES:
            for name, dtype in CUDA_DTYPES.items():
                for direction in (forward, forward_backward):
                    case = Case(stage, batch, dtype, device="cuda")
                    runs = {
                        peer: direction(case, peer) for peer in PEERS if not why_not(peer, direction, dtype, "cuda")
                    }
                    call = runs["flowers_bench"]
                    planes = direction(Case(stage, batch, dtype, torch.contiguous_format, "cuda"), "flowers_bench")
                    runs["flowers_bench"] = computed_by(Way.GENERAL, call)
                    runs["columns"] = computed_by(Way.COLUMNS, call)
                    runs["nchw"] = computed_by(Way.GENERAL, planes)
                    if direction is forward_backward:
                        runs["deterministic"] = deterministically(runs["flowers_bench"])
                    found = interleaved(runs, rounds)
                    ours, plain, columns = (
                        1e6 * statistics.median(found[peer]) for peer in ("flowers_bench", "conv2d", "columns")
                    )
                    bound = ours / (1e6 * least(direction, stage, batch, dtype, gpu))
                    table.add(
                        stage, batch, name, direction.__name__, f"{ours:.1f}", f"{plain:.1f}",
                        cell(ratio(found, "flowers_bench", "conv2d")),
                        cell(ratio(found, "torchvision", "flowers_bench"), 1),
                        cell(ratio(found, "nchw", "flowers_bench")),
                        cell(ratio(found, "deterministic", "flowers_bench"), 1),
                        f"{bound:.1f}",
                        f"{columns:.1f}",
                        cell(ratio(found, "columns", "conv2d")),
                        cell(ratio(found, "torchvision", "columns"), 1),
                        cell(ratio(found, "flowers_bench", "columns"), 1),
                        cell(ratio(found, "deterministic", "columns"), 1),
                    )  # fmt: skip
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    options = parser.parse_args()
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as trials have it
    torch.backends.cudnn.allow_tf32 = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as trials have it
    torch.backends.cudnn.benchmark = True  # let cuDNN choose the fastest plain convolution
    gpu = measured_peaks()
    print(
        f"{gpu.name}, torch {torch.__version__}; measured peaks: {gpu.memory / 1e12:.2f} TB/s copied, {gpu.half / 1e12:.0f} "
        f"TFLOP/s float16, {gpu.single / 1e12:.0f} TFLOP/s float32; 3x3, mask, channels-last, offsets of standard deviation 1; "
        f"{options.rounds} rounds\n"
    )
    table = rows(options.rounds, gpu)
    if options.csv:
        table.write(options.csv)


if __name__ == "__main__":
    main()
