"""torch's products as the CUDA operators call them (csrc/deform_conv/cuda/torch_products.h), run on the CPU.

The same code with the CPU's functions of torch's stable interface: how memory is seen as matrices, transposed factors,
groups whose results lie beside each other, a bias. Products of half types into float32 exist on CUDA
alone: a stand-in takes the call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from test_cuda_emulated import compiled
from torch import Tensor

from flowers_bench.ops import _build


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    libraries = Path(torch.__file__).parent / "lib"
    return compiled(
        tmp_path_factory.mktemp("products"), *_build.DEFINES, f"-L{libraries}", source="emulate_products.cpp",
        libraries=("-ltorch_cpu", "-lc10"),
    )  # fmt: skip


#: How emulate_products.cpp counts them: the factors' type and the result's.
KINDS = {(torch.float32, torch.float32): 0, (torch.float16, torch.float16): 1, (torch.float16, torch.float32): 2}


def operand(t: Tensor) -> list[int]:
    """Rows, columns and distances of a tensor (groups, rows, columns)."""
    return [*t.shape[1:], t.stride(1), t.stride(2), t.stride(0)]


def multiply(library: ctypes.CDLL, a: Tensor, b: Tensor, to: Tensor, bias: Tensor | None = None) -> None:
    """Compute to = a @ b + bias; tensors (groups, rows, columns)."""
    numbers = (ctypes.c_int64 * 15)(*operand(a), *operand(b), *operand(to))
    addresses = [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in (a, b, bias, to)]
    library.multiply(KINDS[a.dtype, to.dtype], ctypes.c_int64(a.shape[0]), *addresses, numbers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_forward_product(library: ctypes.CDLL, groups: int, biased: bool, dtype: torch.dtype) -> None:
    """Columns times the transposed weight, into channels-last rows in which all groups lie beside each other."""
    positions, length, outputs = 7, 12, 5
    columns, weight = torch.randn(groups, positions, length).to(dtype), torch.randn(groups, outputs, length).to(dtype)
    bias = torch.randn(groups * outputs).to(dtype) if biased else None
    out = torch.full((positions, groups * outputs), torch.nan, dtype=dtype)
    multiply(library, columns, weight.transpose(1, 2), out.view(positions, groups, outputs).transpose(0, 1), bias)
    expected = torch.bmm(columns.double(), weight.transpose(1, 2).double())
    expected = expected.transpose(0, 1).reshape(positions, -1) + (0 if bias is None else bias.double())
    exact = dtype == torch.float32
    torch.testing.assert_close(out.double(), expected, rtol=1e-5 if exact else 4e-3, atol=1e-5 if exact else 1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("groups", [1, 3])
def test_the_weights_gradient(
    library: ctypes.CDLL, groups: int, dtype: torch.dtype, wide_products_on_the_cpu: list[torch.dtype]
) -> None:
    """Transposed columns times a gradient of which each group has some columns, into float32."""
    positions, length, outputs = 9, 8, 4
    columns, grad = torch.randn(groups, positions, length).to(dtype), torch.randn(positions, groups * outputs).to(dtype)
    out = torch.full((groups, length, outputs), torch.nan)
    left, right = columns.transpose(1, 2), grad.view(positions, groups, outputs).transpose(0, 1)
    multiply(library, left, right, out)
    torch.testing.assert_close(out, torch.bmm(left.float(), right.float()), rtol=1e-5, atol=1e-5)
    assert wide_products_on_the_cpu == ([] if dtype == torch.float32 else [torch.float32])


@pytest.fixture
def wide_products_on_the_cpu() -> Iterator[list[torch.dtype]]:
    """Products of half types into float32, which torch has on CUDA alone; the types that were asked for."""
    asked: list[torch.dtype] = []

    def product(self: Tensor, mat2: Tensor, out_dtype: torch.dtype, *, out: Tensor) -> Tensor:
        asked.append(out_dtype)
        return out.copy_(self.to(out_dtype) @ mat2.to(out_dtype))

    with torch.library._scoped_library("aten", "IMPL") as aten:
        aten.impl("mm.dtype_out", product, "CPU")
        aten.impl("bmm.dtype_out", product, "CPU")
        yield asked
