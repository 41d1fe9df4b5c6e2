"""How the kernel comes to a machine: the cache, two processes at once, no compiler, other instruction sets."""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flowers_bench.ops import _build, kernel

ROOT = Path(__file__).resolve().parents[2]
CHECK = Path(__file__).with_name("test_against_references.py")
compiled = pytest.mark.skipif(kernel() == "reference", reason="there is no compiled kernel here")


def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **environment}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=env, check=False
    )


COMPUTE = """
import torch
from flowers_bench.ops import deform_conv2d, kernel
from flowers_bench.ops import _build
_build._prebuilt = lambda: None
out = deform_conv2d(torch.ones(1, 2, 4, 4), torch.zeros(1, 18, 4, 4), torch.ones(1, 2, 3, 3), padding=1)
print(kernel(), int(out.sum()))
"""


def test_importing_the_package_imports_no_torch_and_ops_compiles_nothing(tmp_path: Path) -> None:
    assert run("import sys, flowers_bench; sys.exit('torch' in sys.modules)").returncode == 0
    done = run("import flowers_bench.ops", FLOWERS_BENCH_CACHE=str(tmp_path))
    assert done.returncode == 0
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_the_reference_runs_and_says_so_once(tmp_path: Path) -> None:
    done = run(COMPUTE, PATH=str(tmp_path), CXX="", FLOWERS_BENCH_CACHE=str(tmp_path / "cache"))
    assert done.stdout.split() == ["reference", "200"], done.stderr
    assert done.stderr.count("flowers-bench: no compiled kernel (no C++ compiler found)") == 1


