"""Set up the kernel benchmarks: run them alone, and record the machine in saved files."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run in one process, unlike the tests, so that nothing else takes the processor."""
    config.option.numprocesses = 0


@pytest.fixture(autouse=True)
def _no_grad_left_over() -> None:
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add threads, versions and the kernel to every `--benchmark-json` file."""
    from flowers_bench.measure.hardware import environment
    from flowers_bench.ops import kernel

    machine_info["flowers_bench"] = {**environment(torch.device("cpu")).json(), "kernel": kernel()}
