"""Finds, compiles and loads the kernels; knows how setup.py builds them too.

A library built at install time (`flowers_bench/_C*.so`) is used where there is one: it has the kernels of every instruction
set of its architecture. Otherwise the first call compiles csrc/deform_conv for this machine's alone, and without float64, into the user's
cache, once for each source, torch, compiler and instruction set; the first call with float64 on a CPU compiles that, and the first image
that is drawn by parameters csrc/draw. Where that is impossible, the op runs on its PyTorch reference and says so once. docs/kernel.md
weighs the choices.

Nothing but the standard library is imported at the top: setup.py loads this file by its path.
"""

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

KERNEL_VARIABLE = "FLOWERS_BENCH_KERNEL"  # reference | one of INSTRUCTION_SETS: what to use instead of the best
CUDA_VARIABLE = "FLOWERS_BENCH_CUDA"  # 0 | 1: build the CUDA kernel never, or always
CACHE_VARIABLE = "FLOWERS_BENCH_CACHE"  # where the compiled library is kept

# libtorch's stable ABI as of 2.10, and no Python: one library serves every later torch and every CPython.
DEFINES = ("-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030a0000")
# Comparisons may be evaluated without regard to floating-point exceptions, which nobody reads; results are unchanged.
CXX_FLAGS = (*DEFINES, "-O3", "-ffp-contract=fast", "-fno-trapping-math", "-fno-math-errno", "-fvisibility=hidden")
NVCC_FLAGS = (*DEFINES, "-O3", "-DUSE_CUDA", "--expt-relaxed-constexpr", "--threads=0")
# From Turing to Blackwell; the last is also kept as PTX for what comes after it. Set always: torch would otherwise
# ask a GPU that the building machine may not have.
CUDA_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
SUFFIXES = (".h", ".inl", ".cpp", ".cu", ".cuh")  # of what is compiled or included; csrc/ holds pages and pictures too
#: What is compiled on first use: all but float64, which few need, and float64 when it is asked for. By what that takes on two
#: slow cores, in seconds, for the message; with CUDA much longer.
FIRST, DOUBLE = 1, 2
#: Another operator, a small library of its own: most trials draw images, and few convolve deformably.
DRAW = 3
_SECONDS = {FIRST: 20, DOUBLE: 12, DRAW: 3}
_WHAT = {
    FIRST: "the deformable-convolution kernel",
    DOUBLE: "the deformable-convolution kernel for float64",
    DRAW: "the operator that draws images",
}
#: As the kernel's operator `instruction_set` counts them. Those of bfloat16 ("avx512bf16", "avx512amx", "neonbf16") are compiled
#: with the set before them, and chosen at run time.
INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512bf16", "avx512amx", "neon", "neonbf16")
#: What is compiled alone, by architecture, from the plainest.
COMPILED_FOR = {"x86_64": ("generic", "avx2", "avx512"), "aarch64": ("generic", "neon")}
COMPILED = ("generic", "avx2", "avx512", "neon")
#: What multiplies bfloat16 on x86, as its files end; a processor with AVX-512 may have neither.
FOR_BFLOAT16 = ("bf16", "amx")


