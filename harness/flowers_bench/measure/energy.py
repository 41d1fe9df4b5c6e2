"""Energy where the machine exposes it: RAPL counters of the processor packages, NVML's counter of the GPU.

Both count whatever runs on the device, not only this process. RAPL (powercap) is readable by root alone on most
systems since CVE-2020-8694; NVML needs `pip install "flowers-bench[nvml]"`. Where neither can be read, nothing is
reported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from flowers_bench.util.system import energy_zones


class Meter:
    """Joules between two calls of `lap`, by counter: `package_joules` (all processor packages) and `gpu_joules`."""

    def __init__(self, device: torch.device, rapl: Path | None = None) -> None:
        self._counters: list[_Counter] = []
        for zone in energy_zones(rapl):
            with contextlib.suppress(OSError, ValueError):  # no permission, or no such file: not exposed
                read, turn = _microjoules(zone / "energy_uj"), _microjoules(zone / "max_energy_range_uj")
                self._counters.append(_Counter("package_joules", read, turn(), read()))
        gpu = _nvml(device) if device.type == "cuda" else None
        if gpu is not None:
            self._counters.append(_Counter("gpu_joules", gpu, 0.0, gpu()))

    def lap(self) -> dict[str, float]:
        """Read the joules since the last call; empty where nothing can be read."""
        found: dict[str, float] = {}
        try:
            for counter in self._counters:
                found[counter.name] = found.get(counter.name, 0.0) + counter.lap()
        except Exception:  # a counter that was there is gone: the rest would pass for the whole
            self._counters = []
        return found if self._counters else {}


def joules_of_all(laps: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Combine the laps of several processes of one machine, each with its own GPU: the sum over GPUs, where all were
    measured, and the processor packages once."""
    found = dict(laps[0])
    if "gpu_joules" in found:
        measured = [lap["gpu_joules"] for lap in laps if "gpu_joules" in lap]
        found = {**found, "gpu_joules": sum(measured)} if len(measured) == len(laps) else {}
    return found


@dataclass
class _Counter:
    """Joules from `read`, which starts over at 0 after `turn`; `last` is what it read before."""

    name: str
    read: Callable[[], float]
    turn: float
    last: float

    def lap(self) -> float:
        now = self.read()
        spent, self.last = now - self.last, now
        return spent if spent >= 0 else spent + self.turn


def _microjoules(path: Path) -> Callable[[], float]:
    return lambda: int(path.read_text()) / 1e6


def _nvml(device: torch.device) -> Callable[[], float] | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        # By UUID: NVML does not know of CUDA_VISIBLE_DEVICES.
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode())
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError:  # no driver, or a GPU from before 2017, which does not count
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3
