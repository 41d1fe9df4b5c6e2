"""Chooses what computes a call on a GPU: our general kernels, ours by columns, or torchvision's.

By columns where torch shall be deterministic: those sums have one order. Otherwise what the last measurement shows to be
the faster of our general kernels and torchvision's (docs/performance/gpu.md); columns have not been timed on a GPU yet.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import cache

import torch
from torch import Tensor

from flowers_bench.ops._reference import Pair


class Way(Enum):
    """What computes a call; the value stands in `kernel()` once it has."""

    GENERAL = "general"
    COLUMNS = "columns"
    TORCHVISION = "torchvision"


#: What has computed calls in this process.
used: set[Way] = set()
_forced: Way | None = None


@contextmanager
def forced(way: Way) -> Iterator[None]:
    """Let `way` compute every call on a GPU, in all threads, as long as this lasts: for tests and benchmarks. A call that it
    cannot compute raises `RuntimeError`."""
    global _forced
    before, _forced = _forced, way
    try:
        yield
    finally:
        _forced = before


@dataclass(frozen=True)
class Shape:
    """What a choice depends on."""

    dtype: torch.dtype
    input: tuple[int, int, int, int]  # N, C, H, W
    weight: tuple[int, int, int, int]  # outputs, channels of a weight group, KH, KW
    positions: int  # of an image: OH * OW
    offset_groups: int

    @classmethod
    def of(cls, input: Tensor, offset: Tensor, weight: Tensor) -> "Shape":
        """Read a call's shape off its arguments, which fit together."""
        outputs, group_channels, height, width = weight.shape
        batch, channels, rows, columns = input.shape
        return cls(
            input.dtype, (batch, channels, rows, columns), (outputs, group_channels, height, width),
            offset.shape[2] * offset.shape[3], offset.shape[1] // (2 * height * width),
        )  # fmt: skip

    @property
    def groups(self) -> int:
        """Count the weight groups."""
        return self.input[1] // self.weight[1]


def choose(shape: Shape, backward: Sequence[bool] | None = None) -> Way:
    """Choose what computes a call under torch's present settings.

    Args:
        backward: which gradients are wanted, of input, offset, weight, bias and mask; None for the forward pass.
    """
    if _forced is not None:
        return _forced
    if torch.are_deterministic_algorithms_enabled():
        return Way.COLUMNS if takes_columns(shape) and _products_are_deterministic() else Way.GENERAL
    # torchvision computes all gradients or none.
    wanted = backward is None or all(backward[:3])
    if wanted and torchvision_is_faster(shape, backward is not None) and _torchvision_has_cuda():
        return Way.TORCHVISION
    return Way.GENERAL


