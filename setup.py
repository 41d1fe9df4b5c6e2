"""The extension, where torch is at hand at build time (`pip install --no-build-isolation .`, or a wheel's build).

In pip's isolated build environment there is no torch, and nothing is built here: the kernel is compiled on first
use instead (flowers_bench/ops/_build.py). One wheel serves torch >= 2.10 and CPython >= 3.10: libtorch's stable ABI
and Python's limited API.
"""

import os
from pathlib import Path

from setuptools import setup

FLAGS = ["-O3", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000"]
# From Turing on; the last one also as PTX, for what comes after.
ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


def toolkit() -> "str | None":
    """The CUDA toolkit's own folder. nvcc on PATH may be a wrapper from elsewhere, which misleads torch."""
    asked = os.environ.get("FLOWERS_BENCH_CUDA")
    if asked == "0":
        return None
    for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda"):
        if home and (Path(home) / "bin" / "nvcc").is_file() and (Path(home) / "include" / "cuda.h").is_file():
            return home
    if asked == "1":
        raise SystemExit("FLOWERS_BENCH_CUDA=1, but no CUDA toolkit: set CUDA_HOME to the folder that has bin/nvcc.")
    return None


def extension() -> dict:
    """What setup() needs to build the extension, or nothing where it cannot be built."""
    home = toolkit()
    if home:
        os.environ["CUDA_HOME"] = home
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", ARCHITECTURES)
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        return {}
    cuda = home is not None and torch.version.cuda is not None
    sources = [str(p) for p in sorted(Path("csrc/deform_conv").rglob("*.cpp"))]
    if cuda:
        sources += [str(p) for p in sorted(Path("csrc/deform_conv").rglob("*.cu"))]
    kind = cpp_extension.CUDAExtension if cuda and any(s.endswith(".cu") for s in sources) else cpp_extension.CppExtension
    flags = {"cxx": FLAGS, "nvcc": ["-O3", "-DTORCH_TARGET_VERSION=0x020a000000000000"]}
    module = kind("flowers_bench._C", sources, extra_compile_args=flags, py_limited_api=True)
    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension())
