"""Products of bfloat16 in pairs (AVX512-BF16) or squares (AMX), against the float64 kernel with the same inputs.

The gradients of input, offset and mask come from exact products and are rounded once; the output and the gradient of the
weight come from samples that are rounded before. The bounds follow from that, not from what was seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowers_bench.ops import deform_conv2d, kernel

KERNELS = ("avx512bf16", "avx512amx")
HERE = kernel().split("+")[0].removeprefix("cpu-")
paired = pytest.mark.skipif(
    HERE not in (*KERNELS, "neonbf16"), reason="bfloat16 is multiplied as float32 here: no such products, or not chosen"
)
#: What rounding to bfloat16 changes at most, as a share; and what float32's sums do, as a share of the sum of magnitudes.
ROUNDING, SUMS = 2.0**-8, 2.0**-16
NAMES = ("input", "offset", "weight", "bias", "mask")
Given = dict[str, Tensor | int | None]


def draw(
    channels: int, outputs: int, groups: int = 1, offset_groups: int = 1, batch: int = 2, size: Sequence[int] = (6, 7),
    k: int = 3, stride: int = 1, padding: int = 1, dilation: int = 1, masked: bool = True, layout: torch.memory_format = torch.channels_last, seed: int = 0,
) -> Given:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    height, width = ((s + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for s in size)
    entries = offset_groups * k * k
    return {
        "input": numbers(batch, channels, *size).to(memory_format=layout),
        "offset": 2 * numbers(batch, 2 * entries, height, width),
        "weight": numbers(outputs, channels // groups, k, k).to(memory_format=layout),
        "bias": numbers(outputs),
        "mask": numbers(batch, entries, height, width).sigmoid() if masked else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


def computed(a: Given, grad: Tensor) -> list[Tensor]:
    """Compute the output, and the gradients of all tensors that there are."""
    tensors = [value.detach().requires_grad_() for name in NAMES if (value := a[name]) is not None]  # type: ignore[union-attr]
    named = dict(zip([name for name in NAMES if a[name] is not None], tensors, strict=True))
    out = deform_conv2d(**{**a, **named})
    return [out.detach(), *torch.autograd.grad(out, tensors, grad.to(out.dtype))]


def exactly(a: Given, change: object = None) -> Given:
    """Convert to float64, with magnitudes in the place of numbers where `change` is torch.abs."""
    found = {name: value.double() if isinstance(value, Tensor) else value for name, value in a.items()}
    if change is torch.abs:
        found |= {name: found[name].abs() for name in ("input", "weight", "bias")}  # type: ignore[union-attr]
    return found


def assert_within_bounds(a: Given) -> None:
    with torch.no_grad():
        shape = deform_conv2d(**a).shape
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    found, expected = computed(a, grad), computed(exactly(a), grad.double())
    most = computed(exactly(a, torch.abs), grad.double().abs())  # sums of magnitudes
    labels = ["out", *(f"gradient of {name}" for name in NAMES if a[name] is not None)]
    for name, got, want, sums in zip(labels, found, expected, most, strict=True):
        assert got.dtype == torch.bfloat16
        sampled = 1.01 * ROUNDING if name in ("out", "gradient of weight") else 0.0
        if name == "gradient of offset":  # slopes are differences: their magnitudes are not those of `most`
            sums = sums.abs() + (a["input"].abs().max() * a["weight"].abs().sum() * grad.abs().max()).double()
        allowed = ROUNDING * want.abs() + (sampled + SUMS) * sums.abs() + 1e-30
        worst = ((got.double() - want).abs() / allowed).max().item()
        assert worst <= 1.01, f"{name}: {worst:.2f} times what rounding explains"


SHAPES = [
    {"channels": 64, "outputs": 64, "size": (14, 15)},
    {"channels": 32, "outputs": 96, "size": (5, 5), "batch": 1},
    {"channels": 64, "outputs": 64, "groups": 2},
    {"channels": 128, "outputs": 32, "offset_groups": 4, "stride": 2},
    {"channels": 256, "outputs": 64, "masked": False},
    {"channels": 512, "outputs": 32, "size": (3, 3), "batch": 3},
    {"channels": 96, "outputs": 32, "k": 1, "padding": 0},
    {"channels": 32, "outputs": 32, "k": 5, "padding": 2, "offset_groups": 1},
]


@paired
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels-last", "NCHW"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "-".join(f"{k}{v}" for k, v in s.items()))
def test_differs_from_float64_by_no_more_than_rounding(shape: dict[str, int], layout: torch.memory_format) -> None:
    assert_within_bounds(draw(**shape, layout=layout))


@paired
@settings(max_examples=60, deadline=None)
@given(
    groups=st.sampled_from([1, 2]), each=st.sampled_from([32, 64, 160]), outputs=st.sampled_from([32, 64]),
    divided=st.sampled_from([1, 2]), batch=st.integers(1, 3), height=st.integers(1, 9), width=st.integers(1, 9),
    k=st.sampled_from([1, 2, 3]), stride=st.integers(1, 2), dilation=st.integers(1, 2), masked=st.booleans(), last=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_any_shape_is_within_the_bounds(
    groups: int, each: int, outputs: int, divided: int, batch: int, height: int, width: int, k: int, stride: int, dilation: int, masked: bool, last: bool, seed: int,
) -> None:  # fmt: skip
    layout = torch.channels_last if last else torch.contiguous_format
    shape = {
        "channels": groups * each,
        "outputs": groups * outputs,
        "groups": groups,
        "offset_groups": divided if groups * each % (32 * divided) == 0 else 1,
    }
    assert_within_bounds(draw(**shape, batch=batch, size=(height, width), k=k, padding=dilation * (k - 1), stride=stride, dilation=dilation, masked=masked, layout=layout, seed=seed))  # fmt: skip


@paired
@pytest.mark.parametrize("needed", NAMES)
def test_one_gradient_alone_is_the_same_as_among_all(needed: str) -> None:
    a = draw(64, 64, size=(9, 9))
    grad = torch.randn(deform_conv2d(**a).shape).bfloat16()
    among_all = computed(a, grad)[1 + NAMES.index(needed)]
    alone = a[needed].detach().requires_grad_()  # type: ignore[union-attr]
    (found,) = torch.autograd.grad(deform_conv2d(**{**a, needed: alone}), [alone], grad)
    torch.testing.assert_close(found, among_all, rtol=0.01, atol=0.01)


@paired
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2], {"channels": 512, "outputs": 512, "size": (7, 7), "batch": 5}])
def test_repeats_bit_for_bit_and_the_output_for_any_number_of_threads(shape: dict[str, int], threads: int) -> None:
    a = draw(**shape)
    grad = torch.randn(deform_conv2d(**a).shape).bfloat16()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = computed(a, grad)
        torch.set_num_threads(threads)
        first, second = computed(a, grad), computed(a, grad)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))
    assert torch.equal(first[0], alone[0])


@paired
def test_points_that_are_not_finite_give_nan_where_they_are_read() -> None:
    a = draw(64, 64)
    a["offset"][0, 4, 2, 3] = float("nan")  # type: ignore[index]
    out = deform_conv2d(**a)
    assert out[0, :, 2, 3].isnan().all()
    assert out.isnan().sum() == 64


@paired
def test_an_empty_batch_has_empty_results_and_zero_gradients_of_the_weight() -> None:
    a = draw(32, 32)
    a |= {name: a[name][:0] for name in ("input", "offset", "mask")}  # type: ignore[index]
    out, *gradients = computed(a, torch.empty(0, 32, 6, 7))
    assert out.shape == (0, 32, 6, 7)
    named = dict(zip(NAMES, gradients, strict=True))
    assert named["input"].shape == (0, 32, 6, 7)
    assert not named["weight"].any()
    assert not named["bias"].any()


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.timeout(900)  # it may compile first
def test_where_the_processor_has_the_instruction_the_rest_of_this_file_passes(name: str) -> None:
    """Where it is there, and not chosen by itself, it is asked for."""
    if name == HERE:
        pytest.skip("every test above has run")
    env = {**os.environ, "FLOWERS_BENCH_KERNEL": name}
    code = "from flowers_bench.ops import kernel; print(kernel())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    if not done.stdout.startswith(f"cpu-{name}"):
        pytest.skip(f"this processor, or its system, has no {name}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", str(Path(__file__)), "-k", "not rest_of_this_file"],
        capture_output=True, text=True, env=env, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
