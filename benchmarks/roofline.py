"""python benchmarks/roofline.py > docs/roofline.md: bytes and FLOPs of the CUDA kernels, counted from their source.

Nothing is measured here. tests/ops/test_roofline.py compares the page with this script, and TILE with the kernels.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

from cases import BATCHES, STAGES

TILE = 64  # positions, or channels, of a block: kTile in csrc/deform_conv/cuda/problem.cuh
TAPS, CORNERS, ACCUMULATOR = 9, 4, 4  # taps of a 3x3 kernel; corners of a bilinear sample; bytes of a float32 sum
SIZES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class Gpu:
    """The published peaks of a GPU: dense FLOP/s, and bytes/s of its memory."""

    name: str
    half: float  # tensor cores, float16 with float32 sums
    single: float  # float32 outside tensor cores
    memory: float


GPUS = (Gpu("A100", 312e12, 19.5e12, 2.039e12), Gpu("H100", 989.4e12, 66.9e12, 3.35e12))


@dataclass(frozen=True)
class Work:
    """The work of one call with a mask and without a bias."""

    product: float  # FLOPs of matrix products
    sampling: float  # FLOPs of interpolation and its gradient, as often as the kernels repeat them
    minimum: float  # bytes, if every tensor crosses device memory once
    columns: float  # bytes, if a column matrix were written and read as well
    loads: float  # bytes that the kernels' loads ask for, from whichever cache answers
    atomics: float = 0.0  # bytes that they add to the input's gradient

    def seconds(self, gpu: Gpu, dtype: str) -> tuple[float, str]:
        """Compute the least time that the peaks allow, in seconds, and name what limits it."""
        product = self.product / (gpu.half if dtype == "float16" else gpu.single)
        sampling = self.sampling / gpu.single
        # float32 products and interpolation share the same units; tensor cores work beside them.
        arithmetic = max(product, sampling) if dtype == "float16" else product + sampling
        limits = {"memory": self.minimum / gpu.memory, "sampling" if arithmetic == sampling else "product": arithmetic}
        limit = max(limits, key=lambda name: limits[name])
        return limits[limit], limit


def shape(stage: int, batch: int) -> tuple[int, int, int]:
    """Give the channels (there are as many outputs), the output positions, and the input's pixels."""
    channels, side = STAGES[stage]
    return channels, batch * side * side, batch * side * side


def outputs_of_a_block(outputs: int, size: int) -> int:
    """Give how many outputs share their samples: twice TILE on tensor cores, if there are so many outputs."""
    return 2 * TILE if size == 2 and outputs > TILE else TILE


def forward(stage: int, batch: int, size: int) -> Work:
    """Count the forward pass, in which each tile of the result samples separately; `size` is bytes of a number."""
    c, positions, pixels = shape(stage, batch)
    tiles, taken = math.ceil(c / outputs_of_a_block(c, size)), math.ceil(positions / TILE)
    coordinates = 3 * TAPS * positions * size
    weight = TAPS * c * c * size
    minimum = (pixels * c + positions * c) * size + coordinates + weight
    column = positions * TAPS * c * size
    return Work(
        product=2.0 * positions * TAPS * c * c,
        sampling=2.0 * CORNERS * positions * TAPS * c * tiles,
        minimum=minimum,
        columns=minimum + 2 * column,
        loads=tiles * (CORNERS * column + coordinates) + taken * weight,
    )


def backward(stage: int, batch: int, size: int) -> Work:
    """Count all gradients: the columns' gradient, from which input, offset and mask follow, and then the weight's.

    The weight's gradient samples again; `size` is bytes of a number.
    """
    c, positions, pixels = shape(stage, batch)
    slices, tiles = math.ceil(c / TILE), math.ceil(c / outputs_of_a_block(c, size))
    taken = math.ceil(positions / TILE)
    coordinates = 3 * TAPS * positions * size
    weight = TAPS * c * c * size
    column = positions * TAPS * c * size
    # Read: input, output's gradient, coordinates, weight. Written: the gradients of all but the output.
    minimum = (2 * pixels * c + positions * c) * size + 2 * coordinates + 2 * weight
    rows_of_grad = slices * TAPS * positions * c * size  # for each tap and each slice of channels
    values = positions * TAPS * c
    return Work(
        product=2 * 2.0 * positions * TAPS * c * c,
        # Interpolation for the weight; scaling for the scatter; a dot product at each corner for offset and mask.
        sampling=2.0 * CORNERS * values * (tiles + 2),
        minimum=minimum,
        # The columns' gradient and the columns would be written and read.
        columns=minimum + 4 * column,
        loads=CORNERS * column * (tiles + 1) + 2 * rows_of_grad + taken * weight + coordinates * (1 + slices * tiles),
        atomics=CORNERS * values * ACCUMULATOR,
    )


