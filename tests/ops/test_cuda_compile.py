"""The CUDA sources through nvcc, along the path that a user's first call takes; no device is needed.

TORCH_CUDA_ARCH_LIST names the architectures; by default the first and the last, and where tensor cores changed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from flowers_bench.ops import _build

pytestmark = [pytest.mark.cuda_compile, pytest.mark.timeout(1500)]

ARCHITECTURES = os.environ.get("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0;12.0")
#: The kernels of csrc/deform_conv/cuda/columns.cuh and cells.cuh, and how their types are called in names.
BY_COLUMNS = ("Columns", "BackwardSamples", "CountCells", "ScanCells", "FillCells", "SortCells", "Gather")
NARROW = ("f", "6__half", "13__nv_bfloat16")
STRICT = "-Werror all-warnings -Xcompiler -Wall,-Wextra -Xptxas -v"
LOAD = """
import torch
from flowers_bench.ops import _build, kernel
_build._prebuilt = lambda: None
print(kernel())
for name in ("forward", "forward_columns", "backward", "backward_deterministic", "backward_columns"):
    print(name, torch._C._dispatch_has_kernel_for_dispatch_key(f"flowers_bench_kernel::{name}", "CUDA"))
"""


DRAWING = ("Weigh", "Down", "Across", "Colour")  # the kernels of csrc/draw/cuda/kernels.cuh
LOAD_DRAWING = """
import torch
from flowers_bench.ops import _build
_build._prebuilt = lambda: None
print(all(_build.draw_operators(device) is not None for device in ("cpu", "cuda")))
"""


@dataclass
class Compiled:
    said: str
    log: str
    library: Path


def compile_by(code: str, cache: Path) -> Compiled:
    """Run what compiles and loads one library, for all ARCHITECTURES."""
    if _build.cuda_home() is None:
        pytest.skip("no CUDA toolkit: set CUDA_HOME to the folder that holds bin/nvcc and include/")
    env = {
        **os.environ, "FLOWERS_BENCH_CUDA": "1", "FLOWERS_BENCH_CACHE": str(cache),
        "TORCH_CUDA_ARCH_LIST": ARCHITECTURES, "NVCC_APPEND_FLAGS": STRICT,
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    log = "".join(path.read_text() for path in cache.glob("*/build.log"))
    libraries = list(cache.glob("*/kernel.so"))
    assert len(libraries) == 1, done.stderr + log
    return Compiled(done.stdout, log, libraries[0])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return compile_by(LOAD, tmp_path_factory.mktemp("cuda"))


def wanted() -> set[str]:
    """What the compiler calls ARCHITECTURES."""
    return {"sm_" + name.removesuffix("+PTX").replace(".", "") for name in re.split("[ ;]", ARCHITECTURES)}


def kernels(log: str) -> Iterator[tuple[str, str, str]]:
    """ptxas on every kernel: architecture, mangled name, and what it says of registers, stack and shared memory."""
    for part in log.split("ptxas info    : Compiling entry function ")[1:]:
        name, architecture = re.match(r"'(\w+)' for '(\w+)'", part).groups()  # type: ignore[union-attr]
        yield architecture, name, part


def test_the_library_loads_and_registers_the_cuda_operators(compiled: Compiled) -> None:
    first, *registered = compiled.said.splitlines()
    assert first.endswith("+cuda")
    names = ("forward", "forward_columns", "backward", "backward_deterministic", "backward_columns")
    assert registered == [f"{name} True" for name in names]


def test_every_kernel_was_compiled_for_every_architecture(compiled: Compiled) -> None:
    found: dict[str, set[str]] = {}
    for architecture, name, _ in kernels(compiled.log):
        found.setdefault(architecture, set()).add(name)
    assert found.keys() == wanted()
    for names in found.values():
        for kernel in ("Forward", "AddTaps", "BackwardColumns", "BackwardWeight", "BackwardBias", "AddParts"):
            for dtype in ("f", "d", "6__half", "13__nv_bfloat16"):
                assert any(re.search(rf"\d{kernel}I{dtype}", name) for name in names), (kernel, dtype)
        for kernel in BY_COLUMNS:
            compiled_for = [dtype for dtype in NARROW if any(re.search(rf"\d{kernel}I{dtype}E", n) for n in names)]
            assert compiled_for == list(NARROW), kernel
            assert not any(re.search(rf"\d{kernel}IdE", name) for name in names), "it is not for float64"


def test_kernels_fit_their_block_and_keep_their_values_in_registers(compiled: Compiled) -> None:
    """48 KiB of shared memory need no opting in; 256 threads may have 255 registers; spills stay off the hot path."""
    for architecture, name, said in kernels(compiled.log):
        where = f"{name} for {architecture}: {said}"
        shared = re.search(r"(\d+) bytes smem", said)
        assert shared is None or int(shared[1]) <= 48 * 1024, where
        assert int(re.search(r"Used (\d+) registers", said)[1]) <= 255, where  # type: ignore[index]
        assert int(re.search(r"(\d+) bytes spill stores", said)[1]) <= 128, where  # type: ignore[index]


def test_kernels_by_columns_leave_registers_for_many_warps(compiled: Compiled) -> None:
    """Five blocks of `Columns` on a multiprocessor, three or four of the others; values never leave their registers."""
    for architecture, name, said in kernels(compiled.log):
        kernel = next((k for k in BY_COLUMNS if re.search(rf"\d{k}I", name)), None)
        if kernel is None:
            continue
        where = f"{name} for {architecture}: {said}"
        # Turing has room for four blocks of any kernel.
        most = {"Columns": 64 if architecture == "sm_75" else 48, "Gather": 85}.get(kernel, 64)
        assert int(re.search(r"Used (\d+) registers", said)[1]) <= most, where  # type: ignore[index]
        assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", said), where
        shared = re.search(r"(\d+) bytes smem", said)
        assert shared is None or int(shared[1]) <= 16 * 1024, where


def entries_of(source: str, folder: Path) -> dict[str, str]:
    """Each kernel's PTX for Hopper by its mangled name."""
    home = _build.cuda_home() or pytest.skip("no CUDA toolkit")
    headers = Path(torch.__file__).parent / "include"
    listing = folder / "kernels.ptx"
    flags = [*_build.NVCC_FLAGS, "-std=c++20", "-arch=compute_90", "-isystem", str(headers)]
    subprocess.run([home / "bin/nvcc", *flags, "-ptx", _build.source_root() / source, "-o", listing], check=True)
    return dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.visible|\Z)", listing.read_text(), flags=re.DOTALL))


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return entries_of("deform_conv/cuda/op.cu", tmp_path_factory.mktemp("ptx"))