def takes_columns(shape: Shape) -> bool:
    """Say whether the kernels by columns compute such calls: packs of 16 bytes of one weight group and one offset group,
    and bytes that 32 bits count. `takes_columns` in csrc/deform_conv/cuda/columns.cuh is the same rule."""
    _, group_channels, height, width = shape.weight
    size = shape.dtype.itemsize
    segment = math.gcd(group_channels, shape.input[1] // shape.offset_groups)
    image = shape.positions * height * width * shape.input[1] * size
    return size < 8 and segment * size % 16 == 0 and max(math.prod(shape.input) * size, image) < 2**31


def _products_are_deterministic() -> bool:
    """Say whether cuBLAS sums in one order; without this variable, torch refuses its products in deterministic mode."""
    return os.environ.get("CUBLAS_WORKSPACE_CONFIG") in (":4096:8", ":16:8")


# ---- torchvision's kernels ----


@dataclass(frozen=True)
class Times:
    """What a call took: our general kernels, and torchvision's time over that."""

    microseconds: float
    ratio: float

    @property
    def gain(self) -> float:
        """Compute the microseconds that torchvision's kernels save."""
        return self.microseconds * (1 - self.ratio)


@dataclass(frozen=True)
class Measured:
    """A shape that was measured on an H200: float32, 3x3, a mask, one group of each kind."""

    channels: int  # of input and output
    positions: int  # of all images
    forward: Times
    forward_backward: Times


#: benchmarks/results/performance/kernel-h200.csv; a test compares.
MEASURED = (
    Measured(64, 3136, Times(38.1, 0.8), Times(105.2, 0.9)),
    Measured(64, 25088, Times(137.8, 0.8), Times(464.9, 0.7)),
    Measured(64, 100352, Times(406.1, 0.8), Times(1618.9, 0.6)),
    Measured(128, 784, Times(29.9, 1.0), Times(97.3, 0.8)),
    Measured(128, 6272, Times(140.7, 0.7), Times(419.4, 0.7)),
    Measured(128, 25088, Times(362.5, 0.7), Times(1308.5, 0.6)),
    Measured(256, 196, Times(44.6, 0.8), Times(160.4, 0.5)),
    Measured(256, 1568, Times(170.8, 0.5), Times(408.9, 0.6)),
    Measured(256, 6272, Times(453.0, 0.6), Times(1266.8, 0.6)),
    Measured(512, 49, Times(58.6, 0.7), Times(350.8, 0.3)),
    Measured(512, 392, Times(152.2, 0.6), Times(534.4, 0.4)),
    Measured(512, 1568, Times(465.7, 0.4), Times(1261.1, 0.5)),
)
# What torchvision's must save at least, in microseconds: the kernels around it (offsets that are not finite, the output in
# the input's layout) were not measured.
_LEAST_GAIN = 15.0
# How far a shape may lie from a measured one, as factors.
_CHANNELS_APART, _POSITIONS_APART = 1.5, 4.0


def torchvision_is_faster(shape: Shape, backward: bool) -> bool:
    """Say whether torchvision's kernels were faster at the nearest shape that was measured.

    float16 stays with ours whatever was measured: torchvision rounds its coordinates to half, which alone makes results some
    20 times less exact at 56 pixels (docs/kernel.md). It has no bfloat16.
    """
    batch, channels, _, _ = shape.input
    outputs, _, height, width = shape.weight
    alike = (height, width) == (3, 3) and shape.groups == 1 and shape.offset_groups == 1
    positions = batch * shape.positions
    if shape.dtype != torch.float32 or not alike or positions == 0:
        return False
    near = [
        m for m in MEASURED
        if max(_apart(channels, m.channels), _apart(outputs, m.channels)) <= _CHANNELS_APART
        and _apart(positions, m.positions) <= _POSITIONS_APART
    ]  # fmt: skip
    if not near:
        return False
    nearest = min(near, key=lambda m: _apart(channels * outputs, m.channels**2) * _apart(positions, m.positions))
    return (nearest.forward_backward if backward else nearest.forward).gain > _LEAST_GAIN


def _apart(a: float, b: float) -> float:
    return max(a / b, b / a)


@cache
def _torchvision_has_cuda() -> bool:
    """Say whether the torchvision that is installed has been built for GPUs."""
    try:
        import torchvision  # noqa: F401  # registers the operators
    except (ImportError, RuntimeError):  # it is made for another torch
        return False
    operators = ("torchvision::deform_conv2d", "torchvision::_deform_conv2d_backward")
    return all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CUDA") for name in operators)


def torchvision_forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> Tensor:
    """Compute the output by torchvision's kernel; an offset that is not finite gives NaN, as with ours."""
    bias = weight.new_zeros(weight.shape[0]) if bias is None else bias
    shape = Shape.of(input, offset, weight)
    settings = (*stride, *padding, *dilation, shape.groups, shape.offset_groups, True)
    out: Tensor = torch.ops.torchvision.deform_conv2d(input, weight, *_finite(offset, mask), bias, *settings)
    return out


def torchvision_backward(
    grad: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Compute the gradients of input, offset, weight, bias and mask (of one of ones, without a mask) by torchvision's kernels."""
    shape = Shape.of(input, offset, weight)
    settings = (*stride, *padding, *dilation, shape.groups, shape.offset_groups, True)
    bias = weight.new_zeros(weight.shape[0])
    of_input, of_weight, of_offset, of_mask, of_bias = torch.ops.torchvision._deform_conv2d_backward(
        grad, input, weight, *_finite(offset, mask), bias, *settings
    )
    return of_input, of_offset, of_weight, of_bias, of_mask


def _finite(offset: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Move points whose offset is not finite outside of every image, and make their mask NaN.

    torchvision's kernels take infinite offsets for points outside, and turn NaN into an index.
    """
    y, x = offset.unflatten(1, (-1, 2)).unbind(2)
    mask = torch.ones_like(y) if mask is None else mask
    marked = mask.add(y, alpha=0).add(x, alpha=0)  # 0 times NaN is NaN
    return offset.nan_to_num(_OUTSIDE, _OUTSIDE, _OUTSIDE), marked


_OUTSIDE = 1e9  # pixels: beyond every image, and an integer of 32 bits
