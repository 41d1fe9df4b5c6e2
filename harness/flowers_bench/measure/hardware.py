"""The machine, the versions and the kernel that a result was measured with."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING

from flowers_bench.store.records import Environment
from flowers_bench.util.system import load_average, processor_name, processor_words

if TYPE_CHECKING:
    import torch


def environment(
    device: torch.device, devices: int | None = None, trained_in: str | None = None, drawn: str | None = None
) -> Environment:
    """Describe this machine: processor, accelerator, threads, load, versions, and which deformable-convolution kernel.

    Args:
        devices: that a trial is divided among.
        trained_in: the precision that it was trained in.
        drawn: what drew the training images.
    """
    import torch  # here, so that reading results needs none

    return Environment(
        processor=processor_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        load_average=load_average(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        versions={name: version(name) for name in ("flowers-bench", "torch", "torchvision", "timm", "numpy", "pluggy")},
        kernel=kernel_in_use(),
        devices=devices,
        trained_in=trained_in,
        drawn=drawn,
    )


def kernel_in_use() -> str | None:
    """Say which kernel computes this process's deformable convolutions, compiling it where that has not been done; None where it has
    none."""
    ops = sys.modules.get("flowers_bench.ops")
    return str(ops.kernel()) if ops is not None and ops.in_use() else None


def bfloat16_in_hardware(device: torch.device) -> bool:
    """Say whether the device multiplies in bfloat16; where it does not, autocast only costs time."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Of MPS nothing was measured: where nothing is known, it is not assumed.
    return device.type == "cpu" and not processor_words().isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def describe_hardware(machine: Environment) -> str:
    """Put an environment into one line for people."""
    devices = machine.devices or 1  # older results have none
    return (
        f"{machine.processor}, {machine.threads} thread{'' if machine.threads == 1 else 's'} ({machine.cpu_capability})"
        + ("" if machine.device == "cpu" else f", {machine.device}")
        + ("" if devices == 1 else f", divided among {devices}")
    )
