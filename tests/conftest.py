"""Fixtures shared by all tests: where the toy plugin is, and how the real command is run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Beside other workers, threads that wait for each other wait for the scheduler, too. Read when torch is imported.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest_plugins = ["fast_tests"]

TOY = Path(__file__).parent / "toy.py"
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def flowers_bench(tmp_path: Path) -> Run:
    """Runs the installed `flowers-bench` in an empty folder, with its caches in that folder."""
    script = Path(sys.executable).with_name("flowers-bench")
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}

    def run(*arguments: str, timeout: float = 240, **more_env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(script), *map(str, arguments)],
            cwd=tmp_path,
            env={**env, **more_env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def shared() -> Path:
    """Real photographs and weights, where a checkout has them beside it (or FLOWERS_BENCH_SHARED says where)."""
    path = Path(os.environ.get("FLOWERS_BENCH_SHARED", Path(__file__).parents[2] / "shared"))
    if not (path / "data").is_dir():
        pytest.skip(f"no real photographs at {path}; set FLOWERS_BENCH_SHARED")
    return path
