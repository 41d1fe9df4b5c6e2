"""What examples/ holds runs: the notebook-style script here, the third-party package in an environment of its own."""

from __future__ import annotations

import csv
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from environments import own_environment
from PIL import Image
from stored import outcomes, store_trial

from flowers_bench.testing import checks

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_compare(monkeypatch: pytest.MonkeyPatch, folder: Path, *names: str) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "argv", ["compare.py", "runs", *names])
    runpy.run_path(str(EXAMPLES / "compare.py"), run_name="__main__")


def test_compare_finds_who_is_right_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    won = 0
    for seed in range(2):
        right = outcomes(seed, 0.7)
        better = right.copy()
        better[::4] = True  # all of class 0, which is a quarter of the 400 images
        won += int((better & ~right).sum())
        store_trial(tmp_path / "runs", "deformable/stage3", seed, better)
        store_trial(tmp_path / "runs", "deformable/plain", seed, right)
        store_trial(tmp_path / "runs", "transfer/scratch", seed, ~right)
    assert won > 0
    run_compare(monkeypatch, tmp_path, "deformable/stage3", "deformable/plain")
    told = capsys.readouterr().out
    assert f"of 800 pairs of predictions, only deformable/stage3 is right in {won}, only deformable/plain in 0" in told
    gains = told.partition("largest gain")[2].splitlines()
    assert gains[2].split() == ["0", f"{100 * won / 200:.1f}"]
    assert gains[3].split()[1] == "0.0"
    assert (tmp_path / "gain.png").read_bytes().startswith(b"\x89PNG")


def test_compare_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_trial(tmp_path / "runs", "deformable/stage3", 0, outcomes(0, 0.7))
    with pytest.raises(SystemExit, match="no finished trials of deformable/plain"):
        run_compare(monkeypatch, tmp_path, "deformable/stage3", "deformable/plain")


def test_all_examples_are_listed() -> None:
    text = (EXAMPLES / "README.md").read_text()
    names = {path.name for path in EXAMPLES.iterdir() if not path.name.startswith(("_", "."))} - {"README.md"}
    assert set(re.findall(r"\]\(([^)/]+)\)", text)) == names
    for test in re.findall(r"`(tests/[^`]+)`", text):
        assert (EXAMPLES.parent / test).is_file()


def test_one_file_is_a_technique(flowers_bench) -> None:
    quick = ("--seeds", "1", "--set", "epochs=1", "--set", "data.species=3", "--set", "data.size=32")
    done = flowers_bench("--plugin", str(EXAMPLES / "mine.py"), *quick)
    assert done.returncode == 0, done.stderr
    assert "mine/smooth" in done.stdout
    assert "mine/plain" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_own_folder_names_new_photographs(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, count in (("photos", 8), ("new", 2)):
        for place, name in enumerate(("rose", "tulip", "daisy")):
            where = tmp_path / folder / (name if folder == "photos" else ".")
            where.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                pixels = rng.normal(np.eye(3)[place] * 150 + 50, 30, (40, 50, 3))
                Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(where / f"{name}-{number}.png")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "SEEDS": "1",
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    command = [str(EXAMPLES / "own_folder.sh"), "photos", "new"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "new.csv").open() as stream:
        named = list(csv.DictReader(stream))
    assert len(named) == 6
    assert sum(Path(one["photograph"]).name.startswith(one["class"]) for one in named) >= 4


def test_the_package_can_be_built_and_trained() -> None:
    quick = ("loads", "can be planned", "gradients reach every trainable parameter", "model says what it needs")
    for check in checks(EXAMPLES / "second-order" / "second_order.py", settings={"image_size": "64"}):
        if check.name in quick:
            check()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_package_installs_passes_its_tests_and_runs(tmp_path: Path) -> None:
    own = own_environment(tmp_path)
    own(f"cp -r {EXAMPLES / 'second-order'} package")
    own("pip install './package[test]'")
    assert "second-order" in own("flowers-bench plugins")
    own("pytest -q package")
    tiny = "--set data.species=3 --set data.size=32 --set image_size=32 --set epochs=1"
    told = own(f"flowers-bench --plugin second-order --seeds 1 {tiny}")
    assert "second-order/bilinear" in told
    assert "second-order/average" in told
    assert "switched off" in own("flowers-bench --plugin second-order --no-plugin second-order", code=2)
