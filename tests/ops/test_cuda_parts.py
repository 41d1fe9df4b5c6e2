"""benchmarks/cuda_parts.py: how a profiler's kernels become a table. No device is needed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
COLUMNS = (
    "void flowers_bench::run_blocks<flowers_bench::Columns<__half> >(flowers_bench::Columns<__half>::Params, long)"
)
GATHER = "void flowers_bench::run_blocks<flowers_bench::Gather<float> >(flowers_bench::Gather<float>::Params, long)"


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    import cuda_parts

    yield cuda_parts
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (COLUMNS, "Columns"),
        (GATHER, "Gather"),
        (
            "void vision::ops::(anonymous namespace)::deformable_im2col_kernel<float, int>(int)",
            "deformable_im2col_kernel",
        ),
        ("ampere_fp16_s16816gemm_fp16_128x64_tn", "ampere_fp16_s16816gemm_fp16_128x64_tn"),
        ("Memset (Device)", "Memset"),
    ],
)
def test_a_kernels_name_is_short(parts: ModuleType, name: str, short: str) -> None:
    assert parts.short_name(name) == short


def test_launches_of_a_call_are_summed_and_the_fastest_call_counts(parts: ModuleType) -> None:
    times = [(COLUMNS, 5.0), (COLUMNS, 4.0), (GATHER, 7.0), (COLUMNS, 3.0), (COLUMNS, 4.5), (GATHER, 6.0)]
    launches = [parts.Launch(name, time) for name, time in times]
    assert parts.kernels_of(launches, calls=2) == {"Columns": (2.0, 7.5), "Gather": (1.0, 6.0)}