def source_root() -> Path:
    """Find the folder `csrc`: inside the installed package, or at the top of the repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "csrc"
    return installed if installed.is_dir() else package.parents[1] / "csrc"


def dependencies(cuda: bool, part: int | None = None) -> list[Path]:
    """List every file that the library, or a `part` of it, is made of: what is compiled, and what that includes."""
    folders = {None: [""], DRAW: ["cuda", "draw"]}.get(part, ["cuda", "deform_conv"])
    found = sorted(path for name in folders for path in (source_root() / name).rglob("*") if path.suffix in SUFFIXES)
    return [path for path in found if cuda or path.parent.name != "cuda"]


def sources(cuda: bool, only: str | None = None, part: int | None = None, without: tuple[str, ...] = ()) -> list[Path]:
    """List the files to compile: those of every instruction set, or of `only` one; of everything, or of `part` of it; but those
    `without` which this processor does."""
    drawing = [*sorted((source_root() / "draw/cpu").glob("*.cpp")), *_cuda_sources("draw", cuda)]
    if part == DRAW:
        return drawing
    kernel = source_root() / "deform_conv"
    unused = tuple(f"kernel_{name}" for name in COMPILED if only not in (None, name))
    found = [path for path in sorted((kernel / "cpu").glob("*.cpp")) if not path.stem.startswith(unused)]
    left_out = tuple(f"_{name}" for name in (FOR_BFLOAT16 if part == DOUBLE else without))
    found = [path for path in found if not path.stem.endswith(left_out)]
    others = [] if part else drawing
    return [kernel / "binding.cpp", *found, *_cuda_sources("deform_conv", cuda), *others]


def _cuda_sources(operator: str, cuda: bool) -> list[Path]:
    return sorted((source_root() / operator / "cuda").glob("*.cu")) if cuda else []


def cuda_home() -> Path | None:
    """Find the CUDA toolkit's own folder, which holds bin/nvcc and include/; None if there is none.

    A wrapper script named nvcc on PATH would mislead torch, so that the headers are looked for too.
    """
    candidates = [Path(value) for name in ("CUDA_HOME", "CUDA_PATH") if (value := os.environ.get(name))]
    if nvcc := shutil.which("nvcc"):
        candidates.append(Path(nvcc).resolve().parents[1])
    candidates += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for home in candidates:
        if (home / "bin" / "nvcc").is_file() and (home / "include" / "cuda_runtime.h").is_file():
            return home.resolve()
    return None


def wants_cuda(otherwise: bool) -> bool:
    """Say whether to build the CUDA kernel: as the environment says, else `otherwise`; never without a toolkit."""
    asked = os.environ.get(CUDA_VARIABLE, "")
    wanted = asked == "1" if asked in ("0", "1") else otherwise
    return wanted and cuda_home() is not None and bool(list((source_root() / "deform_conv/cuda").glob("*.cu")))


def architecture() -> str:
    """Name this machine's architecture as Linux does: "x86_64", "aarch64" or another."""
    machine = platform.machine()
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def instruction_set() -> str:
    """Choose the instruction set to compile for, one of COMPILED: what the environment asks for where this processor has it,
    else its best, as torch tells."""
    import torch

    has = COMPILED_FOR.get(architecture(), ("generic",))
    if architecture() == "x86_64":
        best = {"AVX2": "avx2", "AVX512": "avx512"}.get(torch.backends.cpu.get_cpu_capability(), "generic")
        has = has[: has.index(best) + 1]
    asked = os.environ.get(KERNEL_VARIABLE, "")
    return asked if asked in has else has[-1]


def lacking() -> tuple[str, ...]:
    """Name what of FOR_BFLOAT16 this processor does not have, where torch tells: nothing is compiled for it."""
    import torch

    tell = getattr(torch.cpu, "get_capabilities", dict)  # since torch 2.11
    has: Mapping[str, object] = tell() if architecture() == "x86_64" else {}
    features = {"bf16": "avx512_bf16", "amx": "amx_bf16"}
    return tuple(name for name in FOR_BFLOAT16 if has.get(features[name]) is False)


def kernel() -> str:
    """Say what computes `deform_conv2d` here.

    "cpu-" and one of INSTRUCTION_SETS ("cpu-avx2", "cpu-neon"), with "+cuda" where the CUDA kernel is there too, followed by
    "+columns", "+general" or "+torchvision" for what has computed on a GPU in this process (docs/kernel.md); or "reference",
    the slow PyTorch composite, where nothing could be compiled or FLOWERS_BENCH_KERNEL=reference asks for it.
    Compiles the kernel if that has not been done yet.
    """
    if not _load():
        return "reference"
    import torch

    from flowers_bench.ops import _cuda

    instructions = INSTRUCTION_SETS[torch.ops.flowers_bench_kernel.instruction_set()]
    ways = "".join(f"+{name}" for name in sorted(way.value for way in _cuda.used))
    return f"cpu-{instructions}" + (f"+cuda{ways}" if has_kernel("cuda") else "")


_in_use = False


def use() -> None:
    """Note that this process computes deformable convolutions."""
    global _in_use
    _in_use = True


def in_use() -> bool:
    """Say whether this process has made a module that convolves deformably, or called the operator."""
    return _in_use


def operators(device: str, dtype: "torch.dtype") -> Any:
    """Give the compiled operators, a namespace of torch.ops, for tensors on this device type and of this type; None where
    there are none. Compiles and loads first what has not been."""
    import torch

    use()
    if not has_kernel(device):
        return None
    if dtype == torch.float64 and device == "cpu" and not _has_double():
        return torch.ops.flowers_bench_kernel_double if _load_double() else None
    return torch.ops.flowers_bench_kernel


@cache
def _has_double() -> bool:
    import torch

    return bool(torch.ops.flowers_bench_kernel.has_double())


