"""Checks an installed wheel where nothing can be compiled: `python .ci/check_wheel.py`, in the environment that it is in.

Each instruction set that the wheel has kernels of is asked for in a process of its own, whose PATH is an empty folder. What
the processor has must then be used; forward and backward are compared with the PyTorch path in float64.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CODE = """
import torch
from flowers_bench.ops import deform_conv2d, kernel
from flowers_bench.ops._reference import deform_conv2d_reference

torch.manual_seed(0)
shapes = {"input": (2, 64, 9, 8), "offset": (2, 18, 9, 8), "weight": (32, 64, 3, 3), "bias": (32,), "mask": (2, 9, 9, 8)}
given = [torch.randn(shape, dtype=torch.float64) for shape in shapes.values()]
exact = [value.clone().requires_grad_() for value in given]
want = deform_conv2d_reference(*exact, (1, 1), (1, 1), (1, 1))
grad = torch.randn_like(want)
wanted = [want, *torch.autograd.grad(want, exact, grad)]
for dtype, allowed in ((torch.float64, 1e-12), (torch.float32, 1e-4), (torch.bfloat16, 5e-2)):
    tensors = [value.to(dtype).requires_grad_() for value in given]
    if dtype == torch.bfloat16:  # the same rounded numbers for both
        exact = [value.detach().double().requires_grad_() for value in tensors]
        want = deform_conv2d_reference(*exact, (1, 1), (1, 1), (1, 1))
        wanted = [want, *torch.autograd.grad(want, exact, grad.to(dtype).double())]
    input, offset, weight, bias, mask = tensors
    out = deform_conv2d(input, offset, weight, bias, padding=1, mask=mask)
    found = [out, *torch.autograd.grad(out, tensors, grad.to(dtype))]
    for name, got, right in zip(("out", *shapes), found, wanted):
        difference = ((got.double() - right).norm() / right.norm()).item()
        assert difference <= allowed, f"{dtype} {name}: a difference of {difference:.2g}, of which {allowed} are allowed"
print(kernel())
"""


def library() -> Path:
    """Find the compiled library beside the installed package, or end with what is wrong."""
    import flowers_bench
    from flowers_bench.ops import _build

    package = Path(flowers_bench.__file__).parent
    found = _build._prebuilt()
    if found is None:
        sys.exit(f"{package} has no compiled library (_C*.so): build the wheel with FLOWERS_BENCH_COMPILE=1")
    if ".abi3." not in found.name:
        sys.exit(f"{found.name} is for one Python alone; setup.py asks for the limited API (py_limited_api)")
    return found


def run(asked: str, folder: str) -> str:
    """Compute with what is asked for, and name what was used; end where that fails or compiles anything."""
    cache = Path(folder) / "cache"
    env = {name: value for name, value in os.environ.items() if name not in ("CXX", "CUDA_HOME", "CUDA_PATH")}
    env |= {"PATH": folder, "FLOWERS_BENCH_KERNEL": asked, "FLOWERS_BENCH_CACHE": str(cache)}
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, env=env, cwd=folder, check=False
    )
    if done.returncode:
        sys.exit(f"with FLOWERS_BENCH_KERNEL={asked}:\n{done.stderr}")
    if cache.exists():
        sys.exit(f"with FLOWERS_BENCH_KERNEL={asked}, something was compiled: {list(cache.iterdir())}")
    return done.stdout.strip()


def main() -> None:
    """Check every instruction set of this architecture, and print what ran."""
    print(library())
    from flowers_bench.ops import _build

    compiled = _build.COMPILED_FOR.get(_build.architecture(), ("generic",))
    names = [name for name in _build.INSTRUCTION_SETS if name.startswith(compiled)]
    with tempfile.TemporaryDirectory() as folder:
        ran = {name: run(name, folder).removesuffix("+cuda") for name in names}
        best = run("", folder)
    for name, used in ran.items():
        print(f"{name}: {'computes' if used == f'cpu-{name}' else f'not on this processor, {used} computes'}")
        if used.removeprefix("cpu-") not in names[: names.index(name) + 1]:
            sys.exit(f"FLOWERS_BENCH_KERNEL={name} ran {used}, which is no lesser one")
    print(f"by itself: {best}")


main()
