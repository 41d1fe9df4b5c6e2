"""What is new is fast by itself, and held to it (fast_tests.py)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = """
import fast_tests
from fast_tests import *

fast_tests.HERE = __import__("pathlib").Path(__file__).parent
fast_tests.BUDGET = {budget}


def pytest_configure(config):
    for name in ("fast", "slow"):
        config.addinivalue_line("markers", name)
"""
TESTS = """
import multiprocessing
import time

import pytest


def test_quick():
    pass


@pytest.mark.slow
def test_marked():
    raise AssertionError("deselected")


def test_it_overfits_one_batch():
    raise AssertionError("deselected")


def test_busy():
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
"""
FORKS = """
def test_that_starts_a_process():
    multiprocessing.set_start_method("forkserver", force=True)
    from multiprocessing.forkserver import ensure_running
    ensure_running()
"""


def run(folder: Path, tests: str, budget: float = 60.0) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.format(budget=budget))
    (folder / "test_it.py").write_text(tests)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "fast",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(folder),
        str(folder),
    ]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_what_is_not_marked_is_fast(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS)
    assert "2 passed, 2 deselected" in done.stdout
    assert done.returncode == 0


def test_what_is_not_fast_is_not_even_imported(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "test_slow.py").write_text("raise AssertionError('imported')")
    done = run(tmp_path, TESTS)
    assert "2 passed, 2 deselected" in done.stdout
    assert done.returncode == 0


def test_too_much_in_all_is_said(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS, budget=0.2)
    assert "2 passed" in done.stdout
    assert "more than 0: make some quicker" in done.stdout
    assert done.returncode == 0


def test_one_that_starts_a_trial_is_told_where_to_go(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS + FORKS)
    assert "add test_it.py to NOT_FAST" in done.stdout
    assert "1 failed, 2 passed" in done.stdout
