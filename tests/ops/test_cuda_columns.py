"""What only the CUDA kernels by columns do, run on the host as in test_cuda_emulated.py: chunks, crowded cells, what they take.

Backwards, samples come to their cells in another order too: equal bits are what determinism means here.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable

import pytest
import torch
from test_cuda_emulated import (
    CASES,
    EVERYTHING,
    OUTPUTS,
    TAKEN,
    TYPES,
    Call,
    call_of,
    compare,
    compiled,
    reference,
    run_columns,
)

from flowers_bench.ops._cuda import Shape, takes_columns

ONE_IMAGE = 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = compiled(tmp_path_factory.mktemp("columns"))
    built.can_take_columns.restype = ctypes.c_bool
    return built


def zero(c: Call) -> None:
    c.offset.zero_()


def to_one_pixel(c: Call) -> None:
    """Every sample lies between the pixels (2, 3) and (3, 4)."""
    for out, axis, stride, padding, dilation, taps in (
        (2.25, 0, c.stride[0], c.padding[0], c.dilation[0], c.weight.shape[2]),
        (3.5, 1, c.stride[1], c.padding[1], c.dilation[1], c.weight.shape[3]),
    ):
        positions = torch.arange(c.grad.shape[2 + axis], dtype=torch.float64) * stride - padding
        shape = [1, -1, c.weight.shape[2], c.weight.shape[3], 2, *c.grad.shape[2:]]
        view = c.offset.view(c.offset.shape[0], *shape[1:])
        tap = torch.arange(taps, dtype=torch.float64) * dilation
        moved = out - positions.view((-1, 1) if axis == 0 else (1, -1))
        view[:, :, :, :, axis] = moved - tap.view((1, 1, -1, 1, 1, 1) if axis == 0 else (1, 1, 1, -1, 1, 1))


def outside(c: Call) -> None:
    c.offset.fill_(100.0)


OFFSETS: dict[str, Callable[[Call], None]] = {"zero": zero, "to one pixel": to_one_pixel, "outside": outside}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("offsets", OFFSETS)
def test_offsets_that_crowd_or_leave(library: ctypes.CDLL, offsets: str, dtype: torch.dtype) -> None:
    c = call_of(channels=16, offset_groups=2, size=(9, 8))
    OFFSETS[offsets](c)
    c = c.rounded(dtype)
    first, second = (run_columns(library, c, dtype, reverse=reverse) for reverse in (False, True))
    compare(first, reference(c), dtype)
    assert all(torch.equal(first[name], second[name]) for name in OUTPUTS)
    if offsets == "outside":
        assert not first["grad_input"].any()
        assert not first["grad_offset"].any()
    if offsets == "to one pixel":
        assert (first["grad_input"] != 0).any(1).sum() == 4 * c.input.shape[0]


@pytest.mark.parametrize("images", [1, 2, 3])
def test_chunks_give_the_same_as_all_images_at_once(library: ctypes.CDLL, images: int) -> None:
    """Of five images: the last chunk is not full, and one image is a chunk where the limit is smaller than it."""
    c = call_of(batch=5, channels=16, groups=2, outputs=6)
    image = c.grad[0, 0].numel() * 9 * 16 * 4
    limit = ONE_IMAGE if images == 1 else images * image
    whole, parts = (run_columns(library, c, torch.float32, limit=bytes_) for bytes_ in (EVERYTHING, limit))
    compare(parts, reference(c), torch.float32)
    for name in OUTPUTS:
        # Only the weight's gradient is added up over chunks.
        assert torch.equal(whole[name], parts[name]) or name == "grad_weight"
    backwards = run_columns(library, c, torch.float32, limit=limit, reverse=True)
    assert all(torch.equal(parts[name], backwards[name]) for name in OUTPUTS)


@pytest.mark.parametrize("case", ["8 channels", "strided, dilated", "weight groups", "offset groups"])
def test_torchvision_agrees(library: ctypes.CDLL, case: str) -> None:
    """An implementation that is not ours, with its own derivatives, on the CPU in float64."""
    from torchvision.ops import deform_conv2d

    c = call_of(**TAKEN[case])
    names = ("input", "offset", "weight", "bias", "mask")
    leaves = [getattr(c, name).clone().requires_grad_() for name in names]
    out = deform_conv2d(*leaves[:4], c.stride, c.padding, c.dilation, leaves[4])
    gradients = torch.autograd.grad(out, leaves, c.grad)
    expected = {"out": out.detach(), **{f"grad_{name}": g for name, g in zip(names, gradients, strict=True)}}
    compare(run_columns(library, c, torch.float32), expected, torch.float32)


def agreed(library: ctypes.CDLL, shape: Shape) -> bool:
    """What C++ and Python both say of a 3x3 call with padding 1, or raise."""
    batch, channels, height, width = shape.input
    outputs, _, kernel_h, kernel_w = shape.weight
    side = math.isqrt(shape.positions)  # not that of the call, but as many positions
    places = (side, shape.positions // side, kernel_h, kernel_w, 1, 1, 1, 1, 1, 1)
    counts = (batch, channels, height, width, outputs, *places, shape.groups, shape.offset_groups)
    assert side * (shape.positions // side) == shape.positions
    in_cpp = library.can_take_columns(TYPES[shape.dtype], (ctypes.c_int64 * 17)(*counts))
    assert in_cpp == takes_columns(shape)
    return bool(in_cpp)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("case", {**CASES, **TAKEN})
def test_what_columns_take(library: ctypes.CDLL, case: str, dtype: torch.dtype) -> None:
    """Packs of 16 bytes within one weight group and one offset group; no float64. Python and C++ agree."""
    c = call_of(**{**CASES, **TAKEN}[case])
    in_group, in_offset_group = c.weight.shape[1], 2 * c.weight[0, 0].numel() * c.input.shape[1] // c.offset.shape[1]
    packed = all(n * dtype.itemsize % 16 == 0 for n in (in_group, in_offset_group))
    found = library.can_take_columns(TYPES[dtype], (ctypes.c_int64 * 17)(*c.counts()))
    assert found == (packed and dtype != torch.float64)
    assert found == takes_columns(Shape.of(c.input.to(dtype), c.offset, c.weight))
    assert found or case not in TAKEN or dtype == torch.float64


@pytest.mark.parametrize(
    ("batch", "side", "fits"), [(31, 1024, True), (32, 1024, False), (1, 2730, True), (1, 2731, False)]
)
def test_two_gibibytes_are_too_many(library: ctypes.CDLL, batch: int, side: int, fits: bool) -> None:
    """Of the input, 64 MiB an image here; or of one image's columns, 9 times as many."""
    channels = 16 if side == 1024 else 8
    positions = 16 if side == 1024 else side * side
    shape = Shape(torch.float32, (batch, channels, side, side), (4, channels, 3, 3), positions, 1)
    assert agreed(library, shape) == fits
