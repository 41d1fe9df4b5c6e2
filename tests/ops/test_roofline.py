"""docs/roofline.md is what its script writes, and the script counts the kernels that there are."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROBLEM = ROOT / "csrc/deform_conv/cuda/problem.cuh"


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import roofline as module

    yield module
    for name in ("roofline", "cases"):
        sys.modules.pop(name)


def test_the_page_is_what_the_script_writes(roofline: ModuleType) -> None:
    assert (ROOT / "docs/roofline.md").read_text() == roofline.page()


def test_the_script_counts_the_kernels_own_tiles(roofline: ModuleType) -> None:
    assert re.search(r"kTile = (\d+);", PROBLEM.read_text())[1] == str(roofline.TILE)


def test_a_shape_counted_by_hand(roofline: ModuleType) -> None:
    """Stage 1, batch 32, float32: 64 channels, 100,352 positions."""
    work = roofline.forward(1, 32, 4)
    assert work.product == 2 * 100_352 * 9 * 64 * 64
    assert work.minimum == 4 * (2 * 64 * 100_352 + 27 * 100_352 + 9 * 64 * 64)
    assert round(work.columns / work.minimum, 1) == 8.4
    assert roofline.backward(1, 32, 4).atomics == 4 * 4 * 9 * 64 * 100_352


def test_the_peaks_bound_the_time(roofline: ModuleType) -> None:
    gpu = roofline.Gpu("toy", half=100.0, single=10.0, memory=1.0)
    assert roofline.Work(1000, 10, 5, 9, 0).seconds(gpu, "float16") == (10.0, "product")
    assert roofline.Work(1000, 200, 5, 9, 0).seconds(gpu, "float16") == (20.0, "sampling")
    assert roofline.Work(1000, 200, 5, 9, 0).seconds(gpu, "float32") == (120.0, "product")
    assert roofline.Work(10, 10, 50, 90, 0).seconds(gpu, "float32") == (50.0, "memory")
