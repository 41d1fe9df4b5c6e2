"""The kernel's build, and nothing else: the rest is in pyproject.toml.

Where torch can be imported (`pip install --no-build-isolation .`), the kernel is compiled now, on libtorch's stable
ABI: one wheel serves torch >= 2.10 and CPython >= 3.10. Elsewhere (`pip install .`, whose isolated environment
would have to download a second torch), nothing is compiled here: the first use does it. FLOWERS_BENCH_COMPILE=1 asks for
a torch in that environment, and for the kernel in any case, as a release does. See docs/kernel.md.
"""

import importlib.util
import os
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent


def load_build():
    spec = importlib.util.spec_from_file_location("_build", ROOT / "harness/flowers_bench/ops/_build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return build


def without_torch():
    """What setup() is told where nothing can be compiled yet, or at all."""
    if os.environ.get("FLOWERS_BENCH_COMPILE") != "1":
        return {}
    if {"bdist_wheel", "editable_wheel"} & set(sys.argv):
        raise SystemExit(
            "FLOWERS_BENCH_COMPILE=1 asks for the compiled kernel, and there is no torch here to compile it with: "
            "pip install torch ninja, or leave --no-build-isolation away"
        )
    return {"setup_requires": ["torch>=2.10", "ninja>=1.11"]}  # pip installs them, and then runs this file again


def extension_arguments():
    try:
        import torch  # noqa: F401
    except ImportError:
        return without_torch()
    build = load_build()
    cuda = build.wants_cuda(otherwise=True)
    if cuda:
        # Before torch reads them: the toolkit itself, not a wrapper on PATH, and no question to a GPU.
        os.environ["CUDA_HOME"] = str(build.cuda_home())
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", build.CUDA_ARCHITECTURES)
    from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension

    define = ["-DUSE_CUDA"] if cuda else []

    def relative(paths):
        return [str(path.relative_to(ROOT)) for path in paths]

    extension = (CUDAExtension if cuda else CppExtension)(
        "flowers_bench._C_cuda" if cuda else "flowers_bench._C",
        relative(build.sources(cuda)),
        depends=relative(build.dependencies(cuda)),
        extra_compile_args={"cxx": [*build.CXX_FLAGS, *define], "nvcc": list(build.NVCC_FLAGS)},
        py_limited_api=True,
    )
    return {
        "ext_modules": [extension],
        "cmdclass": {"build_ext": BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


setup(**extension_arguments())
