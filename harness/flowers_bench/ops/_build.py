"""Where the kernels come from: prebuilt in the wheel, compiled once on first use, or not at all.

The compiled library lies in the user's cache under a name made of the sources, the flags, torch's version and the
processor's architecture, so that nothing stale is ever loaded. Without a compiler the PyTorch reference computes the
same function, slowly; that is said once on stderr and stands in every stored result.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
import platform
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from filelock import FileLock
from platformdirs import user_cache_path

_NAME = "flowers_bench_kernel"
#: torch 2.10 is the oldest whose stable ABI has what the kernels use.
_FLAGS = ["-O3", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
_INSTRUCTION_SETS = ("generic", "avx2", "avx512")


def has_kernel(device: str) -> bool:
    """Whether a compiled kernel covers this device type (`cpu` or `cuda`)."""
    if not _loaded():
        return False
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAME}::forward", key)


def kernel() -> str:
    """What computes the op here: `cpu-avx512`, `cpu-avx2` or `cpu-generic`, with `+cuda` where that is built, or
    `reference`. Compiles the kernels if that has not happened yet."""
    if not _loaded():
        return "reference"
    name = f"cpu-{_INSTRUCTION_SETS[torch.ops.flowers_bench_kernel.instruction_set()]}"
    return f"{name}+cuda" if has_kernel("cuda") else name


@functools.cache
def _loaded() -> bool:
    if os.environ.get("FLOWERS_BENCH_KERNEL") == "reference":
        return False
    try:
        torch.ops.load_library(_prebuilt() or _compiled())
    except Exception as error:  # no compiler, a broken one, a cache that cannot be written, a library that does not load
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]
        sys.stderr.write(
            f"flowers-bench: the deformable-convolution kernel is not available ({reason}); "
            "using the slow PyTorch reference. A C++17 compiler (apt install g++) mends it.\n"
        )
        return False
    return True


def _prebuilt() -> str | None:
    """The extension that a wheel built with torch at hand contains."""
    found = importlib.util.find_spec("flowers_bench._C")
    return found.origin if found else None


def _compiled() -> str:
    """Path of the library compiled on this machine, compiling it if it is not in the cache."""
    sources = _sources()
    folder = user_cache_path("flowers-bench") / "kernel" / _key(sources)
    library = folder / f"{_NAME}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):
            if not library.is_file():
                _compile(sources, library)
    return str(library)


def with_cuda() -> bool:
    """CUDA is compiled where there is a device, or where FLOWERS_BENCH_CUDA=1 asks for it."""
    asked = os.environ.get("FLOWERS_BENCH_CUDA", "")
    return asked == "1" or (asked != "0" and torch.cuda.is_available())


def _sources() -> list[Path]:
    spec = importlib.util.find_spec("flowers_bench.csrc")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the kernel sources (flowers_bench/csrc) are not installed")
    root = Path(spec.submodule_search_locations[0]) / "deform_conv"
    return sorted(p for p in root.rglob("*") if p.suffix == ".cpp" or (p.suffix == ".cu" and with_cuda()))


def _key(sources: list[Path]) -> str:
    digest = hashlib.sha256(repr([torch.__version__, platform.machine(), _FLAGS, with_cuda()]).encode())
    for path in sorted({*sources, *(p for s in sources for p in s.parent.glob("*.*") if p.suffix in (".h", ".inl", ".cuh"))}):
        digest.update(path.name.encode() + path.read_bytes())
    for header in sorted(sources[0].parent.glob("*.h")):
        digest.update(header.read_bytes())
    return digest.hexdigest()[:16]


def _compile(sources: list[Path], library: Path) -> None:
    # Importing it warns about a missing CUDA runtime, which here is no news.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    if not any(shutil.which(name) for name in (os.environ.get("CXX", "c++"), "g++", "clang++")):
        raise RuntimeError("no C++ compiler was found")
    sys.stderr.write("flowers-bench: compiling the deformable-convolution kernel, once (about 20 s) ...\n")
    started = time.perf_counter()
    temporary = Path(tempfile.mkdtemp(dir=library.parent))
    try:
        cpp_extension.load(
            _NAME,
            [str(path) for path in sources],
            extra_cflags=_FLAGS,
            extra_cuda_cflags=["-O3", "-DTORCH_TARGET_VERSION=0x020a000000000000"],
            build_directory=str(temporary),
            is_python_module=False,
            with_cuda=with_cuda(),
        )
        (temporary / f"{_NAME}.so").replace(library)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    sys.stderr.write(f"flowers-bench: compiled in {time.perf_counter() - started:.0f} s\n")
