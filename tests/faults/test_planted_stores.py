"""A run store that somebody else made: nothing in it is executed, and nothing of it chooses what is written or fetched."""

from __future__ import annotations

import importlib.util
import json
import py_compile
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import TOY, live, planned
from PIL import Image
from stored import outcomes, store_trial

from flowers_bench import cli
from flowers_bench.cli.execute import prepared
from flowers_bench.data.decode import MAX_PIXELS
from flowers_bench.store.folder import Store, TrialFolder, write_json
from flowers_bench.store.identity import config_id
from flowers_bench.training.trained import load_trained
from flowers_bench.util.errors import UsageError

EVIL = "from pathlib import Path\nPath({witness!r}).touch()\nfrom flowers_bench import hookimpl\n"


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    """A trial whose technique and dataset are a plugin file's."""
    return live(tmp_path_factory.mktemp("toys"), "toy/short")


@pytest.fixture(scope="module")
def neighbours(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    """A trial that needs its training images to predict; all of it is built in."""
    few = {"data.species": "2", "data.train": "3", "data.val": "2", "data.test": "2", "data.size": "16"}
    return live(tmp_path_factory.mktemp("neighbours"), "knn/k5", data="petals", k="1", **few)


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    return tmp_path / "witness"


@pytest.fixture
def evil(tmp_path: Path, witness: Path) -> Path:
    """A plugin file that leaves a witness where it is executed."""
    (tmp_path / "planted").mkdir()
    path = tmp_path / "planted" / "toy.py"
    path.write_text(EVIL.format(witness=str(witness)))
    return path


@pytest.fixture
def image(tmp_path: Path) -> Path:
    Image.new("RGB", (16, 16)).save(tmp_path / "image.png")
    return tmp_path / "image.png"


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """The command in this process: (exit code, stdout, stderr); the user's cache is an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users-cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
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


def with_run(folder: TrialFolder, tmp_path: Path, **changes: object) -> TrialFolder:
    """A copy of the trial in a store of its own, with another `run.json`."""
    copy = TrialFolder(Path(shutil.copytree(folder.path, tmp_path / "runs" / folder.id)))
    write_json(copy.path / "run.json", {**copy.run().json(), **changes})
    return copy


def everything(root: Path) -> set[Path]:
    return set(root.rglob("*"))


def test_a_stored_plugin_file_is_not_executed(
    command: Any, toys: TrialFolder, evil: Path, witness: Path, image: Path, tmp_path: Path
) -> None:
    folder = with_run(toys, tmp_path, plugin_files=[str(evil)])
    out = ["--out", folder.path.parent]
    for arguments in (
        ["predict", folder.id, image, *out],
        ["export", folder.id, "--format", "pt2", "-o", tmp_path / "m", *out],
    ):
        code, _, told = command(*arguments)
        assert code == 2
        assert f"Trial {folder.id} was run with toy.py (sha256:" in told
        assert "name that very file, --plugin ./toy.py" in told
    assert command("report", folder.path.parent, "-o", tmp_path / "report.html")[0] == 0
    assert command("leaderboard", *out)[0] == 0
    assert command("show", folder.id, *out)[0] == 0
    assert not witness.exists()
    assert not (tmp_path / "m").exists()


def test_another_file_than_the_trials_is_not_executed(
    command: Any, toys: TrialFolder, evil: Path, witness: Path, image: Path
) -> None:
    code, _, told = command("predict", toys.id, image, "--out", toys.path.parent, "--plugin", evil)
    assert code == 2
    assert f"--plugin {evil}: trial {toys.id} was not run with this file" in told
    assert not witness.exists()


def test_the_very_file_is_loaded_where_it_is_named(
    command: Any, toys: TrialFolder, image: Path, tmp_path: Path
) -> None:
    folder = with_run(toys, tmp_path, plugin_files=[], cache_dir="/nowhere")
    code, told, _ = command("predict", folder.id, image, "--out", folder.path.parent, "--plugin", TOY)
    assert code == 0
    assert "class " in told


def test_what_was_compiled_beside_a_named_file_is_not_executed(
    command: Any, toys: TrialFolder, evil: Path, witness: Path, image: Path, tmp_path: Path
) -> None:
    """Python would believe this compiled file without a look at the source that was hashed."""
    named = tmp_path / "toy.py"
    shutil.copy(TOY, named)
    cached = Path(importlib.util.cache_from_source(str(named)))
    py_compile.compile(str(evil), str(cached), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    assert command("predict", toys.id, image, "--out", toys.path.parent, "--plugin", named)[0] == 0
    assert not witness.exists()


def test_a_plugins_dataset_is_among_a_trials_code(tmp_path: Path) -> None:
    """Else its file could never be named for the trial again."""
    assert "toy" in planned(tmp_path, "knn/k5").trial.code
    few = {"data.species": "2", "data.train": "2", "data.val": "1", "data.test": "1"}
    assert "datasets" not in planned(tmp_path, "knn/k5", data="petals", k="1", **few).trial.code


def test_nothing_is_written_where_a_store_says(
    command: Any, neighbours: TrialFolder, image: Path, tmp_path: Path
) -> None:
    place = tmp_path / "of somebody"
    place.mkdir()
    folder = with_run(neighbours, tmp_path, cache_dir=str(place), data_path=None)
    out = ["--out", folder.path.parent]
    assert command("predict", folder.id, image, *out)[0] == 0
    assert list((tmp_path / "users-cache" / "flowers-bench").glob("petals-*"))
    assert command("predict", folder.id, image, *out, "--data-dir", tmp_path / "chosen")[0] == 0
    assert list((tmp_path / "chosen").glob("petals-*"))
    assert command("report", folder.path.parent, "-o", tmp_path / "report.html")[0] == 0
    assert "the images are not at hand" in (tmp_path / "report.html").read_text()
    assert not everything(place)


@pytest.mark.parametrize("source", ["petals", "folder", "flowers102", "toy", "nothing"])
def test_a_report_only_reads_the_caches_that_a_store_names(
    command: Any, neighbours: TrialFolder, tmp_path: Path, source: str
) -> None:
    images = tmp_path / "images" / "rose"
    images.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / f"{number}.png")
    place = tmp_path / "cache"
    place.mkdir()
    path = str(images.parent) if source == "folder" else None
    folder = with_run(neighbours, tmp_path, cache_dir=str(place), data_source=source, data_path=path)
    before = everything(tmp_path)
    assert command("report", folder.path.parent, "-o", tmp_path / "report.html")[0] == 0
    assert "the images are not at hand" in (tmp_path / "report.html").read_text()
    assert everything(tmp_path) - before == {tmp_path / "report.html"}


def test_weights_are_not_fetched_from_where_a_store_says(
    command: Any, neighbours: TrialFolder, image: Path, tmp_path: Path
) -> None:
    folder = with_run(neighbours, tmp_path)
    elsewhere = tmp_path / "elsewhere" / folder.id
    elsewhere.mkdir(parents=True)
    shutil.move(folder.path / "model.safetensors", elsewhere / "model.safetensors")
    write_json(folder.path.parent / ".remote.json", {"url": f"file://{tmp_path}/elsewhere"})
    before = everything(tmp_path)
    code, _, told = command("predict", folder.id, image, "--out", folder.path.parent)
    assert code == 1
    assert "model.safetensors is missing" in told
    assert everything(tmp_path) == before


def test_a_backbone_that_asks_the_network_is_refused(neighbours: TrialFolder, tmp_path: Path) -> None:
    config = {**neighbours.config().json(), "backbone": "hf-hub:somebody/model"}
    config["id"] = config_id(config)
    folder = TrialFolder(Path(shutil.copytree(neighbours.path, tmp_path / config["id"])))
    write_json(folder.path / "config.json", config)
    with pytest.raises(UsageError, match="timm has no model 'hf-hub:somebody/model'"):
        load_trained(folder, torch.device("cpu"))


def test_a_merged_trial_is_continued_from_where_this_command_says(tmp_path: Path, evil: Path) -> None:
    item = planned(tmp_path, "toy/short")
    folder = Store(tmp_path / "runs").prepare(
        item.trial, replace(item.run, plugin_files=[str(evil)], cache_dir="/etc"), item.labels
    )
    ((again,), unfit) = prepared([item], Store(tmp_path / "runs"))
    assert not unfit
    assert again == folder
    assert again.run().plugin_files == [str(TOY)]
    assert again.run().cache_dir == item.run.cache_dir


@pytest.mark.parametrize("name", ["log.txt", ".lock", "figures", ""])
def test_a_trial_is_not_run_in_a_folder_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    item = planned(tmp_path, "toy/short")
    folder = Store(tmp_path / "runs").folder(item.trial.id)
    (tmp_path / "elsewhere").mkdir()
    place = folder.path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(tmp_path / "elsewhere")
    todo, (unfit,) = prepared([item], Store(tmp_path / "runs"))
    assert not todo
    assert "is a link or a device" in str(unfit)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_command_that_is_shown_is_text(command: Any, tmp_path: Path) -> None:
    acts = ["--plugin", "x; touch owned", "\x1b[2J"]
    folder = store_trial(tmp_path / "runs", "wise/good", 0, outcomes(0, 0.8, 40), run={"command": acts})
    code, shown, _ = command("show", folder.id, "--out", tmp_path / "runs")
    assert code == 0
    assert "'x; touch owned'" in shown
    assert "\x1b" not in shown
    assert (
        json.loads(command("show", folder.id, "--out", tmp_path / "runs", "--format", "json")[1])["run"]["command"]
        == acts
    )


def test_the_limit_of_pixels_is_said_as_it_is() -> None:
    text = (Path(__file__).parents[2] / "SECURITY.md").read_text(encoding="utf-8")
    assert f"more than {MAX_PIXELS:,} pixels" in text
