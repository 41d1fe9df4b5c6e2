"""What the README tells people to type works. What needs a download or minutes is run where that is allowed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from stored import outcomes, store_trial

README = (Path(__file__).parents[1] / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.splitlines()]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.S)
RUNS = [line for line in COMMANDS if line.startswith("flowers-bench --plugin")]


def test_readme_has_the_two_commands() -> None:
    assert "pip install . && flowers-bench --plugin deformable" in COMMANDS
    assert 'pip install ".[test]" && pytest' in COMMANDS


@pytest.mark.parametrize("line", [c for c in COMMANDS if re.match(r"flowers-bench (list|describe|plugins)", c)])
def test_commands_that_look_around(flowers_bench, line: str) -> None:
    assert flowers_bench(*shlex.split(line)[1:]).returncode == 0


@pytest.mark.parametrize("line", RUNS)
def test_run_lines_are_valid_usage(flowers_bench, line: str, tmp_path: Path) -> None:
    """Real data and weights are not here: the command must get as far as asking for them by name."""
    done = flowers_bench(*shlex.split(line)[1:], "--data-dir", str(tmp_path / "none"))
    assert done.returncode == 2
    assert re.search("could not be downloaded|no such folder|no such file", done.stderr), done.stderr


@pytest.mark.parametrize("line", [c for c in COMMANDS if c.startswith("flowers-bench start")])
def test_start_asks_for_the_folder(flowers_bench, line: str) -> None:
    done = flowers_bench(*shlex.split(line)[1:])
    assert done.returncode == 2
    assert "no such folder" in done.stderr


@pytest.mark.parametrize("line", [c for c in COMMANDS if re.match(r"flowers-bench (compare|report)", c)])
def test_commands_that_read_results(flowers_bench, line: str, tmp_path: Path) -> None:
    for seed in range(2):
        store_trial(tmp_path / "runs", "deformable/stages2-4", seed, outcomes(seed, 0.8))
        store_trial(tmp_path / "runs", "deformable/plain-pretrained", seed, outcomes(seed, 0.7))
    done = flowers_bench(*shlex.split(line)[1:])
    assert done.returncode == 0, done.stderr


def test_the_plugin_in_the_readme_runs(flowers_bench, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(next(block for block in PYTHON if "mine.py" in block))
    quick = ("--seeds", "1", "--set", "epochs=1", "--set", "data.species=3", "--set", "data.size=32")
    done = flowers_bench("--plugin", "./mine.py", *quick)
    assert done.returncode == 0, done.stderr
    assert "mine/smooth" in done.stdout
    assert "mine/plain" in done.stdout


def test_imports_in_the_readme_work() -> None:
    line = next(block for block in PYTHON if "flowers_bench.ops" in block)
    subprocess.run([sys.executable, "-c", line], check=True)


@pytest.mark.slow
def test_the_main_job(flowers_bench) -> None:
    done = flowers_bench("--plugin", "deformable", timeout=1500)
    assert done.returncode == 0, done.stderr
    names = ("deformable/stages2-4", "deformable/plain-pretrained", "knn/untrained")
    board = [line for line in done.stdout.splitlines() if line.startswith(names) and " [" in line and " MiB" in line]
    assert [row.split()[0] for row in board] == [*names]
    trained, twin, floor = (float(re.search(r"(\d+\.\d) \[", row)[1]) for row in board)
    assert min(trained, twin) > 60 > 20 > floor
    assert "deformable/stages2-4 has the highest test accuracy" in done.stdout
    assert "top-1 % by what is known of each test image" in done.stdout
    assert "flowers-bench report -o report.html" in done.stdout
