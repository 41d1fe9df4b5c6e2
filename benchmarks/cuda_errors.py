"""python benchmarks/cuda_errors.py: how exact the CUDA kernels are, run on a processor thread by thread. No GPU is needed.

The kernels' own source, as the tests run it (tests/ops/emulate.cpp), with plain loops and float32 sums in place of cuBLAS,
against the float64 reference on the same rounded arguments: 3x3, a mask, 64 channels, 16 outputs, offsets of standard
deviation 2. A cell is the norm of the difference over the norm of the reference's result. "coordinates in float16" is the
reference itself where it samples at rounded places: what torchvision's kernels for float16 lose by that alone.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from tables import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "ops"))

import test_cuda_emulated as emulated

SIDES = (14, 56)


def errors(found: emulated.Results, exact: emulated.Results) -> list[str]:
    """Compute the relative error of each result."""
    return [f"{(found[n].double() - exact[n]).norm() / exact[n].norm():.1e}" for n in emulated.OUTPUTS]


def with_half_coordinates(call: emulated.Call) -> emulated.Call:
    """Round where each tap samples to float16, as torchvision does for that type; in all else the call stays as it is."""
    (batch, _, height, width), (kernel_h, kernel_w) = call.offset.shape, call.weight.shape[2:]
    offset = call.offset.view(batch, kernel_h, kernel_w, 2, height, width).clone()
    for tap in range(kernel_h * kernel_w):
        row, column = divmod(tap, kernel_w)
        rows = torch.arange(height).double().sub(call.padding[0] - row)[:, None]
        columns = torch.arange(width).double().sub(call.padding[1] - column)
        for axis, origin in enumerate((rows, columns)):
            offset[:, row, column, axis] = (origin + offset[:, row, column, axis]).half().double() - origin
    return replace(call, offset=offset.view_as(call.offset))


def rows(library: ctypes.CDLL) -> Table:
    """Measure all types at all sizes."""
    names = [name.removeprefix("grad_") for name in emulated.OUTPUTS[1:]]
    table = Table(["side", "type", "computed by", "output", *(f"gradient of {name}" for name in names)])
    for side in SIDES:
        for dtype in emulated.HALVES_AND_FLOAT:
            call = emulated.call_of(batch=1, channels=64, outputs=16, size=(side, side)).rounded(dtype)
            exact = emulated.reference(call)
            ways = {
                "columns": emulated.run_columns(library, call, dtype),
                "general": emulated.run(library, call, dtype),
            }
            for name, found in ways.items():
                table.add(side, str(dtype).removeprefix("torch."), name, *errors(found, exact))
            if dtype == torch.float16:
                found = {**exact, "out": emulated.reference(with_half_coordinates(call))["out"]}
                table.add(
                    side, "float16", "float64, coordinates in float16", errors(found, exact)[0], *[""] * len(names)
                )
    return table


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, help="write the table here too")
    options = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        table = rows(emulated.compiled(Path(folder)))
    if options.csv:
        table.write(options.csv)


if __name__ == "__main__":
    main()
