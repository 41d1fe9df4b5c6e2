"""The op against torchvision in float32, against a float64 loop over the paper's equation, and as a torch citizen."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowers_bench.ops import DeformConv2d, OffsetDeformConv2d, deform_conv2d, kernel

NAMES = ("input", "offset", "weight", "bias", "mask")


def arguments(
    batch: int = 2, channels: int = 6, outputs: int = 4, size: tuple[int, int] = (7, 9), k: int = 3, stride: int = 1,
    padding: int = 1, dilation: int = 1, groups: int = 1, offset_groups: int = 1, masked: bool = True, dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor | int | None]:  # fmt: skip
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    height, width = ((s + 2 * padding - dilation * (k - 1) - 1) // stride + 1 for s in size)
    return {
        "input": draw(batch, channels, *size),
        "offset": 2 * draw(batch, 2 * offset_groups * k * k, height, width),
        "weight": draw(outputs, channels // groups, k, k),
        "bias": draw(outputs),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "mask": draw(batch, offset_groups * k * k, height, width).sigmoid() if masked else None,
    }


def by_loops(a: dict[str, Tensor | int | None]) -> Tensor:
    """Equation 1 of arXiv:1811.11168, written out sample by sample in Python floats."""
    x, offset, weight, mask = a["input"], a["offset"], a["weight"], a["mask"]
    n, channels, height, width = x.shape
    outputs, per_group, k, _ = weight.shape
    out = torch.zeros(n, outputs, *offset.shape[2:], dtype=torch.float64)
    groups, offset_groups = channels // per_group, offset.shape[1] // (2 * k * k)
    for i, o, r, c in torch.cartesian_prod(*(torch.arange(s) for s in out.shape)).tolist():
        total = a["bias"][o].item()
        for ci in range(per_group):
            channel = o // (outputs // groups) * per_group + ci
            g = channel // (channels // offset_groups)
            for tap in range(k * k):
                dy, dx = (offset[i, 2 * (g * k * k + tap) + j, r, c].item() for j in (0, 1))
                y = r * a["stride"] - a["padding"] + tap // k * a["dilation"] + dy
                z = c * a["stride"] - a["padding"] + tap % k * a["dilation"] + dx
                value = 0.0
                for row in (math.floor(y), math.floor(y) + 1):
                    for column in (math.floor(z), math.floor(z) + 1):
                        if 0 <= row < height and 0 <= column < width:
                            value += (1 - abs(y - row)) * (1 - abs(z - column)) * x[i, channel, row, column].item()
                scale = 1.0 if mask is None else mask[i, g * k * k + tap, r, c].item()
                total += weight[o, ci, tap // k, tap % k].item() * value * scale
        out[i, o, r, c] = total
    return out


CASES = [
    {},
    {"masked": False},
    {"stride": 2, "padding": 2, "dilation": 2},
    {"groups": 2, "offset_groups": 3},
    {"channels": 8, "outputs": 8, "groups": 8},
    {"channels": 17, "outputs": 3, "k": 1, "padding": 0},
    {"channels": 3, "outputs": 5, "k": 5, "padding": 2, "size": (5, 6)},
    {"batch": 1, "channels": 40, "outputs": 24, "size": (9, 4)},
    {"batch": 1, "channels": 160, "outputs": 44, "groups": 2, "size": (4, 4)},
]


@pytest.mark.parametrize("case", CASES[:5])
def test_equals_the_equation(case: dict[str, int]) -> None:
    a = arguments(**{"batch": 1, "size": (4, 5), **case})
    torch.testing.assert_close(deform_conv2d(**a), by_loops(a), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward_and_every_gradient_equal_torchvisions(case: dict[str, int], channels_last: bool) -> None:
    theirs = arguments(**case, dtype=torch.float32)
    ours = dict(theirs)
    if channels_last:  # not theirs: torchvision 0.25 cannot differentiate a 1x1 weight that lies so
        ours |= {name: ours[name].to(memory_format=torch.channels_last, copy=True) for name in ("input", "weight")}
    given = [[a[name].requires_grad_() for name in NAMES if a[name] is not None] for a in (ours, theirs)]
    found, expected = deform_conv2d(**ours), torchvision.ops.deform_conv2d(**theirs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    grad = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, tensors, grad) for out, tensors in zip((found, expected), given, strict=True)]
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_few_positions_whose_outputs_threads_divide(
    dtype: torch.dtype, layout: torch.memory_format, threads: int
) -> None:
    """A weight as it lies in memory, channels-last, and outputs that fill no panel at the end."""
    a = arguments(batch=1, channels=16, outputs=789, size=(6, 9), dtype=dtype)
    a |= {"input": a["input"].to(memory_format=layout), "weight": a["weight"].to(memory_format=torch.channels_last)}
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = deform_conv2d(**a)
    finally:
        torch.set_num_threads(before)
    expected = torchvision.ops.deform_conv2d(**{k: v.double() if isinstance(v, Tensor) else v for k, v in a.items()})
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 3e-2}[dtype]
    assert found.is_contiguous(memory_format=layout)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(0, 3), groups=st.sampled_from([1, 2, 3]), offset_groups=st.sampled_from([1, 2, 3]), outputs=st.sampled_from([3, 6, 12]),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)), stride=st.integers(1, 3), padding=st.integers(0, 3), dilation=st.integers(1, 2),
    masked=st.booleans(),
)  # fmt: skip
def test_any_shape_equals_torchvisions(
    outputs: int, groups: int, size: tuple[int, int], padding: int, dilation: int, **case: int
) -> None:
    if min(size) + 2 * padding < 2 * dilation + 1:
        return
    a = arguments(
        outputs=outputs * (1 if outputs % groups == 0 else groups), groups=groups, size=size, padding=padding, dilation=dilation, **case
    )  # fmt: skip
    found = deform_conv2d(**a)
    if a["input"].shape[0] == 0:
        assert found.shape[0] == 0
    else:
        torch.testing.assert_close(found, torchvision.ops.deform_conv2d(**a), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "case", [{}, {"masked": False, "groups": 2, "offset_groups": 2}, {"stride": 2, "dilation": 2, "padding": 2}]
)
def test_first_and_second_derivatives(case: dict[str, int]) -> None:
    a = arguments(**{"batch": 1, "channels": 4, "size": (5, 5), **case})
    names = [name for name in NAMES if a[name] is not None]
    tensors = [a[name].requires_grad_() for name in names]

    def call(*values: Tensor) -> Tensor:
        return deform_conv2d(**{**a, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, tensors, fast_mode=True)


def test_opcheck() -> None:
    a = arguments(batch=1, channels=4)
    given_ = (a["input"], a["offset"], a["weight"], a["bias"], a["mask"], [1, 1], [1, 1], [1, 1])
    torch.library.opcheck(torch.ops.flowers_bench.deform_conv2d.default, given_)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_a_wild_offset_touches_its_own_outputs_and_nothing_else(bad: float) -> None:
    a = arguments(dtype=torch.float32)
    before = deform_conv2d(**a)
    a["offset"][1, 4, 2, 3] = bad
    after = deform_conv2d(**a)
    changed = torch.zeros(before.shape, dtype=torch.bool)
    changed[1, :, 2, 3] = True
    assert torch.equal(after[~changed], before[~changed])
    assert after[changed].isnan().all() == (not math.isfinite(bad))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_are_close_to_float64(dtype: torch.dtype) -> None:
    a = arguments(dtype=dtype)
    exact = {key: value.double() if isinstance(value, Tensor) else value for key, value in a.items()}
    found = deform_conv2d(**a)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), deform_conv2d(**exact), rtol=0.03, atol=0.1)


@pytest.mark.parametrize("case", [{}, {"groups": 2, "offset_groups": 2}, {"channels": 8, "outputs": 8, "groups": 8}])
def test_channels_last_in_and_out(case: dict[str, int]) -> None:
    a = arguments(**case, dtype=torch.float32)
    plain = deform_conv2d(**a)
    last = deform_conv2d(**{**a, "input": a["input"].to(memory_format=torch.channels_last)})
    assert last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(last, plain, rtol=1e-5, atol=1e-5)


def test_repeats_bit_for_bit() -> None:
    a = arguments(batch=5, channels=16, outputs=16, size=(12, 12), dtype=torch.float32)
    tensors = [a[name].requires_grad_() for name in NAMES]
    runs = [torch.autograd.grad(deform_conv2d(**a).square().sum(), tensors) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"offset": torch.zeros(2, 17, 7, 9)}, {"offset": torch.zeros(2, 18, 6, 9)}, {"mask": torch.zeros(2, 8, 7, 9)}, {"bias": torch.zeros(5)},
        {"weight": torch.zeros(4, 5, 3, 3)}, {"stride": 0}, {"dilation": 0}, {"padding": -1}, {"input": torch.zeros(6, 7, 9)},
        {"input": torch.zeros(2, 6, 7, 9, dtype=torch.int64)}, {"weight": torch.zeros(4, 6, 3, 3, dtype=torch.float64)},
    ],
)  # fmt: skip
def test_wrong_arguments_are_refused(change: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        deform_conv2d(**{**arguments(dtype=torch.float32), **change})


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
@pytest.mark.parametrize(
    "one",
    [np.int64(1), np.uint8(1), True, torch.tensor(1), (np.int32(1), 1), [np.int64(1)], np.array([1, 1]), torch.ones(2, dtype=torch.int64), range(1, 2)],
    ids=repr,
)  # fmt: skip
def test_any_kind_of_integer_is_an_integer(name: str, one: object) -> None:
    """Whatever torchvision takes, and integers of torch and NumPy alone or in pairs."""
    plain = arguments(**{name: 1}, dtype=torch.float32)
    torch.testing.assert_close(deform_conv2d(**{**plain, name: one}), deform_conv2d(**plain), rtol=0, atol=0)
    assert getattr(DeformConv2d(2, 2, 3, **{name: one}), name) == (1, 1)


@pytest.mark.parametrize("name", ["stride", "padding", "dilation", "kernel_size"])
@pytest.mark.parametrize(
    "wrong", [None, 1.0, np.float32(1), (1.0, 1.0), (1, None), "1", "11", b"11", [], [1, 1, 1], {1: 1}, {1}, 2**70, -(2**70), torch.tensor(1.0), ((1, 1), (1, 1)), object, 1j, itertools.repeat(1)],
    ids=repr,
)  # fmt: skip
def test_what_is_no_integer_is_refused_by_the_arguments_name(name: str, wrong: object) -> None:
    words = f"Expected argument `{name}` to be one or two integers, but got"
    if name != "kernel_size":
        with pytest.raises(RuntimeError, match=words):
            deform_conv2d(**{**arguments(dtype=torch.float32), name: wrong})
    with pytest.raises(RuntimeError, match=words):
        DeformConv2d(2, 2, **{"kernel_size": 3, name: wrong})


@pytest.mark.parametrize("name", ["input", "offset", "weight"])
def test_a_missing_tensor_is_refused_by_the_arguments_name(name: str) -> None:
    with pytest.raises(RuntimeError, match=f"Expected argument `{name}` to be a tensor, but got None"):
        deform_conv2d(**{**arguments(dtype=torch.float32), name: None})


@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_what_is_too_large_for_the_kernels_is_not_called_too_small(name: str) -> None:
    with pytest.raises(RuntimeError, match=rf"`{name}` to be at least \d and below 2\*\*31, but got \(2147483648"):
        deform_conv2d(**{**arguments(dtype=torch.float32), name: 2**31})


def test_state_dicts_of_torchvisions_module_load_and_agree() -> None:
    theirs, ours = torchvision.ops.DeformConv2d(6, 4, 3, padding=1), DeformConv2d(6, 4, 3, padding=1)
    ours.load_state_dict(theirs.state_dict())
    a = arguments(dtype=torch.float32)
    call = (a["input"], a["offset"], a["mask"])
    torch.testing.assert_close(ours(*call), theirs(*call), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("groups", [1, 6])
def test_offset_module_starts_as_the_plain_convolution(modulated: bool, groups: int) -> None:
    conv = torch.nn.Conv2d(6, 12, 3, stride=2, padding=1, groups=groups).double()
    twin = OffsetDeformConv2d.from_conv(conv, modulated=modulated)
    images = torch.randn(2, 6, 11, 8, dtype=torch.float64)
    torch.testing.assert_close(twin(images), conv(images), rtol=1e-12, atol=1e-12)
    offset, mask = twin.offset_and_mask(images)
    assert not offset.any()
    assert mask is None or (mask == 1).all()


def test_the_kernel_has_a_name() -> None:
    assert kernel().startswith(("cpu-", "reference"))