def table(direction: object, title: str) -> list[str]:
    """Write the Markdown table of one direction."""
    assert direction in (forward, backward)
    count = forward if direction is forward else backward
    lines = [
        f"## {title}",
        "",
        "| stage | batch | type | GFLOP products | GFLOP sampling | least MB | with columns MB | ratio | loads MB | atomics MB "
        + "".join(f"| {gpu.name} us, limit " for gpu in GPUS)
        + "|",
        "|---:|---:|---|" + "---:|" * (7 + len(GPUS)),
    ]
    for stage in STAGES:
        for batch in BATCHES:
            for dtype, size in SIZES.items():
                work = count(stage, batch, size)
                times = "".join(
                    f"| {seconds * 1e6:.1f} {limit} " for seconds, limit in (work.seconds(gpu, dtype) for gpu in GPUS)
                )
                lines.append(
                    f"| {stage} | {batch} | {dtype} | {work.product / 1e9:.2f} | {work.sampling / 1e9:.2f} "
                    f"| {work.minimum / 1e6:.1f} | {work.columns / 1e6:.1f} | {work.columns / work.minimum:.1f} "
                    f"| {work.loads / 1e6:.0f} | {work.atomics / 1e6:.0f} {times}|"
                )
    return [*lines, ""]


def page() -> str:
    """Write the text of docs/roofline.md."""
    peaks = "; ".join(
        f"{gpu.name}: {gpu.memory / 1e12:.3f} TB/s, {gpu.single / 1e12:.1f} TFLOP/s float32, "
        f"{gpu.half / 1e12:.1f} TFLOP/s float16 on tensor cores, dense"
        for gpu in GPUS
    )
    return "\n".join(
        [
            "# Roofline of the general CUDA kernels",
            "",
            "Written by `python benchmarks/roofline.py`; a test compares. **Nothing on this page was measured**: for that see",
            "[performance.md](performance.md#the-deformable-convolution-on-a-gpu). The numbers are counted from the source, for the",
            "modulated 3x3 convolutions of ResNet-18 at 224 px; what they bound is the time of a perfect machine.",
            "",
            f"Peaks: {peaks}. A100 is the 80 GB SXM module, H100 the SXM module; both from NVIDIA's data sheets, H100's",
            "tensor peak being half of the published one, which counts sparsity.",
            "",
            "- *products*: 2 x positions x taps x channels x outputs forward; twice that backward.",
            f"- *sampling*: interpolation in float32 outside tensor cores, repeated for every {TILE} outputs ({2 * TILE} of half types),",
            "  since each tile samples for itself; backward adds the scatter and the dot products for offset and mask.",
            "- *least*: each tensor crosses device memory once. *with columns*: what a column matrix in device memory would add",
            "  (im2col, as torchvision does it, and ours by columns); *ratio* is between the two. The general kernels, which",
            "  this page counts, keep columns in shared memory.",
            "- *loads*: bytes that load instructions ask for, wherever they are found. Where this is many times *least*, the",
            "  kernel lives on its caches: a sample's four corners overlap its neighbours', and weights fit L2.",
            "- *atomics*: bytes added to the input's gradient in L2; half types add in float32. No published peak bounds these,",
            "  so that they are in no time below; at stage 1 they will probably decide.",
            "- *us, limit*: the least time in microseconds that the peaks allow, and what takes it: memory, product or sampling.",
            "  Launches (some 3 us each; one or two forward, up to five backward), layout changes and, where blocks share the taps",
            "  of a tile, their float32 sums come on top.",
            "",
            *table(forward, "Forward"),
            *table(backward, "Backward, all gradients"),
        ]
    )


if __name__ == "__main__":
    sys.stdout.write(page())