@cache
def _load_double() -> bool:
    """Load the library for float64 on a CPU; compile it if it is not there."""
    return _load_part(DOUBLE, "kernel for float64", "it takes the slow PyTorch path for deformable convolution")


def draw_operators(device: str) -> Any:
    """Give the compiled operator `draw`, in its namespace of torch.ops, for images on this device type ("cpu" or "cuda"); None where
    there is none. Compiles and loads it first."""
    import torch

    if not _load_draw():
        return None
    found = torch._C._dispatch_has_kernel_for_dispatch_key("flowers_bench_draw::draw", device.upper())
    return torch.ops.flowers_bench_draw if found else None


@cache
def _load_draw() -> bool:
    """Load the operator that draws; compile it if it is not there, for CUDA too where that is possible."""
    import torch

    if os.environ.get(KERNEL_VARIABLE) == "reference":
        return False
    if _prebuilt():  # it has this operator too, and a second library must not have it again
        _load()
    if hasattr(torch.ops.flowers_bench_draw, "draw"):
        return True
    if wants_cuda(torch.cuda.is_available()) and _load_part(
        DRAW, "CUDA kernel that draws images", "they are drawn on the processor", cuda=True
    ):
        return True
    return _load_part(DRAW, "operator that draws images", "PyTorch's draw the same, more slowly")


def _load_part(part: int, what: str, otherwise: str, cuda: bool = False) -> bool:
    """Load the library of a part alone; compile it if it is not there. Where that is impossible, say so, and what happens
    `otherwise`."""
    import torch

    try:
        compiler = _compiler()
        if compiler is None:
            raise RuntimeError("no C++ compiler found")
        torch.ops.load_library(str(_in_cache(compiler, cuda, part)))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _say(f"no compiled {what} ({_reason(error)}); {otherwise}")
        return False
    return True


@cache
def has_kernel(device: str) -> bool:
    """Say whether a compiled kernel covers this device type ("cpu" or "cuda"); loads or compiles it first."""
    if not _load():
        return False
    import torch

    return torch._C._dispatch_has_kernel_for_dispatch_key("flowers_bench_kernel::forward", device.upper())


@cache
def _load() -> bool:
    if os.environ.get(KERNEL_VARIABLE) == "reference":
        return False
    try:
        _load_best()
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        _say(f"no compiled kernel ({_reason(error)}); using the slow PyTorch path for deformable convolution")
        return False
    _say_if_not_as_asked()
    return True


def _say_if_not_as_asked() -> None:
    """Say which instructions run where the environment asks for others, which are not here."""
    import torch

    asked, runs = (
        os.environ.get(KERNEL_VARIABLE, ""),
        INSTRUCTION_SETS[torch.ops.flowers_bench_kernel.instruction_set()],
    )
    if asked and asked != runs:
        choices = "reference, " + ", ".join(INSTRUCTION_SETS[: INSTRUCTION_SETS.index(runs) + 1])
        _say(f"{KERNEL_VARIABLE}={asked} is not available here; {runs} runs. Up to it there are: {choices}")


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _say(message: str) -> None:
    print(f"flowers-bench: {message}", file=sys.stderr, flush=True)


def _prebuilt() -> Path | None:
    found = sorted(Path(__file__).resolve().parents[1].glob("_C*.so"))
    return found[0] if found else None


def _load_best() -> None:
    """Load the library that was built at install time, or the one in the user's cache, which is compiled first if it is
    not there.

    A library from install time that has no CUDA part, as in a released wheel, gives way where one can be compiled. Where
    that does not compile or load, say so and do without it.
    """
    import torch

    library, compiler = _prebuilt(), _compiler()
    complete = library is not None and library.name.startswith("_C_cuda.")
    if compiler and not complete and wants_cuda(torch.cuda.is_available()):
        try:
            torch.ops.load_library(str(_in_cache(compiler, cuda=True)))
            return
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            _say(
                f"no CUDA kernel ({_reason(error)}); tensors on a GPU take the slow PyTorch path for deformable convolution"
            )
    if library:
        torch.ops.load_library(str(library))
    elif compiler:
        torch.ops.load_library(str(_in_cache(compiler, cuda=False)))
    else:
        raise RuntimeError("no C++ compiler found")


def _compiler() -> str | None:
    asked = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    return asked if asked and shutil.which(asked) else None


