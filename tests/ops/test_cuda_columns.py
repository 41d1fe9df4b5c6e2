"""The CUDA kernels by columns, run on the host thread by thread, against the float64 reference and torchvision.

As test_cuda_emulated.py does for the others: memory starts as NaN, tensors lie between NaNs, threads and blocks run in
both orders. Backwards, samples come to their cells in another order too: equal bits are what determinism means here.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_cuda_emulated import (
    CASES,
    GRADIENTS,
    INPUTS,
    OUTPUTS,
    TYPES,
    Call,
    Memory,
    Pointers,
    Results,
    call_of,
    compare,
    compiled,
    reference,
)

from flowers_bench.ops._cuda import Shape, takes_columns

Run = Callable[..., None]
HALVES_AND_FLOAT = [torch.float32, torch.float16, torch.bfloat16]
EVERYTHING = 2**40  # bytes: all columns at once
ONE_IMAGE = 1


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    built = compiled(tmp_path_factory.mktemp("columns"))
    built.can_take_columns.restype = ctypes.c_bool
    return built


@pytest.fixture(scope="module")
def emulate(library: ctypes.CDLL) -> Run:
    run: Run = library.emulate_columns
    return run


def run(
    emulate: Run, c: Call, dtype: torch.dtype, *, wanted: tuple[str, ...] = OUTPUTS, limit: int = EVERYTHING,
    reverse: bool = False,
) -> Results:  # fmt: skip
    """What the kernels compute, in the layouts that torch would return."""
    rows, cols = c.input.permute(0, 2, 3, 1).shape, c.grad.permute(0, 2, 3, 1).shape
    given = {
        "input": c.input.permute(0, 2, 3, 1), "offset": c.offset, "mask": c.mask, "weight": c.weight.permute(0, 2, 3, 1),
        "bias": c.bias, "grad": c.grad.permute(0, 2, 3, 1) if wanted != ("out",) else None,
    }  # fmt: skip
    assert given.keys() <= set(INPUTS)
    shapes = {
        "out": cols, "grad_input": rows, "grad_offset": c.offset.shape, "grad_weight": c.weight.shape,
        "grad_mask": None if c.mask is None else c.mask.shape, "grad_bias": (c.weight.shape[0],),
    }  # fmt: skip
    memory, pointers, results = Memory(), Pointers(), {}
    for name, value in given.items():
        if value is not None:
            setattr(pointers, name, memory.put(value.to(dtype)))
    for name in wanted:
        if (shape := shapes[name]) is not None:
            setattr(pointers, name, memory.put(torch.full(shape, torch.nan, dtype=dtype)))
            results[name] = memory.last().view(shape)
    counts = (ctypes.c_int64 * 17)(*c.counts())
    emulate(TYPES[dtype], counts, ctypes.byref(pointers), ctypes.c_int64(limit), ctypes.c_bool(reverse))
    memory.check()
    return {name: t.permute(0, 3, 1, 2) if name in ("out", "grad_input") else t for name, t in results.items()}


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

TAKEN: dict[str, dict[str, Any]] = {
    "8 channels": {"channels": 8},
    "no mask, no bias": {"channels": 16, "masked": False, "biased": False},
    "empty batch": {"channels": 8, "batch": 0},
    "strided, dilated": {"channels": 8, "stride": (2, 1), "padding": (2, 3), "dilation": (2, 1), "size": (9, 8)},
    "25 taps": {"channels": 8, "k": (5, 5), "padding": (2, 2), "batch": 1, "size": (8, 7)},
    "1x1": {"channels": 24, "outputs": 3, "k": (1, 1), "padding": (0, 0)},
    "weight groups": {"channels": 32, "outputs": 6, "groups": 2},
    "offset groups": {"channels": 48, "outputs": 5, "offset_groups": 3},
    "groups across offset groups": {"channels": 48, "outputs": 6, "groups": 2, "offset_groups": 3, "batch": 1},
    "more packs than lanes": {"channels": 264, "outputs": 3, "batch": 1, "size": (4, 3)},
    "a row of pixels": {"channels": 8, "size": (1, 60), "batch": 1},
    "many cells": {"channels": 8, "outputs": 2, "size": (66, 70), "batch": 1, "k": (2, 1), "padding": (0, 0)},
}  # fmt: skip


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", TAKEN)
def test_every_result_equals_the_float64_reference(emulate: Run, case: str, dtype: torch.dtype) -> None:
    c = call_of(**TAKEN[case]).rounded(dtype)
    compare(run(emulate, c, dtype), reference(c), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("offsets", OFFSETS)
def test_offsets_that_crowd_or_leave(emulate: Run, offsets: str, dtype: torch.dtype) -> None:
    c = call_of(channels=16, offset_groups=2, size=(9, 8))
    OFFSETS[offsets](c)
    c = c.rounded(dtype)
    first, second = (run(emulate, c, dtype, reverse=reverse) for reverse in (False, True))
    compare(first, reference(c), dtype)
    assert all(torch.equal(first[name], second[name]) for name in OUTPUTS)
    if offsets == "outside":
        assert not first["grad_input"].any()
        assert not first["grad_offset"].any()
    if offsets == "to one pixel":
        assert (first["grad_input"] != 0).any(1).sum() == 4 * c.input.shape[0]


@pytest.mark.parametrize("dtype", HALVES_AND_FLOAT, ids=str)
@pytest.mark.parametrize("case", ["8 channels", "25 taps", "groups across offset groups", "many cells"])
def test_results_do_not_depend_on_any_order(emulate: Run, case: str, dtype: torch.dtype) -> None:
    """Bit for bit the same when threads and blocks run backwards: no race, no order of filling."""
    c = call_of(**TAKEN[case]).rounded(dtype)
    first, second = (run(emulate, c, dtype, reverse=reverse) for reverse in (False, True))
    for name in first:
        assert torch.equal(first[name], second[name]), name


@pytest.mark.parametrize("images", [1, 2, 3])
def test_chunks_give_the_same_as_all_images_at_once(emulate: Run, images: int) -> None:
    """Of five images: the last chunk is not full, and one image is a chunk where the limit is smaller than it."""
    c = call_of(batch=5, channels=16, groups=2, outputs=6)
    image = c.grad[0, 0].numel() * 9 * 16 * 4
    limit = ONE_IMAGE if images == 1 else images * image
    whole, parts = (run(emulate, c, torch.float32, limit=bytes_) for bytes_ in (EVERYTHING, limit))
    compare(parts, reference(c), torch.float32)
    for name in OUTPUTS:
        # Only the weight's gradient is added up over chunks.
        assert torch.equal(whole[name], parts[name]) or name == "grad_weight"
    backwards = run(emulate, c, torch.float32, limit=limit, reverse=True)
    assert all(torch.equal(parts[name], backwards[name]) for name in OUTPUTS)


@pytest.mark.parametrize("alone", GRADIENTS)
def test_a_gradient_does_not_need_the_others(emulate: Run, alone: str) -> None:
    c = call_of(channels=8)
    found = run(emulate, c, torch.float32, wanted=(alone,))
    assert list(found) == [alone]
    compare(found, reference(c), torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wild_offset_reaches_its_own_results_and_no_memory_outside(
    emulate: Run, dtype: torch.dtype, bad: float
) -> None:
    c = call_of(channels=16, offset_groups=2).rounded(dtype)
    before = run(emulate, c, dtype)
    c.offset[1, 22, 2, 3] = bad  # the second offset group's third tap, y
    after = run(emulate, c, dtype)
    compare(after, reference(c), dtype)
    touched = torch.zeros_like(after["out"], dtype=torch.bool)
    touched[1, :, 2, 3] = True
    assert torch.equal(after["out"][~touched], before["out"][~touched])
    assert after["out"][touched].isnan().all() == (not abs(bad) < 1e38)
    assert after["grad_input"].isfinite().all()


@pytest.mark.parametrize("weight_is_zero", [False, True])
def test_nan_pixels_reach_what_samples_them(emulate: Run, weight_is_zero: bool) -> None:
    """Also with bilinear weight 0: a tap exactly on its neighbour."""
    c = call_of(channels=8, masked=False)
    if weight_is_zero:
        c.offset.zero_()
    c.input[0, 3, 2, 2] = torch.nan
    found, expected = run(emulate, c, torch.float32, wanted=("out",)), reference(c)
    assert 0 < expected["out"].isnan().sum() < expected["out"].numel()
    compare(found, {"out": expected["out"]}, torch.float32)


@pytest.mark.parametrize("case", ["8 channels", "strided, dilated", "weight groups", "offset groups"])
def test_torchvision_agrees(emulate: Run, case: str) -> None:
    """An implementation that is not ours, with its own derivatives, on the CPU in float64."""
    from torchvision.ops import deform_conv2d

    c = call_of(**TAKEN[case])
    names = ("input", "offset", "weight", "bias", "mask")
    leaves = [getattr(c, name).clone().requires_grad_() for name in names]
    out = deform_conv2d(*leaves[:4], c.stride, c.padding, c.dilation, leaves[4])
    gradients = torch.autograd.grad(out, leaves, c.grad)
    expected = {"out": out.detach(), **{f"grad_{name}": g for name, g in zip(names, gradients, strict=True)}}
    compare(run(emulate, c, torch.float32), expected, torch.float32)


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