def test_a_failing_compiler_leaves_its_words_and_the_reference(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\n[ \"$1\" = --version ] && echo broken 1.0 || { echo 'no such flag' >&2; exit 1; }\n"
    )
    compiler.chmod(0o755)
    done = run(COMPUTE, CXX=str(compiler), FLOWERS_BENCH_CACHE=str(tmp_path / "cache"))
    assert done.stdout.split() == ["reference", "200"], done.stderr
    (log,) = (tmp_path / "cache").glob("*/build.log")
    assert "no such flag" in log.read_text()
    assert str(log) in done.stderr
    assert not list((tmp_path / "cache").glob("*/kernel.so"))
    again = run(COMPUTE, CXX=str(compiler), FLOWERS_BENCH_CACHE=str(tmp_path / "cache"))
    assert "failed before" in again.stderr, "every process would wait for the same failure"


@pytest.mark.parametrize("broken", ["compiler", "library"])
def test_where_the_cuda_part_does_not_compile_or_load_the_rest_does(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    load_library, loaded = torch.ops.load_library, []

    def compile_(compiler: str, cuda: bool, part: int, library: Path) -> None:
        if cuda and broken == "compiler":
            raise RuntimeError("the compiler failed, see some log")
        library.write_text("no library" if cuda else "the CPU's")

    def load(path: str) -> None:
        loaded.append(Path(path).read_text())
        if loaded[-1] == "no library":
            load_library(path)

    monkeypatch.setenv(_build.CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(_build, "_prebuilt", lambda: None)
    monkeypatch.setattr(_build, "wants_cuda", lambda otherwise: True)
    monkeypatch.setattr(_build, "_compile", compile_)
    monkeypatch.setattr(torch.ops, "load_library", load)
    _build._load_best()
    assert loaded[-1] == "the CPU's"
    why = {"compiler": "the compiler failed, see some log", "library": "Could not load this library"}[broken]
    assert re.search(rf"no CUDA kernel \(.*{why}", capsys.readouterr().err)


def test_the_environment_can_ask_for_the_reference() -> None:
    done = run(COMPUTE, FLOWERS_BENCH_KERNEL="reference")
    assert (done.stdout.split(), done.stderr) == (["reference", "200"], "")


@compiled
def test_instructions_that_are_not_there_are_not_replaced_in_silence() -> None:
    done = run(COMPUTE, FLOWERS_BENCH_KERNEL="avx9")
    name, total = done.stdout.split()
    assert (name.split("+")[0], total) == (kernel().split("+")[0], "200")
    runs = name.removeprefix("cpu-").split("+")[0]
    assert f"FLOWERS_BENCH_KERNEL=avx9 is not available here; {runs} runs" in done.stderr
    assert f"reference, generic{'' if runs == 'generic' else ', avx2'}" in done.stderr


@compiled
@pytest.mark.timeout(900)  # it compiles them first
def test_the_environment_can_ask_for_plain_instructions() -> None:
    """The kernel for any processor passes the tests that the best one here passes."""
    env = {**os.environ, "FLOWERS_BENCH_KERNEL": "generic"}
    selected = ["-k", "torchvisions and not any_shape or half_types or derivatives or wild"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECK), *selected],
        capture_output=True, text=True, env=env, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert run("from flowers_bench.ops import kernel; print(kernel())", **env).stdout.startswith("cpu-generic")


@pytest.mark.parametrize(
    ("machine", "capability", "asked", "expected"),
    [
        ("x86_64", "AVX512", "", "avx512"),
        ("x86_64", "AVX512", "avx2", "avx2"),
        ("x86_64", "AVX512", "avx512bf16", "avx512"),
        ("x86_64", "AVX512", "avx512amx", "avx512"),
        ("x86_64", "AVX2", "", "avx2"),
        ("x86_64", "AVX2", "avx512", "avx2"),
        ("x86_64", "AVX2", "neon", "avx2"),
        ("AMD64", "AVX2", "generic", "generic"),
        ("x86_64", "DEFAULT", "", "generic"),
        ("aarch64", "SVE256", "avx2", "neon"),
        ("aarch64", "DEFAULT", "neonbf16", "neon"),
        ("arm64", "DEFAULT", "", "neon"),
        ("arm64", "DEFAULT", "generic", "generic"),
        ("riscv64", "DEFAULT", "neon", "generic"),
    ],
)
def test_only_this_machines_instructions_are_compiled(
    machine: str, capability: str, asked: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setenv(_build.KERNEL_VARIABLE, asked)
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    assert _build.instruction_set() == expected
    first, double = (_build._ninja_plan("c++", cuda=False, part=part) for part in (_build.FIRST, _build.DOUBLE))
    assert set(re.findall(r"kernel_(\w+)\.cpp", double)) == {expected}
    chosen_at_run_time = {"avx512": {"avx512_bf16", "avx512_amx"}, "neon": {"neon_bf16"}}
    beside = chosen_at_run_time.get(expected, set())
    assert set(re.findall(r"kernel_(\w+)\.cpp", first)) == {expected} | beside
    assert f"-DFB_ONLY={_build.INSTRUCTION_SETS.index(expected)} -DFB_PART=1 " in first
    assert f"-DFB_ONLY={_build.INSTRUCTION_SETS.index(expected)} -DFB_PART=2 " in double


DRAWING = """
import torch
from flowers_bench.data.drawing import compile_operator
from flowers_bench.measure.hardware import kernel_in_use
from flowers_bench.ops import DeformConv2d, deform_conv2d
compile_operator()
print(kernel_in_use())
DeformConv2d(1, 1, 1)
print(kernel_in_use())
"""


def test_a_process_that_only_draws_has_no_kernel_for_convolutions() -> None:
    """A training without any would otherwise compile one at its end, and name it in its result."""
    assert run(DRAWING, **{_build.KERNEL_VARIABLE: "reference"}).stdout.split() == ["None", "reference"]


@pytest.mark.parametrize(
    ("bf16", "amx", "compiled"),
    [(True, True, {"_bf16", "_amx"}), (True, False, {"_bf16"}), (False, False, set())],
)
def test_bfloat16_instructions_that_the_processor_lacks_are_not_compiled(
    bf16: bool, amx: bool, compiled: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    monkeypatch.delenv(_build.KERNEL_VARIABLE, raising=False)
    has = {"avx512_bf16": bf16, "amx_bf16": amx}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    plan = _build._ninja_plan("c++", cuda=False, part=_build.FIRST)
    assert set(re.findall(r"kernel_avx512(\w*)\.cpp", plan)) == {""} | compiled
    assert {f"_{name}" for name in ("bf16", "amx") if f"-DFB_WITHOUT_{name.upper()} " not in plan} == compiled


@pytest.mark.slow
@pytest.mark.skipif(_build.instruction_set() != "avx512", reason="needs AVX-512")
def test_what_is_compiled_without_bfloat16_instructions_widens(tmp_path: Path) -> None:
    """Whatever the processor has: what the library was told that it lacks is never chosen."""
    lacks = "import torch; torch.cpu.get_capabilities = lambda: {'avx512_bf16': False, 'amx_bf16': False}\n"
    script = lacks + ONE_TYPE + "print(_build.kernel())"
    done = run(script, "bfloat16", FLOWERS_BENCH_CACHE=str(tmp_path))
    assert done.stdout.split() == ["torch.bfloat16", "cpu-avx512"], done.stderr


ONE_TYPE = """
import sys, torch
from flowers_bench.ops import _build, deform_conv2d
_build._prebuilt = lambda: None
type = getattr(torch, sys.argv[1])
x, offset, weight = (torch.ones(shape, dtype=type) for shape in ((1, 32, 4, 4), (1, 18, 4, 4), (32, 32, 3, 3)))
print(deform_conv2d(x, offset, weight, padding=1).dtype)
"""


@pytest.mark.slow
def test_what_is_not_called_is_not_compiled(tmp_path: Path) -> None:
    compiled = []
    for name in ("float32", "bfloat16", "float64", "float64"):
        done = run(ONE_TYPE, name, FLOWERS_BENCH_CACHE=str(tmp_path))
        assert done.stdout.split() == [f"torch.{name}"], done.stderr
        compiled.append(len(list(tmp_path.glob("*/kernel.so"))))
    assert compiled == [1, 1, 2, 2]


def test_where_it_does_not_compile_float64_takes_the_reference_and_says_so(tmp_path: Path) -> None:
    compiler = tmp_path / "c++"
    real = shutil.which("g++") or shutil.which("c++") or pytest.skip("no C++ compiler here")
    compiler.write_text(f'#!/bin/sh\ncase "$*" in *FB_PART=2*) exit 1;; esac\nexec {real} "$@"\n')
    compiler.chmod(0o755)
    done = run(ONE_TYPE, "float64", CXX=str(compiler), FLOWERS_BENCH_CACHE=str(tmp_path / "cache"))
    assert done.stdout.split() == ["torch.float64"], done.stderr
    assert done.stderr.count("no compiled kernel for float64 (the compiler failed") == 1


def test_a_wheel_has_the_kernels_of_every_instruction_set() -> None:
    found = {path.stem for path in _build.sources(cuda=False)}
    beside = {"kernel_avx512_bf16", "kernel_avx512_amx", "kernel_neon_bf16"}
    assert found >= {*beside, *(f"kernel_{name}" for name in _build.COMPILED)}
    assert {name for names in _build.COMPILED_FOR.values() for name in names} == set(_build.COMPILED)


@pytest.mark.parametrize(
    ("name", "toolkit", "compiles", "expected"),
    [
        ("_C_cuda.abi3.so", True, True, "the wheel's"),
        ("_C.abi3.so", False, True, "the wheel's"),
        ("_C.abi3.so", True, True, "compiled with CUDA"),
        ("_C.abi3.so", True, False, "the wheel's"),
    ],
)
def test_a_wheels_library_without_cuda_gives_way_to_one_with_it(
    name: str, toolkit: bool, compiles: bool, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def compile_(compiler: str, cuda: bool, part: int, library: Path) -> None:
        if not compiles:
            raise RuntimeError("the compiler failed, see some log")
        library.write_text("compiled with CUDA" if cuda else "compiled without")

    (tmp_path / name).write_text("the wheel's")
    monkeypatch.setenv(_build.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(_build, "_prebuilt", lambda: tmp_path / name)
    monkeypatch.setattr(_build, "wants_cuda", lambda otherwise: toolkit)
    monkeypatch.setattr(_build, "_compile", compile_)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: loaded.append(Path(path).read_text()))
    _build._load_best()
    assert loaded == [expected]


def setup_arguments(monkeypatch: pytest.MonkeyPatch, command: str, compile_: str) -> dict[str, object]:
    """Run setup.py where there is no torch, and give what it tells setuptools."""
    told: dict[str, object] = {}
    monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    monkeypatch.setattr("setuptools.setup", lambda **arguments: told.update(arguments))
    monkeypatch.setenv("FLOWERS_BENCH_COMPILE", compile_)
    runpy.run_path(str(ROOT / "setup.py"))
    return told


def test_a_build_without_torch_compiles_nothing_unless_it_has_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert setup_arguments(monkeypatch, "bdist_wheel", "") == {}
    requirements = setup_arguments(monkeypatch, "egg_info", "1")["setup_requires"]
    assert "torch>=2.10" in requirements  # type: ignore[operator]
    with pytest.raises(SystemExit, match=r"no torch here .* pip install torch"):
        setup_arguments(monkeypatch, "bdist_wheel", "1")


def test_the_key_is_of_the_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler here")
    keys = set()
    for name in ("DEFAULT", "AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda name=name: name)
        keys.add(_build._key(compiler, cuda=False))
    assert len(keys) == 3


def test_the_key_is_of_the_compiler_and_not_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler here")
    other = tmp_path / "c++"
    other.write_text("#!/bin/sh\necho another 1.0\n")
    other.chmod(0o755)
    key = _build._key(compiler, cuda=False)
    assert _build._key(str(other), cuda=False) != key
    shutil.copytree(_build.source_root(), tmp_path / "csrc")
    monkeypatch.setattr(_build, "source_root", lambda: tmp_path / "csrc")
    assert _build._key(compiler, cuda=False) == key


def test_a_cuda_toolkit_is_its_own_folder_not_a_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "nowhere"))
    found = _build.cuda_home()
    assert found is None or found != tmp_path
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert _build.cuda_home() == tmp_path.resolve()
    monkeypatch.setenv("FLOWERS_BENCH_CUDA", "0")
    assert not _build.wants_cuda(otherwise=True)


@pytest.mark.slow
@compiled
def test_two_processes_build_once(tmp_path: Path) -> None:
    env = {**os.environ, "FLOWERS_BENCH_CACHE": str(tmp_path), "FLOWERS_BENCH_CUDA": "0"}
    both = [
        subprocess.Popen([sys.executable, "-c", COMPUTE], env=env, stdout=-1, stderr=-1, text=True) for _ in range(2)
    ]
    results = [process.communicate(timeout=280) for process in both]
    assert all(re.fullmatch(r"cpu-\w+ 200\n", out) for out, _ in results), results
    assert sum("compiling" in error for _, error in results) == 1
    assert len(list(tmp_path.glob("*/kernel.so"))) == 1
    assert not list(tmp_path.glob("*/build-*"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_sanitizers_find_nothing_in_the_whole_op_test_file(tmp_path: Path) -> None:
    """AddressSanitizer and UndefinedBehaviorSanitizer over the kernel, run from Python."""
    compiler = shutil.which("g++") or pytest.skip("needs g++")
    runtime = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    if not all(Path(path).is_file() for path in runtime):
        pytest.skip("the compiler has no sanitizer libraries")
    wrapper = tmp_path / "c++"
    flags = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1"
    wrapper.write_text(f'#!/bin/sh\nexec {compiler} "$@" {flags}\n')
    wrapper.chmod(0o755)
    env = {
        **os.environ, "CXX": str(wrapper), "FLOWERS_BENCH_CACHE": str(tmp_path / "cache"), "FLOWERS_BENCH_CUDA": "0",
        "LD_PRELOAD": " ".join(runtime), "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:timeout", "-o", "addopts=",
         "-o", "timeout_method=", str(CHECK), str(CHECK.with_name("test_citizenship.py")), "-k", "not compiles and not onnx"],
        capture_output=True, text=True, env=env, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "runtime error" not in done.stderr
