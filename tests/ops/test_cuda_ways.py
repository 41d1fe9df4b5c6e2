"""What computes a call on a GPU: the choice, and torchvision's kernels behind our operator. No device is needed."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torchvision  # noqa: F401  # registers its operators, as `choose` does on a GPU
from test_cuda_emulated import call_of
from torch import Tensor

from flowers_bench.ops import _build, _cuda, _deform_conv, kernel
from flowers_bench.ops._cuda import MEASURED, Measured, Shape, Times, Way

TABLE = Path(__file__).resolve().parents[2] / "benchmarks/results/performance/kernel-h200.csv"
STAGES = {1: (64, 56), 2: (128, 28), 3: (256, 14), 4: (512, 7)}
GEOMETRY = ((1, 1), (1, 1), (1, 1))


@pytest.fixture
def torchvision_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "_torchvision_has_cuda", lambda: True)


@pytest.fixture
def deterministic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def shape_of(stage: int = 1, batch: int = 32, dtype: torch.dtype = torch.float32, k: int = 3, groups: int = 1) -> Shape:
    channels, side = STAGES[stage]
    return Shape(dtype, (batch, channels, side, side), (channels, channels // groups, k, k), side * side, 1)


def test_the_measured_times_are_those_of_the_table() -> None:
    times = {}
    with TABLE.open() as file:
        for row in csv.DictReader(file):
            if row["type"] == "float32":
                key = (int(row["stage"]), int(row["batch"]), row["direction"])
                times[key] = Times(float(row["ours us"]), float(row["torchvision / ours"]))
    expected = [
        Measured(channels, batch * side**2, *(times[stage, batch, way] for way in ("forward", "forward_backward")))
        for stage, (channels, side) in STAGES.items()
        for batch in (1, 8, 32)
    ]
    assert list(MEASURED) == expected


@pytest.mark.usefixtures("torchvision_on_cuda")
def test_the_faster_of_what_was_measured_computes() -> None:
    everything = [True] * 5
    assert _cuda.choose(shape_of()) == _cuda.choose(shape_of(), everything) == Way.TORCHVISION
    assert _cuda.choose(shape_of(2, 1)) == Way.GENERAL  # a tie
    assert _cuda.choose(shape_of(1, 1)) == Way.GENERAL  # it saves too little
    assert _cuda.choose(shape_of(2, 1), everything) == Way.TORCHVISION
    assert _cuda.choose(shape_of(4, 64), everything) == Way.TORCHVISION  # near what was measured
    assert _cuda.choose(shape_of(4, 10_000)) == Way.GENERAL  # far from it


@pytest.mark.usefixtures("torchvision_on_cuda")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_torchvision_computes_float32_alone(dtype: torch.dtype) -> None:
    """It rounds coordinates of float16 to half, and has no bfloat16."""
    assert _cuda.choose(shape_of(dtype=dtype)) == Way.GENERAL


@pytest.mark.usefixtures("torchvision_on_cuda")
def test_what_was_not_measured_stays_with_the_general_kernels() -> None:
    assert _cuda.choose(shape_of(k=5)) == _cuda.choose(shape_of(groups=2)) == Way.GENERAL
    assert _cuda.choose(shape_of(batch=0)) == Way.GENERAL
    assert _cuda.choose(shape_of(), [True, True, False, False, True]) == Way.GENERAL  # a frozen weight


def test_without_torchvisions_kernels_ours_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "_torchvision_has_cuda", lambda: False)
    assert _cuda.choose(shape_of()) == Way.GENERAL


@pytest.mark.usefixtures("deterministic", "torchvision_on_cuda")
@pytest.mark.parametrize("backward", [None, [True] * 5])
def test_deterministic_settings_take_columns(monkeypatch: pytest.MonkeyPatch, backward: list[bool] | None) -> None:
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert _cuda.choose(shape_of(dtype=dtype), backward) == Way.COLUMNS
    assert _cuda.choose(shape_of(dtype=torch.float64), backward) == Way.GENERAL
    assert _cuda.choose(shape_of(groups=64), backward) == Way.GENERAL
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert _cuda.choose(shape_of(), backward) == Way.GENERAL


@pytest.fixture(scope="module")
def compiled_kernel() -> None:
    if not _build.has_kernel("cpu"):
        pytest.skip("no compiled kernel here")


def test_a_way_is_forced_for_a_while() -> None:
    with _cuda.forced(Way.COLUMNS):
        assert _cuda.choose(shape_of()) == Way.COLUMNS
        with _cuda.forced(Way.GENERAL):
            assert _cuda.choose(shape_of()) == Way.GENERAL
        assert _cuda.choose(shape_of(dtype=torch.float64)) == Way.COLUMNS
    assert _cuda.choose(shape_of(dtype=torch.float64)) == Way.GENERAL


def tensors(masked: bool = True, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor | None]:
    """input, offset, weight, bias, mask in float32, and the output's gradient."""
    c = call_of(channels=8, outputs=4, groups=2, offset_groups=2, masked=masked)
    found = [t if t is None else t.float() for t in (c.input, c.offset, c.weight, c.bias, c.mask, c.grad)]
    assert found[0] is not None
    found[0] = found[0].contiguous(memory_format=layout)
    return found


@pytest.mark.usefixtures("compiled_kernel")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("masked", [True, False])
def test_torchvision_behind_our_operator(masked: bool, layout: torch.memory_format) -> None:
    """On the CPU, which it computes for as well: results, their order and their layouts are those of our kernels."""
    *given, grad = tensors(masked, layout)
    x, offset, weight, bias, mask = given
    needs = [True, True, True, True, masked]
    outs = [
        _deform_conv._forward_by(torch.ops.flowers_bench_kernel, way, x, offset, weight, bias, mask, *GEOMETRY)
        for way in (Way.TORCHVISION, Way.GENERAL)
    ]
    ours, theirs = (
        _deform_conv._backward_by(torch.ops.flowers_bench_kernel, way, grad, x, offset, weight, mask, *GEOMETRY, needs)
        for way in (Way.GENERAL, Way.TORCHVISION)
    )
    for found, expected in zip((outs[0], *theirs), (outs[1], *ours), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        assert found.stride() == expected.stride()


@pytest.mark.usefixtures("compiled_kernel")
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_torchvision_gives_nan_for_an_offset_that_is_not_finite(bad: float) -> None:
    x, offset, weight, bias, mask, _ = tensors()
    offset[1, 4, 2, 3] = bad
    found, expected = (
        _deform_conv._forward_by(torch.ops.flowers_bench_kernel, way, x, offset, weight, bias, mask, *GEOMETRY)
        for way in (Way.TORCHVISION, Way.GENERAL)
    )
    assert found.isnan().any()
    assert torch.equal(found.isnan(), expected.isnan())


def test_the_kernel_names_what_computed_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    before = kernel()
    monkeypatch.setattr(_build, "has_kernel", lambda device: True)
    monkeypatch.setattr(_cuda, "used", {Way.TORCHVISION, Way.COLUMNS})
    assert kernel() == before + "+cuda+columns+torchvision"
