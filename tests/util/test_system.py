"""What only some systems tell is asked for in one file, and its absence ends nothing."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flowers_bench.measure.cost import PeakMemory
from flowers_bench.measure.energy import Meter
from flowers_bench.measure.hardware import bfloat16_in_hardware, environment
from flowers_bench.measure.inference import inference_cost
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.plan.threads import side_by_side
from flowers_bench.store.records import Environment
from flowers_bench.store.schema import form_of
from flowers_bench.util import system

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that has nothing of what only Linux has."""
    for name in ("sched_getaffinity", "getloadavg"):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(system, "PROC", tmp_path / "no proc")
    monkeypatch.setattr(system, "SYS", tmp_path / "no sys")


@pytest.fixture
def no_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without the module `resource`."""
    monkeypatch.setitem(sys.modules, "resource", None)


def test_only_one_file_asks_the_system() -> None:
    asks = re.compile(r"sched_getaffinity|getloadavg|\"/proc|\"/sys|import resource|os\.uname|MAP_NORESERVE|sysconf\(")
    files = [*(ROOT / "harness").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    found = {path.name for path in files if asks.search(path.read_text())}
    assert found == {"system.py"}


ABSENT: list[tuple[Callable[[], object], object]] = [
    (system.available_cores, os.cpu_count()),
    (system.processor_words, frozenset()),
    (system.load_average, []),
    (system.governor, None),
    (system.busy_seconds, None),
    (system.energy_zones, []),
    (lambda: system.OtherLoad().cores_busy(), None),
]


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("ask", "expected"), ABSENT)
def test_what_is_not_told_has_a_value_that_says_so(ask: Callable[[], object], expected: object) -> None:
    assert ask() == expected


@pytest.mark.usefixtures("no_limits")
@pytest.mark.parametrize("ask", [system.address_space, system.peak_memory])
def test_limits_and_peaks_are_not_told_everywhere(ask: Callable[[], object]) -> None:
    assert ask() is None


@pytest.mark.usefixtures("elsewhere")
def test_a_processor_has_a_name_anywhere() -> None:
    assert system.processor_name()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells all of it")
def test_linux_tells() -> None:
    assert system.available_cores() == len(os.sched_getaffinity(0))
    assert system.load_average() == pytest.approx(os.getloadavg(), abs=1)
    assert (system.busy_seconds() or 0) > 0
    assert (system.peak_memory() or 0) > 10 << 20
    assert system.processor_words()


@pytest.mark.usefixtures("elsewhere")
def test_a_result_of_such_a_system_is_of_the_stored_form() -> None:
    found = environment(CPU).json()
    assert form_of(Environment).fault(found, "") is None
    assert (found["load_average"], found["device"]) == ([], "cpu")


@pytest.mark.usefixtures("elsewhere", "no_limits")
def test_trials_are_measured_there_too() -> None:
    assert PeakMemory.of_all([PeakMemory.so_far(CPU), PeakMemory(3, None)]) == PeakMemory(None, None)
    assert Meter(CPU).lap() == {}
    assert not bfloat16_in_hardware(CPU)
    found = inference_cost(lambda images: images.sum(), torch.zeros(1, 3, 8, 8))
    assert (found.governor, found.other_cores_busy, found.bfloat16) == (None, None, None)


@pytest.mark.usefixtures("elsewhere")
def test_trials_are_planned_there_too(tmp_path: Path) -> None:
    from flowers_bench.contract.host import discover

    request = Request(["knn"], "petals", tmp_path, 2, settings={"data.species": "4"})
    jobs, planned = side_by_side(plan(discover(), request, []))
    assert jobs == min(len(planned), os.cpu_count() or 1)


_CHURN = """
import sys, resource
import numpy as np
from flowers_bench.util.system import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def churn():
    for _ in range(50):
        for array in [np.ones(2**17), np.ones(2**17)]: array + 1
churn()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
churn()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    def pages_cleared(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", _CHURN, how], capture_output=True, check=True).stdout)

    assert pages_cleared("kept") < 256 < pages_cleared("given back")


def test_other_c_libraries_know_no_such_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    system.keep_freed_memory()
