"""The CPU kernels without torch, against direct sums in float64: here, and for 64-bit ARM under qemu-user.

drive_kernels.cpp is the program; it is compiled with the kernels' own sources and flags, whose table it calls as op.cpp does.
For ARM that takes a cross compiler and an emulator: `apt install g++-aarch64-linux-gnu qemu-user`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from flowers_bench.ops import _build

DRIVER = Path(__file__).with_name("drive_kernels.cpp")
KERNEL = _build.source_root() / "deform_conv"
#: As many random shapes as there are fixed ones, about.
SHAPES = "15"
#: A processor without pairs of bfloat16, and one with all there is; what they are asked for, and what they take.
ARM = [
    ("cortex-a72", "", "neon"),
    ("cortex-a72", "neonbf16", "neon"),
    ("max", "", "neonbf16"),
    ("max", "neon", "neon"),
    ("max", "generic", "generic"),
]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def flags() -> list[str]:
    return [*_build.CXX_FLAGS, "-std=c++20", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", f"-I{KERNEL}"]


def compile_one(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr, done.stderr


def program(compiler: str, folder: Path) -> Path:
    """Compile the driver with the kernels of every instruction set, and link it without shared libraries."""
    kernels = [path for path in _build.sources(cuda=False) if path.stem.startswith(("kernel_", "dispatch"))]
    objects = {path: str(folder / f"{path.stem}.o") for path in (*kernels, DRIVER)}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, ([compiler, *flags(), "-c", str(p), "-o", o] for p, o in objects.items())))
    compile_one([compiler, "-static", *objects.values(), "-o", str(folder / "drive")])
    return folder / "drive"


def drive(command: list[str], asked: str) -> str:
    """Run the driver and name the instruction set that it took."""
    env = {**os.environ, _build.KERNEL_VARIABLE: asked}
    done = subprocess.run([*command, SHAPES], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.match(r"instruction set (\d+): (\d+) shapes, (\d+) of them", done.stdout)
    assert found, done.stdout
    name = _build.INSTRUCTION_SETS[int(found[1])]
    assert (int(found[3]) > 0) == name.endswith(("bf16", "amx")), done.stdout
    return name


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    return program(compiler or pytest.skip("no C++ compiler here"), tmp_path_factory.mktemp("here"))


@pytest.fixture(scope="module")
def cross_compiler() -> str:
    return shutil.which("aarch64-linux-gnu-g++") or pytest.skip("no compiler for 64-bit ARM (g++-aarch64-linux-gnu)")


@pytest.fixture(scope="module")
def emulator() -> str:
    found = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
    return found or pytest.skip("no emulator of 64-bit ARM (qemu-user)")


@pytest.fixture(scope="module")
def for_arm(cross_compiler: str, emulator: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return program(cross_compiler, tmp_path_factory.mktemp("arm"))


@pytest.mark.parametrize("name", _build.INSTRUCTION_SETS)
def test_each_instruction_set_here_differs_from_float64_by_roundings_alone(name: str, here: Path) -> None:
    took = drive([str(here)], name)
    if took != name:
        pytest.skip(f"this processor has no {name}; {took} passed in its stead")


@pytest.mark.parametrize(("processor", "asked", "expected"), ARM, ids=lambda word: word or "best")
def test_each_instruction_set_of_arm_does_so_emulated(
    processor: str, asked: str, expected: str, emulator: str, for_arm: Path
) -> None:
    assert drive([emulator, "-cpu", processor, str(for_arm)], asked) == expected


@pytest.mark.parametrize("only", _build.COMPILED_FOR["aarch64"])
def test_what_is_compiled_on_first_use_on_arm_links_and_runs(
    only: str, cross_compiler: str, emulator: str, for_arm: Path, tmp_path: Path
) -> None:
    """One instruction set's kernels alone, as `_build` compiles them there."""
    dispatch = str(tmp_path / "dispatch_arm.o")
    number = _build.INSTRUCTION_SETS.index(only)
    source = str(KERNEL / "cpu" / "dispatch_arm.cpp")
    compile_one([cross_compiler, *flags(), f"-DFB_ONLY={number}", "-c", source, "-o", dispatch])
    chosen = [path.stem for path in _build.sources(cuda=False, only=only) if path.stem.startswith("kernel_")]
    assert f"kernel_{only}" in chosen
    objects = [str(for_arm.parent / f"{stem}.o") for stem in (*chosen, DRIVER.stem)]
    compile_one([cross_compiler, "-static", *objects, dispatch, "-o", str(tmp_path / "drive")])
    assert drive([emulator, "-cpu", "cortex-a72", str(tmp_path / "drive")], "") == only


@pytest.mark.parametrize("name", ["cpu/op.cpp", "binding.cpp"])
def test_the_operators_compile_for_arm(name: str, cross_compiler: str) -> None:
    headers = Path(torch.__file__).parent / "include"
    compile_one([cross_compiler, *flags(), "-isystem", str(headers), "-fsyntax-only", str(KERNEL / name)])


def loops(assembly: str) -> Iterator[list[str]]:
    """Give the instructions of each innermost loop of one function, as objdump prints it."""
    code = re.findall(r"^ *([0-9a-f]+):\s+(\S.*)$", assembly, re.MULTILINE)
    places = {address: i for i, (address, _) in enumerate(code)}
    ends = [(places.get(found[1], i + 1), i) for i, (_, text) in enumerate(code)
            if (found := re.match(r"(?:b\.?\w*|cbn?z|tbn?z)\s.*?\b([0-9a-f]+) <", text))]  # fmt: skip
    back = [(begin, end) for begin, end in ends if begin <= end]
    for begin, end in back:
        texts = [text for _, text in code[begin : end + 1]]
        nested = any(begin <= b and e <= end and (b, e) != (begin, end) for b, e in back)
        if not nested and texts[-1].startswith("b.") and "ret" not in texts:  # blocks that lie apart jump back too
            yield texts


@pytest.mark.parametrize("kernel", ["neon", "neon_bf16"])
def test_the_innermost_loops_of_arm_keep_their_sums_in_registers(kernel: str, for_arm: Path) -> None:
    """No load from the stack and no store at all, beside whole vectors of factors."""
    if not (objdump := shutil.which("aarch64-linux-gnu-objdump")):
        pytest.skip("no objdump for 64-bit ARM")
    listing = subprocess.run(
        [objdump, "-d", "--no-show-raw-insn", str(for_arm.parent / f"kernel_{kernel}.o")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    seen = 0
    for function in listing.split("\n\n"):
        if not re.search(r"5micro\w+Li11ELi2E", function.partition("\n")[0]):  # micro<T, 11 rows, 2 vectors, ...>
            continue
        for loop in loops(function):
            products = sum(text.startswith(("fmla", "bfdot")) for text in loop)
            if products < 22:
                continue
            seen += 1
            assert not [text for text in loop if "[sp" in text or "[x29" in text or text.startswith("st")], loop
            assert len(loop) <= 2.2 * products, loop
    assert seen >= 2
