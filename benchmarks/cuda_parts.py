"""python benchmarks/cuda_parts.py: what a call's kernels take one by one on this GPU, and what the GPU can do.

Three tables: bytes that are copied in a second, by size (those that fit the L2 cache show its rate); matrix products in the
shapes that the passes by columns ask for; and each kernel of a forward and backward pass, as torch's profiler times them,
of ours by columns, our general kernels and torchvision's. Times are device time; a product's is the least of interleaved
repetitions, a kernel's the least over the profiled calls. `--csv FOLDER` keeps the tables.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from cases import BATCHES, CUDA_DTYPES, STAGES, Call, Case, forward_backward
from cuda_table import interleaved
from tables import Table

from flowers_bench.ops._cuda import Way, forced

TAPS = 9
SIZES = {"1 MiB": 2**20, "8 MiB": 2**23, "32 MiB": 2**25, "128 MiB": 2**27, "2 GiB": 2**31}  # bytes


@dataclass(frozen=True)
class Launch:
    """One kernel that the profiler saw: its name, and the device's microseconds."""

    name: str
    microseconds: float


def short_name(name: str) -> str:
    """Reduce a kernel's demangled name: ours to the struct that it runs, others to the function without parameters."""
    if ours := re.search(r"run_blocks<flowers_bench::(\w+)", name):
        return ours[1]
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain)[0].split("::")[-1].strip()


def kernels_of(launches: Iterable[Launch], calls: int) -> dict[str, tuple[float, float]]:
    """Sum the launches up by kernel: how many a call makes, and the least microseconds of a call's launches, if every call
    makes the same in the same order."""
    times: dict[str, list[float]] = defaultdict(list)
    for launch in launches:
        times[short_name(launch.name)].append(launch.microseconds)
    found = {}
    for name, all_ in times.items():
        each = max(1, len(all_) // calls)
        found[name] = (len(all_) / calls, min(sum(all_[i : i + each]) for i in range(0, len(all_) - each + 1, each)))
    return found


def profiled(run: Call, calls: int) -> list[Launch]:
    """Run `calls` times under torch's profiler, and list what ran on the device."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            run()
        torch.cuda.synchronize()
    events = [event for event in seen.events() if event.device_type == DeviceType.CUDA]
    return [Launch(event.name, event.time_range.elapsed_us()) for event in events]


def copies(rounds: int) -> Table:
    """Measure the bytes/s that a copy reads and writes."""
    table = Table(["size", "GB/s read and written"])
    runs: dict[str, Call] = {}
    for name, size in SIZES.items():
        source = torch.zeros(size // 4, device="cuda")
        target = torch.empty_like(source)
        runs[name] = lambda source=source, target=target: target.copy_(source)  # type: ignore[misc]
    found = interleaved(runs, rounds)
    for name, size in SIZES.items():
        table.add(name, f"{2 * size / min(found[name]) / 1e9:.0f}")
    return table


def products(rounds: int) -> Table:
    """Measure the three products of a call by columns: output, gradient of the columns, gradient of the weight."""
    table = Table(["stage", "batch", "type", "output us", "columns' gradient us", "weight's gradient us"])
    for stage, (channels, side) in STAGES.items():
        for batch in BATCHES:
            for name, dtype in CUDA_DTYPES.items():
                length, positions = TAPS * channels, batch * side * side
                columns = torch.randn(positions, length, device="cuda").to(dtype)
                weight = torch.randn(channels, length, device="cuda").to(dtype)
                grad = torch.randn(positions, channels, device="cuda").to(dtype)
                found = interleaved(
                    {
                        "output": _product(columns, weight.t(), dtype),
                        "columns": _product(grad, weight, dtype),
                        "weight": _product(columns.t(), grad, torch.float32),
                    },
                    rounds,
                )
                table.add(stage, batch, name, *(f"{1e6 * min(seconds):.1f}" for seconds in found.values()))
    return table


def _product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype) -> Call:
    if dtype == a.dtype:
        return lambda: torch.mm(a, b)
    return lambda: torch.mm(a, b, out_dtype=dtype)  # type: ignore[call-overload]


def parts(batches: Iterable[int], calls: int) -> Table:
    """Measure each kernel of a forward and backward pass."""
    table = Table(["stage", "batch", "type", "computed by", "kernel", "launches", "us"])
    for stage in STAGES:
        for batch in batches:
            for name, dtype in CUDA_DTYPES.items():
                run = forward_backward(Case(stage, batch, dtype, device="cuda"), "flowers_bench")
                for way in Way:
                    if way is Way.TORCHVISION and dtype == torch.bfloat16:
                        continue  # it has none
                    with forced(way):
                        found = kernels_of(profiled(run, calls), calls)
                    for kernel, (launches, least) in sorted(found.items(), key=lambda item: -item[1][1]):
                        table.add(stage, batch, name, way.value, kernel, f"{launches:g}", f"{least:.1f}")
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--calls", type=int, default=10, help="profiled calls")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="of the kernels' table")
    parser.add_argument("--csv", type=Path, metavar="FOLDER", help="write the tables there too")
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # as trials have it
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    makers: dict[str, Callable[[], Table]] = {
        "cuda-copies": lambda: copies(options.rounds),
        "cuda-products": lambda: products(options.rounds),
        "cuda-parts": lambda: parts(options.batches, options.calls),
    }
    if options.csv:
        options.csv.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        print(f"\n{name}\n")
        table = make()
        if options.csv:
            table.write(options.csv / f"{name}.csv")


if __name__ == "__main__":
    main()
