"""The CUDA kernels' own source, general and by columns, run on the host thread by thread, against the float64 reference.

csrc/cuda/launch.h says how; emulate.cpp is the library that this file compiles and calls. Shared memory and
registers start as NaN, threads and blocks run in both orders, and tensors lie between NaNs, so that what is read too
early, in a race or outside shows in the results.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowers_bench.ops import _build
from flowers_bench.ops._reference import deform_conv2d_reference

INPUTS = ("input", "offset", "mask", "weight", "weight_t", "bias", "grad")
OUTPUTS = ("out", "grad_input", "grad_offset", "grad_mask", "grad_weight", "grad_bias")
GRADIENTS = OUTPUTS[1:]
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
HALVES_AND_FLOAT = [torch.float32, torch.float16, torch.bfloat16]
EVERYTHING = 2**40  # bytes: all columns at once
GUARD = 64  # values before and behind each tensor; a multiple of 16 bytes in every type
Results = dict[str, Tensor]
Run = Callable[..., Results]


class Pointers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in INPUTS + OUTPUTS]


def compiled(folder: Path, *flags: str, source: str = "emulate.cpp", libraries: tuple[str, ...] = ()) -> ctypes.CDLL:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if not compiler:
        pytest.skip("no C++ compiler here")
    library = folder / "emulate.so"
    headers = Path(torch.__file__).parent / "include"
    command = [
        compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", *flags,
        f"-I{_build.source_root() / 'deform_conv'}", "-isystem", str(headers),
        str(Path(__file__).with_name(source)), "-o", str(library), *libraries,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(tmp_path_factory.mktemp("emulated"))


@dataclass
class Call:
    """Arguments in float64; a type's kernel gets them rounded."""

    input: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor | None
    grad: Tensor
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def rounded(self, dtype: torch.dtype) -> Call:
        values = {k: v.to(dtype).double() if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Call(**values)

    def counts(self) -> list[int]:
        """The fields of `Geometry` up to `use_mask`, in their order."""
        n, c, h, w = self.input.shape
        outputs, group_channels, kh, kw = self.weight.shape
        places = (*self.grad.shape[2:], kh, kw, *self.stride, *self.padding, *self.dilation)
        return [n, c, h, w, outputs, *places, c // group_channels, self.offset.shape[1] // (2 * kh * kw)]

    def unwritten(self, wanted: Sequence[str], dtype: torch.dtype) -> Results:
        """Results of NaN, images in rows; without a mask none for its gradient."""
        shapes = {
            "out": rows(self.grad).shape, "grad_input": rows(self.input).shape, "grad_offset": self.offset.shape,
            "grad_mask": None if self.mask is None else self.mask.shape, "grad_weight": self.weight.shape,
            "grad_bias": self.weight.shape[:1],
        }  # fmt: skip
        return {name: torch.full(shapes[name], torch.nan, dtype=dtype) for name in wanted if shapes[name] is not None}


def call_of(
    batch: int = 2, channels: int = 6, outputs: int = 4, size: tuple[int, int] = (7, 9), k: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1), padding: tuple[int, int] = (1, 1), dilation: tuple[int, int] = (1, 1),
    groups: int = 1, offset_groups: int = 1, masked: bool = True, biased: bool = True,
) -> Call:  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    taps = k[0] * k[1]
    out = [
        (s + 2 * p - d * (n - 1) - 1) // t + 1 for s, p, d, n, t in zip(size, padding, dilation, k, stride, strict=True)
    ]
    return Call(
        input=draw(batch, channels, *size),
        offset=2 * draw(batch, 2 * offset_groups * taps, *out),
        weight=draw(outputs, channels // groups, *k) / (channels // groups * taps) ** 0.5,
        bias=draw(outputs) if biased else None,
        mask=draw(batch, offset_groups * taps, *out).sigmoid() if masked else None,
        grad=draw(batch, outputs, *out),
        stride=stride, padding=padding, dilation=dilation,
    )  # fmt: skip


class Memory:
    """Buffers with NaN around them; keeps them alive."""

    def __init__(self) -> None:
        self.buffers: list[tuple[Tensor, int]] = []

    def put(self, values: Tensor) -> int:
        buffer = torch.full((values.numel() + 2 * GUARD,), torch.nan, dtype=values.dtype)
        buffer[GUARD : GUARD + values.numel()] = values.flatten()
        self.buffers.append((buffer, values.numel()))
        return buffer.data_ptr() + GUARD * buffer.element_size()

    def last(self) -> Tensor:
        buffer, count = self.buffers[-1]
        return buffer[GUARD : GUARD + count]

    def check(self) -> None:
        for buffer, count in self.buffers:
            assert buffer[:GUARD].isnan().all()
            assert buffer[GUARD + count :].isnan().all()


def computed(
    emulate: Callable[..., None], c: Call, dtype: torch.dtype, given: Mapping[str, Tensor | None],
    results: Mapping[str, Tensor], *flags: ctypes._SimpleCData[Any],
) -> Results:  # fmt: skip
    """What kernels make of the tensors given, in float64, and of results that are filled already."""
    memory, pointers, found = Memory(), Pointers(), {}
    for name, value in given.items():
        if value is not None:
            setattr(pointers, name, memory.put(value.to(dtype)))
    for name, fill in results.items():
        setattr(pointers, name, memory.put(fill))
        found[name] = memory.last().view(fill.shape)
    emulate(TYPES[dtype], (ctypes.c_int64 * 17)(*c.counts()), ctypes.byref(pointers), *flags)
    memory.check()
    return found


def rows(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1)


def images(rows: Tensor) -> Tensor:
    return rows.permute(0, 3, 1, 2)


def run(
    library: ctypes.CDLL, c: Call, dtype: torch.dtype, *, wanted: Sequence[str] = OUTPUTS,
    out_rows: bool = False, deterministic: bool = False, reverse: bool = False,
) -> Results:  # fmt: skip
    """What the general kernels compute, in the layouts that torch would return."""
    outputs, group_channels, kh, kw = c.weight.shape
    groups = c.input.shape[1] // group_channels
    packed = c.weight.reshape(groups, outputs // groups, group_channels, kh * kw).permute(0, 3, 2, 1)
    given = {
        "input": rows(c.input), "offset": c.offset, "mask": c.mask, "weight": packed, "weight_t": packed.transpose(2, 3),
        "bias": c.bias, "grad": rows(c.grad) if wanted != ("out",) else None,
    }  # fmt: skip
    results = c.unwritten(wanted, dtype)
    if "out" in results and not out_rows:
        results["out"] = images(results["out"]).contiguous()
    if "grad_input" in results:
        # It is added to zeros, in the accumulator's type; everything else is overwritten.
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        results["grad_input"] = torch.zeros_like(results["grad_input"], dtype=wide)
    flags = (ctypes.c_bool(value) for value in (out_rows, deterministic, reverse))
    found = computed(library.emulate, c, dtype, given, results, *flags)
    in_rows = ("grad_input", "out") if out_rows else ("grad_input",)
    return {name: images(t) if name in in_rows else t for name, t in found.items()}


def run_columns(
    library: ctypes.CDLL, c: Call, dtype: torch.dtype, *, wanted: Sequence[str] = OUTPUTS, limit: int = EVERYTHING,
    reverse: bool = False,
) -> Results:  # fmt: skip
    """What the kernels by columns compute, of which `limit` bytes are there at once."""
    given = {
        "input": rows(c.input), "offset": c.offset, "mask": c.mask, "weight": rows(c.weight),
        "bias": c.bias, "grad": rows(c.grad) if wanted != ("out",) else None,
    }  # fmt: skip
    flags = (ctypes.c_int64(limit), ctypes.c_bool(reverse))
    found = computed(library.emulate_columns, c, dtype, given, c.unwritten(wanted, dtype), *flags)
    return {name: images(t) if name in ("grad_input", "out") else t for name, t in found.items()}


#: What computes, by name.
WAYS: dict[str, Run] = {
    "general": run,
    "deterministic": partial(run, deterministic=True),
    "columns": run_columns,
}


def reference(c: Call) -> Results:
    names = [name for name in ("input", "offset", "mask", "weight", "bias") if getattr(c, name) is not None]
    leaves = {name: getattr(c, name).clone().requires_grad_() for name in names}
    out = deform_conv2d_reference(
        leaves["input"], leaves["offset"], leaves["weight"], leaves.get("bias"), leaves.get("mask"),
        c.stride, c.padding, c.dilation,
    )  # fmt: skip
    found = torch.autograd.grad(out, list(leaves.values()), c.grad)
    return {"out": out.detach(), **{f"grad_{name}": g for name, g in zip(names, found, strict=True)}}


def compare(found: Results, expected: Results, dtype: torch.dtype) -> None:
    """Half types round the columns' factors and every result once; sums are float32."""
    relative = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for name in found.keys() & expected.keys():
        want = expected[name]
        scale = max(1.0, want[want.isfinite()].abs().max().item()) if want.numel() else 1.0
        torch.testing.assert_close(
            found[name].double(),
            want,
            rtol=relative,
            atol=relative * scale,
            equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )


CASES: dict[str, dict[str, Any]] = {
    "odd": {},
    "no mask, no bias": {"masked": False, "biased": False},
    "empty batch": {"batch": 0},
    "strided, dilated": {"stride": (2, 1), "padding": (2, 3), "dilation": (2, 1), "size": (9, 8)},
    "groups across offset groups": {"channels": 12, "outputs": 6, "groups": 2, "offset_groups": 3},
    "depthwise": {"channels": 8, "outputs": 16, "groups": 8, "offset_groups": 2, "size": (5, 6)},
    "17 channels, 1x1": {"channels": 17, "outputs": 3, "k": (1, 1), "padding": (0, 0)},
    "3 channels, 5x2": {"channels": 3, "outputs": 5, "k": (5, 2), "padding": (2, 0), "size": (6, 6)},
    "wide loads": {"batch": 1, "channels": 48, "outputs": 24, "size": (5, 7), "offset_groups": 2},
    "several tiles": {"batch": 1, "channels": 72, "outputs": 136, "size": (9, 8), "k": (2, 1), "padding": (0, 0)},
    "all taps in one block": {"batch": 1, "channels": 264, "outputs": 264, "groups": 264, "size": (3, 2)},
    "several taps in one block": {"batch": 1, "channels": 1056, "outputs": 1056, "groups": 132, "size": (2, 2), "offset_groups": 2},
    "many rows": {"batch": 1, "channels": 8, "outputs": 8, "size": (50, 3)},
    "wide groups": {"batch": 3, "channels": 160, "outputs": 16, "groups": 2, "size": (3, 5), "k": (1, 2), "padding": (0, 1)},
}  # fmt: skip


#: What columns take.
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


def cases(
    way: str, given: Mapping[str, dict[str, Any]], names: Iterable[str], dtypes: Iterable[torch.dtype]
) -> list[Any]:
    """Parameters of a test: the way, and the call rounded to the type, for each case and type."""
    return [pytest.param(way, given[name], dtype, id=f"{way}-{name}-{dtype}") for name in names for dtype in dtypes]


# ---- Either way ----


@pytest.mark.parametrize(
    ("way", "case", "dtype"),
    [*cases("general", CASES, CASES, TYPES), *cases("columns", TAKEN, TAKEN, HALVES_AND_FLOAT)],
)
def test_every_result_equals_the_float64_reference(
    library: ctypes.CDLL, way: str, case: dict[str, Any], dtype: torch.dtype
) -> None:
    c = call_of(**case).rounded(dtype)
    compare(WAYS[way](library, c, dtype), reference(c), dtype)


@pytest.mark.parametrize(
    ("way", "case", "dtype"),
    [
        *cases(
            "deterministic", CASES, ["odd", "groups across offset groups", "several tiles", "many rows"],
            [torch.float32, torch.bfloat16],
        ),
        *cases(
            "columns", TAKEN, ["8 channels", "25 taps", "groups across offset groups", "many cells"], HALVES_AND_FLOAT
        ),
    ],
)  # fmt: skip
def test_results_do_not_depend_on_any_order(
    library: ctypes.CDLL, way: str, case: dict[str, Any], dtype: torch.dtype
) -> None:
    """Bit for bit the same when threads and blocks run backwards: no race, no order of atomics or of filling."""
    c = call_of(**case).rounded(dtype)
    first, second = (WAYS[way](library, c, dtype, reverse=reverse) for reverse in (False, True))
    compare(first, reference(c), dtype)
    assert all(torch.equal(first[name], second[name]) for name in OUTPUTS)


@pytest.mark.parametrize(("way", "channels"), [("general", 6), ("deterministic", 6), ("columns", 8)])
@pytest.mark.parametrize("alone", GRADIENTS)
def test_a_gradient_does_not_need_the_others(library: ctypes.CDLL, alone: str, way: str, channels: int) -> None:
    c = call_of(channels=channels)
    found = WAYS[way](library, c, torch.float32, wanted=(alone,))
    assert list(found) == [alone]
    compare(found, reference(c), torch.float32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["general", "columns"])
def test_a_wild_offset_reaches_its_own_results_and_no_memory_outside(
    library: ctypes.CDLL, way: str, dtype: torch.dtype, bad: float
) -> None:
    c = call_of(channels=16, offset_groups=2).rounded(dtype)
    before = WAYS[way](library, c, dtype)
    c.offset[1, 22, 2, 3] = bad  # the second offset group's third tap, y
    after = WAYS[way](library, c, dtype)
    compare(after, reference(c), dtype)
    touched = torch.zeros_like(after["out"], dtype=torch.bool)
    touched[1, :, 2, 3] = True
    assert torch.equal(after["out"][~touched], before["out"][~touched])
    assert after["out"][touched].isnan().all() == (not abs(bad) < 1e38)
    assert after["grad_input"].isfinite().all()


@pytest.mark.parametrize("weight_is_zero", [False, True])
@pytest.mark.parametrize("way", ["general", "columns"])
def test_nan_pixels_reach_what_samples_them(library: ctypes.CDLL, way: str, weight_is_zero: bool) -> None:
    """Also with bilinear weight 0: a tap exactly on its neighbour."""
    c = call_of(channels=8, masked=False)
    if weight_is_zero:
        c.offset.zero_()
    c.input[0, 3, 2, 2] = torch.nan
    found, expected = WAYS[way](library, c, torch.float32, wanted=("out",)), reference(c)
    assert 0 < expected["out"].isnan().sum() < expected["out"].numel()
    compare(found, {"out": expected["out"]}, torch.float32)


# ---- The general kernels alone; test_cuda_columns.py has those of the others ----


def test_bfloat16_without_tensor_cores(tmp_path: Path) -> None:
    """Turing multiplies it as it does float32."""
    turing = compiled(tmp_path, "-DFLOWERS_BENCH_TURING")
    for case in ("several tiles", "odd"):
        c = call_of(**CASES[case]).rounded(torch.bfloat16)
        compare(run(turing, c, torch.bfloat16), reference(c), torch.bfloat16)


def test_only_the_order_of_atomics_is_left_open_otherwise(library: ctypes.CDLL) -> None:
    c = call_of(**CASES["groups across offset groups"])
    first, second = (run(library, c, torch.float32, reverse=reverse) for reverse in (False, True))
    compare(second, reference(c), torch.float32)
    assert [name for name in OUTPUTS if not torch.equal(first[name], second[name])] in ([], ["grad_input"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_an_output_in_rows_is_the_same_transposed(library: ctypes.CDLL, dtype: torch.dtype) -> None:
    c = call_of(**CASES["groups across offset groups"])
    plain, transposed = (
        run(library, c, dtype, wanted=("out",), out_rows=out_rows)["out"] for out_rows in (False, True)
    )
    assert torch.equal(plain, transposed)
