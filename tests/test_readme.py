"""What the README tells people to type works. What needs a download or minutes is run where that is allowed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from stored import outcomes, store_trial

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
#: What the main job ends with, as the README shows it.
SHOWN = re.search(r"It ends so:\n\n```text\n(.*?)```", README, re.S)[1]
COMMANDS = [line for block in re.findall(r"```console\n(.*?)```", README, re.S) for line in block.splitlines()]
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


def test_all_files_that_it_links_are_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", README)
    assert len(links) > 15
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.timeout(120)
def test_the_picture_is_of_the_present_page(tmp_path: Path) -> None:
    """Drawn anew from the results beside it, it is the same."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    if not os.environ.get("CHROMIUM") and not any(map(shutil.which, names)):
        pytest.skip("no Chromium found: apt install chromium, or set CHROMIUM to its path")
    drawn = tmp_path / "report.png"
    # In a process of its own: another test of this one may hold a browser open.
    subprocess.run([sys.executable, ROOT / "docs" / "generate_picture.py", drawn], check=True)
    assert difference(Image.open(ROOT / "docs" / "report.png"), Image.open(drawn)) < 4


def skeleton(sentence: str) -> str:
    """A sentence of the answer without its numbers, which differ from machine to machine."""
    return re.sub(r"[-+]?\d+(\.\d+)?( s| min)?", "#", " ".join(sentence.split()))


@pytest.mark.slow
def test_the_main_job(flowers_bench, tmp_path: Path) -> None:
    """It ends as the README says."""
    done = flowers_bench("--plugin", "deformable", timeout=1500)
    assert done.returncode == 0, done.stderr
    names = ("deformable/stages2-4", "deformable/plain-pretrained", "knn/untrained")
    board = [line for line in done.stdout.splitlines() if line.startswith(names) and " [" in line and " MiB" in line]
    assert [row.split()[0] for row in board] == [*names]
    trained, twin, floor = (float(re.search(r"(\d+\.\d) \[", row)[1]) for row in board)
    assert min(trained, twin) > 60 > 20 > floor
    assert "top-1 % by what is known of each test image" in done.stdout
    assert "flowers-bench report -o report.html" in done.stdout
    told = skeleton(done.stdout)
    alike = [skeleton(line) in told for line in SHOWN.splitlines()]
    assert len(alike) == 6
    assert sum(alike) >= 5, "what would help may be another thing on another machine"
    best = float(re.search(r"highest test accuracy: (\d+\.\d) %", SHOWN)[1])
    assert trained == pytest.approx(best, abs=3)


def difference(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of two pictures, of 255, where words and fonts are blurred away."""
    assert first.size == second.size
    blurred = [np.asarray(one.convert("L").filter(ImageFilter.GaussianBlur(12)), float) for one in (first, second)]
    return float(np.abs(blurred[0] - blurred[1]).mean())
