"""Fuzz the operators' last gate, the C++ checks of csrc/deform_conv/arguments.h, past the friendlier ones in Python:

    pip install atheris && python tests/faults/fuzz_arguments.py -max_total_time=300 -max_len=512 -len_control=0

Anything but a result or a RuntimeError is a finding: a crash ends the process, and libFuzzer writes the
input that did it. The kernel is not instrumented, so that coverage is that of this file alone: what varies is drawn here.
"""

from __future__ import annotations

import sys

import atheris
import torch

from flowers_bench.ops import kernel

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
EDGES = [-(2**63), -(2**31), -1, 0, 1, 2, 3, 2**30 - 1, 2**30, 2**31, 2**62, 2**63 - 1]


def seldom(data: atheris.FuzzedDataProvider) -> bool:
    """One thing in 32 is wrong, so that most calls get past the checks before it."""
    return data.ConsumeIntInRange(0, 31) == 31


def number(data: atheris.FuzzedDataProvider, low: int, high: int) -> int:
    return data.PickValueInList(EDGES) if seldom(data) else data.ConsumeIntInRange(low, high)


def size(data: atheris.FuzzedDataProvider) -> int:
    return 0 if seldom(data) else data.ConsumeIntInRange(1, 5)


def tensor(data: atheris.FuzzedDataProvider, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """Of that shape and type, or of a changed one; with values that are no numbers, in any memory order."""
    if seldom(data):
        shape = [data.ConsumeIntInRange(0, 4) for _ in range(data.ConsumeIntInRange(0, 5))]
    if seldom(data):
        dtype = data.PickValueInList(DTYPES)
    found = torch.randn(shape).mul(3).to(dtype)
    if found.is_floating_point() and found.numel() and data.ConsumeBool():
        found.view(-1)[0] = data.PickValueInList([float("nan"), float("inf"), -float("inf"), 1e30, -1e30])
    order = data.ConsumeIntInRange(0, 3)
    if order == 1 and found.dim() == 4:
        found = found.to(memory_format=torch.channels_last)
    elif order == 2 and found.dim() > 1:
        found = found.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif order == 3 and found.dim():
        found = found[:1].expand(shape)
    return found


def once(given: bytes) -> None:
    data = atheris.FuzzedDataProvider(given)
    torch.manual_seed(data.ConsumeInt(4))
    batch, groups, per_group, out_per_group, height, width, kernel_h, kernel_w = (size(data) for _ in range(8))
    steps = [[number(data, low, 2) for _ in range(3 if seldom(data) else 2)] for low in (1, 0, 1)]
    stride, padding, dilation = steps
    out = [
        max(0, min(13, (side + 2 * pad - far * (taps - 1) - 1) // (step or 1) + 1))
        for side, taps, step, pad, far in zip((height, width), (kernel_h, kernel_w), *steps, strict=False)
    ]
    taps, channels, out_channels = kernel_h * kernel_w, groups * per_group, groups * out_per_group
    offset_groups = data.PickValueInList([1, 1, groups, per_group, 2])
    dtype = data.PickValueInList(DTYPES if seldom(data) else DTYPES[:4])
    tensors = [
        tensor(data, shape, dtype)
        for shape in (
            [batch, channels, height, width],
            [batch, offset_groups * 2 * taps, *out],
            [out_channels, per_group, kernel_h, kernel_w],
        )
    ]
    bias = tensor(data, [out_channels], dtype) if data.ConsumeBool() else None
    mask = tensor(data, [batch, offset_groups * taps, *out], dtype) if data.ConsumeBool() else None
    kernels = torch.ops.flowers_bench_kernel
    try:
        if data.ConsumeBool():
            kernels.forward(*tensors, bias, mask, stride, padding, dilation)
        else:
            grad = tensor(data, [batch, out_channels, *out], dtype)
            needs = [data.ConsumeBool() for _ in range(5)]
            kernels.backward(grad, *tensors, mask, stride, padding, dilation, *needs)
    except RuntimeError as error:
        assert str(error)


if __name__ == "__main__":
    assert "cpu" in str(kernel()), f"the compiled kernel is not in use: {kernel()}"
    atheris.instrument_func(once)
    atheris.Setup(sys.argv, once)
    atheris.Fuzz()
