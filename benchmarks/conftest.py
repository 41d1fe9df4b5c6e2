"""Shapes and peers of the kernel benchmarks, and what a saved file must say about the machine."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """What is timed runs alone, unlike the tests."""
    config.option.numprocesses = 0


@pytest.fixture(autouse=True)
def _no_grad_left_over() -> None:
    torch.manual_seed(0)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Threads, versions and the kernel stand in every `--benchmark-json`."""
    from flowers_bench.measure.hardware import environment
    from flowers_bench.ops import kernel

    machine_info["flowers_bench"] = {**environment(torch.device("cpu")).json(), "kernel": kernel()}