def test_kernels_by_columns_load_128_bits_and_add_by_no_atomics(entries: dict[str, str]) -> None:
    """Corners are loaded and columns stored by 128 bits; cells are counted in whole numbers, and nothing else is atomic."""
    for kernel in BY_COLUMNS:
        for dtype in NARROW:
            (code,) = (text for name, text in entries.items() if re.search(rf"\d{kernel}I{dtype}E", name))
            atomics = re.findall(r"\b(?:atom|red)\.[\w.:]+", code)
            if kernel == "CountCells":
                assert atomics
                assert all(re.search(r"\.add\.[su]32$", name) for name in atomics), atomics
            else:
                assert not atomics, (kernel, dtype, atomics)
            wide = len(re.findall(r"ld\.global(?:\.nc)?\.v4\.[bfsu]32", code))
            assert wide >= {"Columns": 8, "BackwardSamples": 5, "Gather": 2}.get(kernel, 0), (kernel, dtype, wide)
            stores = len(re.findall(r"st\.global\.v4\.[bfsu]32", code))
            assert stores >= {"Columns": 2, "BackwardSamples": 1, "Gather": 1}.get(kernel, 0), (kernel, dtype, stores)
            assert not re.search(r"\.local\.", code), (kernel, dtype)


def test_device_code_uses_wide_loads_vector_atomics_and_tensor_cores(entries: dict[str, str]) -> None:
    """Read off the PTX for Hopper: what the source asks for is what the compiler made of it."""

    def code(kernel: str) -> str:
        return "".join(text for name, text in entries.items() if re.search(kernel, name))

    for dtype in ("f", "6__half"):
        for kernel in ("Forward", "BackwardColumns", "BackwardWeight"):
            assert re.search(r"ld\.global\S*\.v4\.[fub]32", code(rf"\d{kernel}I{dtype}")), (kernel, dtype)
    assert re.search(r"(atom|red)\.global\.add\.v4\.f32", code("BackwardColumnsIfLb1ELb0E"))
    for dtype in ("6__half", "13__nv_bfloat16"):
        for instruction in ("ldmatrix.sync", "mma.sync.aligned.m16n8k16"):
            assert instruction in code(f"ForwardI{dtype}")
    assert not re.search(r"\.local\.", code("ForwardI6__half")), "an array that should be registers lies in memory"


# ---- The operator that draws ----


def test_the_operator_that_draws_is_a_library_with_both_devices_kernels(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Without their values ever leaving registers, and with 42 of them at most, so that six blocks fit a multiprocessor."""
    drawing = compile_by(LOAD_DRAWING, tmp_path_factory.mktemp("drawing"))
    assert drawing.said.split() == ["True"]
    found: dict[str, set[str]] = {}
    for architecture, name, said in kernels(drawing.log):
        where = f"{name} for {architecture}: {said}"
        (kernel,) = (k for k in DRAWING if re.search(rf"\d{k}E", name))
        found.setdefault(architecture, set()).add(kernel)
        assert re.search(r"\b0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads", said), where
        most = 64 if kernel == "Weigh" or architecture == "sm_75" else 42
        assert int(re.search(r"Used (\d+) registers", said)[1]) <= most, where  # type: ignore[index]
    assert found == {architecture: set(DRAWING) for architecture in wanted()}


def test_only_whole_numbers_are_added_by_atomics_where_images_are_drawn(tmp_path: Path) -> None:
    for name, code in entries_of("draw/cuda/draw.cu", tmp_path).items():
        atomics = re.findall(r"\b(?:atom|red)\.[\w.:]+", code)
        assert bool(atomics) == bool(re.search(r"\dAcrossE", name)), (name, atomics)
        assert all(atomic.endswith(".add.u64") for atomic in atomics), atomics
        assert not re.search(r"\.local\.|\.f32|\.f64", code), name
