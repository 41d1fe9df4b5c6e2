"""What a finished trial is good for afterwards: predict, export and merge, by the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from lives import TOY, live
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import softmax

from flowers_bench import cli
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.trained import Sources, Trained, dataset_of, temperature_of


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    return live(tmp_path_factory.mktemp("trained"), "toy/plain", **{"data.noise": "150"})


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    return live(tmp_path_factory.mktemp("neighbours"), "knn/k5")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """The command in this process, in an empty folder: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["flowers-bench", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def named(folder: TrialFolder) -> list[object]:
    """The store, and the plugin file that it does not choose."""
    return ["--out", folder.path.parent, "--plugin", TOY]


def pictures(folder: TrialFolder, where: Path, count: int) -> list[Path]:
    """Test images of the trial's dataset as files."""
    images = dataset_of(folder, Sources([TOY])).test.images
    paths = [where / f"{i}.png" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(images[i].permute(1, 2, 0).numpy()).save(path)
    return paths


def test_show_says_how_exact_its_figures_are(command, trial: TrialFolder) -> None:
    code, printed, _ = command("show", trial.id[:8], "--out", trial.path.parent)
    assert code == 0
    for figure in ("test top-1 %", "mean per class %", "top-5 %", "NLL after scaling", "Brier"):
        assert re.search(rf"^ +{figure} +[\d.]+ \[[\d.]+, [\d.]+\]$", printed, re.M), figure
    assert re.search(r"latency p50 +[\d.]+ ms \[[\d.]+ ms, [\d.]+ ms\]", printed)
    assert re.search(r"throughput +[\d.,]+/s \[", printed)
    assert "while it was timed" in printed


@pytest.mark.parametrize("which", ["trial", "neighbours"])
def test_predict_gives_the_calibrated_probabilities_of_the_test_split(
    command, tmp_path: Path, which: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(which)
    paths = pictures(folder, tmp_path, 3)
    code, out, _ = command("predict", folder.id[:8], *paths, "--format", "json", *named(folder))
    assert code == 0
    table = folder.predictions()
    logits = np.stack(list(table[table["split"] == "test"]["logits"]))[:3]
    expected = softmax(logits.astype(float) / (temperature_of(folder) or 1), axis=1)
    for record, path, row in zip(json.loads(out), paths, expected, strict=True):
        assert record["image"] == str(path)
        assert record["calibrated"] is (temperature_of(folder) is not None)
        found = record["predictions"]
        assert [f["probability"] for f in found] == pytest.approx(sorted(row, reverse=True), abs=1e-4)
        assert found[0]["class"] == f"class {row.argmax()}"
        assert found[0]["label"] == row.argmax()


@pytest.mark.parametrize(("change", "words"), [("nan", "is not finite"), ("complex64", "is of torch.complex64")])
def test_weights_that_no_trial_stores_are_named(
    command, trial: TrialFolder, tmp_path: Path, change: str, words: str
) -> None:
    (path,) = pictures(trial, tmp_path, 1)
    copy = TrialFolder(Path(shutil.copytree(trial.path, tmp_path / "runs" / trial.id)))
    tensors = load_file(copy.path / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point())
    tensors[name] = tensors[name] * float("nan") if change == "nan" else tensors[name].to(torch.complex64)
    (copy.path / "model.safetensors").unlink()
    save_file(tensors, copy.path / "model.safetensors")
    code, _, told = command("predict", trial.id, path, *named(copy))
    assert code == 1
    assert f"{trial.id}/model.safetensors does not fit its trial: {name} {words}" in told


def test_predict_prints_the_best_classes(command, trial: TrialFolder, tmp_path: Path) -> None:
    (path,) = pictures(trial, tmp_path, 1)
    code, out, _ = command("predict", trial.id, path, "--top", 2, *named(trial))
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == str(path)
    assert [line.split("%")[1].strip()[:6] for line in lines[1:3]] == ["class ", "class "]
    assert len(lines) == 3


def test_where_no_image_can_be_read_all_are_named(command, trial: TrialFolder, tmp_path: Path) -> None:
    (path,) = pictures(trial, tmp_path, 1)
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "cut.png").write_bytes(path.read_bytes()[:100])
    bad = [tmp_path / name for name in ("text.jpg", "cut.png", "nothere.jpg")]
    code, out, err = command("predict", trial.id, *bad, *named(trial))
    assert (code, out) == (2, "")
    for name in bad:
        assert f"image {name}" in err
    assert "Traceback" not in err


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_predicted(
    command, trial: TrialFolder, tmp_path: Path
) -> None:
    paths = pictures(trial, tmp_path, 2)
    (tmp_path / "text.jpg").write_text("no image")
    asked = [paths[0], tmp_path / "text.jpg", paths[1], paths[0]]
    code, out, err = command("predict", trial.id, *asked, "--format", "json", *named(trial))
    assert code == 1
    assert [record["image"] for record in json.loads(out)] == [str(paths[0]), str(paths[1]), str(paths[0])]
    assert err == f"error: image {tmp_path / 'text.jpg'} is not an image that can be read. Remove or replace it.\n"


def test_predict_takes_folders(command, trial: TrialFolder, tmp_path: Path) -> None:
    for name in ("album/deeper", "album/@eaDir", "empty"):
        (tmp_path / name).mkdir(parents=True)
    first, second, hidden = pictures(trial, tmp_path, 3)
    first = first.rename(tmp_path / "album/deeper/without_extension")
    second = second.rename(tmp_path / "album/b.png")
    hidden.rename(tmp_path / "album/@eaDir/c.png")
    (tmp_path / "album/notes.txt").write_text("x")
    out = named(trial)
    code, printed, _ = command("predict", trial.id, tmp_path / "album", "--format", "json", *out)
    assert code == 0
    assert [record["image"] for record in json.loads(printed)] == [str(second), str(first)]
    code, _, err = command("predict", trial.id, tmp_path / "empty", *out)
    assert code == 2
    assert f"folder {tmp_path / 'empty'} has no images (JPEG" in err


def test_a_folder_without_images_is_named_and_the_others_are_predicted(
    command, trial: TrialFolder, tmp_path: Path
) -> None:
    (path,) = pictures(trial, tmp_path, 1)
    (tmp_path / "empty").mkdir()
    code, out, err = command("predict", trial.id, tmp_path / "empty", path, "--format", "json", *named(trial))
    assert code == 1
    assert [record["image"] for record in json.loads(out)] == [str(path)]
    assert err.startswith(f"error: folder {tmp_path / 'empty'} has no images (JPEG")


def test_what_is_named_as_an_image_in_a_folder_and_is_no_file_is_said(
    command, trial: TrialFolder, tmp_path: Path
) -> None:
    (path,) = pictures(trial, tmp_path, 1)
    (tmp_path / "album").mkdir()
    path = path.rename(tmp_path / "album/a.png")
    os.symlink("nothing", tmp_path / "album/b.jpg")
    os.mkfifo(tmp_path / "album/c.jpg")
    code, out, err = command("predict", trial.id, tmp_path / "album", "--format", "json", *named(trial))
    assert code == 1
    assert [record["image"] for record in json.loads(out)] == [str(path)]
    assert "b.jpg is missing or cannot be read: No such file" in err
    assert "c.jpg is missing or cannot be read: it is a pipe" in err


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The largest value of each image that reaches the model, a list per call."""
    seen: list[list[int]] = []
    original = Trained.probabilities

    def probabilities(self, images):
        images = list(images)
        seen.append([int(image.max()) for image in images])
        return original(self, iter(images))

    monkeypatch.setattr(Trained, "probabilities", probabilities)
    return seen


def deep(where: Path, grey: int, number: float) -> list[Path]:
    """Two images of one value: of 16 bits, and of floating-point numbers."""
    where.mkdir(parents=True, exist_ok=True)
    paths = [where / f"{grey}.png", where / f"{grey}.tif"]
    Image.fromarray(np.full((16, 16), grey, np.uint16)).save(paths[0])
    Image.fromarray(np.full((16, 16), number, np.float32)).save(paths[1])
    return paths


def test_images_of_more_than_8_bits_are_scaled_as_the_trials_dataset_was(
    command, watched: list[list[int]], tmp_path: Path
) -> None:
    """Not by what this one image tells: a dark one stays dark."""
    for number in range(16):
        deep(tmp_path / "photos" / "ab"[number % 2], 4000 - number, 3.0 + number / 16)
    folder = live(tmp_path / "trial", "toy/plain", data=str(tmp_path / "photos"))
    assert folder.config().dataset.grey_levels.json() == {"float": [0, 3.9375], "integer": [0, 4095]}
    paths = deep(tmp_path, 1000, 1.0)
    code, _, err = command("predict", folder.id, *paths, *named(folder))
    assert (code, err) == (0, "")
    assert watched == [[round(1000 / 4095 * 255), round(255 / 3.9375)]]


def test_where_the_trials_dataset_had_no_such_images_nothing_is_guessed(
    command, trial: TrialFolder, watched: list[list[int]], tmp_path: Path
) -> None:
    grey, number = deep(tmp_path, 1000, 0.25)
    code, _, err = command("predict", trial.id, grey, number, *named(trial))
    assert code == 1
    assert f"image {number} cannot be read: its pixels are floating-point numbers, and nothing says" in err
    assert f"note: image {grey} has values up to 1000, and 65535 is taken for white" in err
    assert watched == [[4]]


def test_export_says_how_exact_it_is(command, trial: TrialFolder, tmp_path: Path) -> None:
    code, out, _ = command("export", trial.id, "--format", "pt2", *named(trial))
    assert code == 0
    assert (tmp_path / f"toy-plain-{trial.id[:8]}.pt2").is_file()
    assert "checked on 32 test images: logits differ by at most 0" in out
    assert "best class on 0" in out


@pytest.mark.parametrize(
    ("place", "words"),
    [("pipe", "it is a pipe, not a file"), ("device", "it is a device"), ("folder", "it is a folder")],
)
def test_export_replaces_files_alone(command, trial: TrialFolder, tmp_path: Path, place: str, words: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/null")
    before = (tmp_path / place).stat()
    code, out, err = command("export", trial.id, "--format", "pt2", "-o", tmp_path / place, *named(trial))
    assert (code, out) == (2, "")
    assert words in err
    after = (tmp_path / place).stat()
    assert (after.st_mode, after.st_rdev) == (before.st_mode, before.st_rdev)
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "folder", "device"}


def test_predict_says_where_nothing_calibrates(command, tmp_path: Path) -> None:
    """Every validation image is right: probabilities of 100 % would fit best, and no temperature is the best one."""
    sure = live(tmp_path, "knn/k5", **{"data.noise": "1"})
    assert temperature_of(sure) is None
    first, second = pictures(sure, tmp_path, 2)
    code, out, _ = command("predict", sure.id, first, second, *named(sure))
    assert code == 0
    assert out.splitlines()[-1].startswith("not calibrated: no temperature is the best one")
    assert out.count("not calibrated") == 1
    records = json.loads(command("predict", sure.id, first, "--format", "json", *named(sure))[1])
    assert [record["calibrated"] for record in records] == [False]


def test_predict_is_silent_where_it_is_calibrated(command, trial: TrialFolder, tmp_path: Path) -> None:
    assert temperature_of(trial) is not None
    (path,) = pictures(trial, tmp_path, 1)
    assert "calibrated" not in command("predict", trial.id, path, *named(trial))[1]


def test_merge_says_what_it_took(command, trial: TrialFolder, neighbours: TrialFolder, tmp_path: Path) -> None:
    code, out, _ = command("merge", trial.path.parent, neighbours.path.parent, "-o", "all")
    assert code == 0
    assert "2 trials taken, 0 were there already; all has 2" in out
    assert command("show", neighbours.id, "--out", "all")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "abc", "a.jpg"], "no trial"),
        (["predict", "TRIAL"], "Missing argument"),
        (["predict", "TRIAL", "a.jpg", "--format", "xml"], "Valid choices: json, text"),
        (["predict", "TRIAL", "a.jpg", "--top", "0"], "--top"),
        (["export", "TRIAL", "--format", "onyx"], "Did you mean 'onnx'"),
        (["export", "TRIAL", "-o", "no/such/folder.onnx"], "there is no folder"),
        (["merge", "nothere", "-o", "all"], "not a run store"),
        (["merge", "nothere"], "Missing option"),
    ],
)  # fmt: skip
def test_mistakes_exit_with_2(command, trial: TrialFolder, tmp_path: Path, arguments: list[str], words: str) -> None:
    given = [trial.id if argument == "TRIAL" else argument for argument in arguments]
    out = [] if arguments[0] == "merge" else ["--out", trial.path.parent]
    code, _, err = command(*given, *out)
    assert code == 2
    assert words in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())
