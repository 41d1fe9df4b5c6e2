"""`flowers-bench start`: what it says and asks in a real terminal, and one whole way from photographs to an answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from terminal import in_terminal

from flowers_bench.cli import _as_start
from flowers_bench.store.folder import Store


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes that a colour tells apart, 10 photographs each."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(("rose", "tulip", "daisy")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            pixels = rng.normal(np.eye(3)[place] * 150 + 50, 40, (40, 50, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def test_no_is_an_answer(photos: Path, tmp_path: Path) -> None:
    shown = in_terminal("start", "photos", "--data-dir", "cache", columns=80, cwd=tmp_path, typed="n\n")
    assert shown.code == 0
    text = " ".join(shown.text.split())
    for words in (
        "30 photographs of 3 classes",
        "each class has 10",
        "split: ",
        "network test_resnet, 64 px",
        "learned drawn flowers only",
        "knn/k",
        "linear-probe/logistic",
        "disk: ",
        "run it? [Y/n]",
        "nothing was run",
    ):
        assert words in text, shown.text
    assert not list(tmp_path.glob("runs/*"))


def test_without_a_terminal_it_wants_a_yes(flowers_bench, photos: Path) -> None:
    done = flowers_bench("start", "photos", "--data-dir", "cache")
    assert done.returncode == 2
    assert "there is no terminal to ask whether to run this: say --yes" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["start", "absent"], "absent: no such folder"),
        (["start", "petals"], "petals is a dataset with a name"),
        (["--data", "absent"], "absent: no such folder"),
        (["start", "photos", "--store", "s3://bucket/runs"], "start needs a run store that is a folder"),
        (["start", "photos", "--weights", "absent.pth"], "absent.pth"),
        (["start", "photos/rose"], "has 10 photographs and no class folders"),
    ],
)
def test_mistakes_are_said_in_words(flowers_bench, photos: Path, arguments: list[str], words: str) -> None:
    done = flowers_bench(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_alone_means_start() -> None:
    assert _as_start(["--data", "./photos", "--yes"]) == ["start", "--yes", "--", "./photos"]
    assert _as_start(["--store", "s", "--data=./photos"]) == ["start", "--store", "s", "--", "./photos"]
    assert _as_start(["--data", "./photos", "--plugin", "knn"]) is None
    assert _as_start(["--data", "./photos", "-pknn"]) is None
    assert _as_start(["--seeds", "3"]) is None
    assert _as_start(["--data"]) is None


@pytest.mark.slow
def test_from_photographs_to_an_answer(flowers_bench, photos: Path, tmp_path: Path) -> None:
    done = flowers_bench("--data", "photos", "--yes", "--seeds", "2", "--data-dir", "cache", timeout=900)
    assert done.returncode == 0, done.stderr
    assert "so far, after " in done.stderr
    assert done.stderr.index("knn/k1 seed") < done.stderr.index("transfer/k3 seed 0 epoch 1")
    assert "Answer: photos: 3 classes, " in done.stdout
    assert " has the highest test accuracy: " in done.stdout
    assert "flowers-bench predict " in done.stdout
    assert "flowers-bench report" not in done.stdout, "the page is written already"
    assert done.stderr.rstrip().splitlines()[-1] == "report: runs/report.html"
    assert (tmp_path / "runs" / "report.html").stat().st_size > 100_000
    trials = Store(tmp_path / "runs").finished()
    assert len(trials) == 6
    commands = {tuple(folder.run().command or ()) for folder in trials}
    (command,) = commands
    assert command[:2] == ("--plugin", "knn/k1,linear-probe/logistic,transfer/k3")

    again = flowers_bench(*command, timeout=300)
    assert again.returncode == 0, again.stderr
    assert "6 of 6 trials are finished already" in again.stderr
    best = json.loads(flowers_bench("answer", "--format", "json").stdout)[0]["best"]
    predicted = flowers_bench("predict", best["trial"], str(photos / "rose" / "0.png"))
    assert predicted.returncode == 0, predicted.stderr


def test_lines_fit_the_terminal(photos: Path, tmp_path: Path) -> None:
    shown = in_terminal("start", "photos", "--data-dir", "cache", columns=80, cwd=tmp_path, typed="n\n")
    table = [line for line in shown.lines if line.startswith(("knn/", "linear-probe/", "transfer/", "technique"))]
    assert len(table) >= 3
    assert max(map(cell_len, table)) <= 80