def _in_cache(compiler: str, cuda: bool, part: int = FIRST) -> Path:
    from filelock import FileLock

    folder = _cache_folder() / _key(compiler, cuda, part)
    library = folder / "kernel.so"
    if library.is_file():
        return library
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # a process that waited here finds the other's library
        if not library.is_file():
            if (failed := folder / "failed").is_file():
                raise RuntimeError(
                    f"the compiler failed before, see {folder / 'build.log'}; remove {failed} to try again"
                )
            seconds = _SECONDS[part] * (7 if cuda else 1)
            _say(f"compiling {_WHAT[part]} (once, about {seconds} s) ...")
            try:
                _compile(compiler, cuda, part, library)
            except RuntimeError:
                failed.touch()
                raise
    return library


def _cache_folder() -> Path:
    from platformdirs import user_cache_path

    asked = os.environ.get(CACHE_VARIABLE)
    return Path(asked) if asked else user_cache_path("flowers-bench") / "kernel"


def _key(compiler: str, cuda: bool, part: int = FIRST) -> str:
    """Name a build by a hash of everything that its result depends on."""
    import torch

    digest = hashlib.sha256()
    root = source_root()
    for path in dependencies(cuda, part):
        digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    home = cuda_home() if cuda else None
    for program in [compiler, *([str(home / "bin" / "nvcc")] if home else [])]:
        digest.update(subprocess.run([program, "--version"], capture_output=True, check=True).stdout)
    nvcc = home and (NVCC_FLAGS, _architecture_flags(), home)
    facts = (torch.__version__, sys.implementation.cache_tag, CXX_FLAGS, nvcc, instruction_set(), lacking(), part)
    digest.update(repr(facts).encode())
    return f"torch{torch.__version__}-{digest.hexdigest()[:16]}"


def _compile(compiler: str, cuda: bool, part: int, library: Path) -> None:
    """Compile with ninja in a folder of its own, then move the library to its place in one step."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as folder:
        plan = Path(folder) / "build.ninja"
        plan.write_text(_ninja_plan(compiler, cuda, part))
        done = subprocess.run([_ninja(), "-f", plan.name], cwd=folder, capture_output=True, text=True)
        log = library.parent / "build.log"
        log.write_text(done.stdout + done.stderr)
        if done.returncode:
            raise RuntimeError(f"the compiler failed, see {log}")
        os.replace(Path(folder) / "kernel.so", library)


def _ninja() -> str:
    try:
        from ninja import BIN_DIR
    except ImportError:
        return "ninja"
    return str(Path(BIN_DIR) / "ninja")


def _ninja_plan(compiler: str, cuda: bool, part: int) -> str:
    import torch

    root, only, without = Path(torch.__file__).resolve().parent, instruction_set(), lacking()
    includes = f"-isystem {_escape(root / 'include')}"
    defined = "".join(f"-DFB_WITHOUT_{name.upper()} " for name in without)
    libraries = f"-L{_escape(root / 'lib')} -ltorch_cpu -ltorch -lc10"
    rules = [
        f"cxx = {_escape(compiler)}",
        f"flags = {' '.join(CXX_FLAGS)} -DFB_ONLY={INSTRUCTION_SETS.index(only)} -DFB_PART={part} {defined}{includes} -std=c++20 -fPIC",
        "rule cxx\n  command = $cxx $flags -c $in -o $out",
    ]
    if home := cuda_home() if cuda else None:
        flags = " ".join((*NVCC_FLAGS, *_architecture_flags()))
        rules[1] += f" -DUSE_CUDA -isystem {_escape(home / 'include')}"
        libraries += f" -ltorch_cuda -lc10_cuda -L{_escape(home / 'lib64')} -lcudart"
        rules += [
            f"nvcc = {_escape(home / 'bin' / 'nvcc')}",
            f"nvflags = {flags} {includes} -ccbin {_escape(compiler)} -std=c++20 -Xcompiler -fPIC",
            "rule nvcc\n  command = $nvcc $nvflags -c $in -o $out",
        ]
    rules.append(f"rule link\n  command = $cxx -shared -o $out $in {libraries}")
    objects = []
    for path in sources(cuda, only, part, without):
        objects.append(f"{path.stem}{path.suffix.replace('.', '-')}.o")
        rules.append(f"build {objects[-1]}: {'nvcc' if path.suffix == '.cu' else 'cxx'} {_escape(path)}")
    return "\n".join([*rules, f"build kernel.so: link {' '.join(objects)}", ""])


def _escape(path: str | Path) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _architecture_flags() -> list[str]:
    """Give nvcc's -gencode flags for TORCH_CUDA_ARCH_LIST, or for every architecture that we support."""
    flags = []
    for name in os.environ.get("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES).replace(" ", ";").split(";"):
        number = name.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if name.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags
