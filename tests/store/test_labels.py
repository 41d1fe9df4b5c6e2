"""Several names of one trial: how they are kept, united, shown, and asked for."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fsspec
import pytest
from lives import TOY
from stored import outcomes, store_trial

from flowers_bench import UsageError, load_results
from flowers_bench.cli import execute
from flowers_bench.cli.compare import compare
from flowers_bench.cli.options import Factors, RunOptions
from flowers_bench.cli.report import report
from flowers_bench.cli.run import run
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.text import FORMATS, markdown
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import Label
from flowers_bench.store.merge import merge_stores
from flowers_bench.store.remote import RemoteStore
from flowers_bench.training.trial import run_trial
from flowers_bench.util.errors import Unreadable

TWIN = Label.of("other/twin", "wise/plain")


def names(folder: TrialFolder) -> list[str]:
    return [label.text for label in folder.labels()]


@pytest.fixture
def folder(tmp_path: Path) -> TrialFolder:
    return store_trial(tmp_path / "runs", "wise/good", 0, outcomes(0, 0.8))


def test_a_name_is_added_once_and_is_in_no_id(folder: TrialFolder) -> None:
    assert folder.add_labels([TWIN, Label.of("wise/good")]) == [TWIN]
    assert folder.add_labels([TWIN]) == []
    assert folder.labels() == (TWIN, Label.of("wise/good", "wise/plain"))
    folder.check()


def test_many_may_name_a_trial_at_once(folder: TrialFolder) -> None:
    labels = [Label("other", f"v{number}") for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: folder.add_labels(labels[number : number + 5]), range(40)))
    assert set(labels) < set(folder.labels())
    assert not list((folder.path / "labels").glob(".*"))


def test_without_its_names_a_trial_is_called_by_its_parts(folder: TrialFolder) -> None:
    shutil.rmtree(folder.path / "labels")
    folder.check()
    assert names(folder) == ["classifier/cross-entropy"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"technique": "other", "variant": "twin"}', "called after another name"),
        ('{"technique": "wise"}', "no variant"),
        ('{"technique": "wise", "variant": "good", "baseline": 3}', "baseline is 3"),
        ("{", "cannot be read"),
    ],
)
def test_a_damaged_name_is_named(folder: TrialFolder, text: str, reason: str) -> None:
    (path,) = (folder.path / "labels").glob("*.json")
    path.write_text(text)
    with pytest.raises(Unreadable, match=reason) as raised:
        folder.check()
    assert str(path) in str(raised.value)


def test_names_in_a_linked_folder_are_not_read(folder: TrialFolder, tmp_path: Path) -> None:
    (folder.path / "labels").rename(tmp_path / "elsewhere")
    (folder.path / "labels").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unreadable, match="is a link"):
        folder.check()


@pytest.mark.parametrize("put", [os.mkfifo, Path.touch])
def test_what_is_no_folder_of_names_is_named(folder: TrialFolder, put: Callable[[Path], object]) -> None:
    """It would be called by its parts, as another technique."""
    shutil.rmtree(folder.path / "labels", ignore_errors=True)
    put(folder.path / "labels")
    with pytest.raises(Unreadable, match=r"labels cannot be read: .*Remove its folder"):
        folder.labels()


def test_merge_unites_names_in_both_directions(folder: TrialFolder, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "runs", tmp_path / "other")
    other = Store(tmp_path / "other").folder(folder.id)
    shutil.rmtree(other.path / "labels")
    other.add_labels([TWIN])
    merge_stores([tmp_path / "other"], tmp_path / "runs")  # present there: only its name is new
    assert names(folder) == ["other/twin", "wise/good"]
    merge_stores([tmp_path / "other", tmp_path / "runs"], tmp_path / "third")
    assert names(Store(tmp_path / "third").folder(folder.id)) == ["other/twin", "wise/good"]


def test_names_are_pushed_and_pulled_after_the_trial(tmp_path: Path) -> None:
    fsspec.filesystem("memory").store.clear()
    here, there = (RemoteStore("memory://named/runs", tmp_path / name) for name in "ab")
    trial = store_trial(here.mirror, "wise/good", 0, outcomes(0, 0.8))
    (trial.path / "model.safetensors").write_bytes(b"weights")
    here.push(trial)
    there.pull()
    (pulled,) = Store(there.mirror).finished()
    assert names(pulled) == ["wise/good"]
    trial.add_labels([TWIN])
    here.push(trial)
    there.pull()
    pulled.check()
    assert pulled.labels() == trial.labels()


def test_a_damaged_name_at_a_url_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    here, there = (RemoteStore("memory://named/runs", tmp_path / name) for name in "ab")
    trial = store_trial(here.mirror, "wise/good", 0, outcomes(0, 0.8))
    here.push(trial)
    there.pull()
    memory.pipe(f"/named/runs/{trial.id}/labels/{'0' * 16}.json", b'{"technique": "a", "variant": "b"}')
    there.pull()
    assert "is left out" in capsys.readouterr().err
    assert names(Store(there.mirror).folder(trial.id)) == ["wise/good"]


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """Two rows of three seeds that are the same trials, a third row that shares one of them, and one of its own."""
    for seed in range(3):
        good = store_trial(tmp_path, "wise/good", seed, outcomes(seed, 0.8))
        good.add_labels([TWIN, *([Label.of("third/one")] if seed == 1 else [])])
        store_trial(tmp_path, "wise/plain", seed, outcomes(seed, 0.6))
    return tmp_path


def test_a_leaderboard_has_a_row_for_each_name_and_says_which_are_one(twins: Path) -> None:
    board = Leaderboard.of(Store(twins).finished())
    (group,) = board.groups
    rows = {row.name: row for row in group.rows}
    assert set(rows) == {"wise/good", "other/twin", "third/one", "wise/plain"}
    assert len({row.id for row in group.rows}) == 4
    assert rows["wise/good"].top1 == rows["other/twin"].top1
    text = markdown(board)
    assert "are one and the same training under several names" in text
    assert text.count("are one and the same trial for seed 1") == 2
    # Each name has its own baseline: of the pairs, the two with wise/plain alone are tests.
    assert {(pair.first, pair.second) for pair in group.differences} == {
        ("wise/good", "wise/plain"),
        ("other/twin", "wise/plain"),
    }


@pytest.mark.parametrize("format", ["csv", "json"])
def test_exports_say_which_rows_are_one(twins: Path, format: str) -> None:
    text = FORMATS[format](Leaderboard.of(Store(twins).finished()))
    records = json.loads(text) if format == "json" else list(csv.DictReader(io.StringIO(text)))
    rows = {record["name"]: record for record in records}
    by_id = {record["row"]: record["name"] for record in records}
    same = {name: {by_id[id] for id in record["same_trials_as"].split()} for name, record in rows.items()}
    assert same == {
        "wise/good": {"other/twin", "third/one"},
        "other/twin": {"wise/good", "third/one"},
        "third/one": {"wise/good", "other/twin"},
        "wise/plain": set(),
    }
    assert rows["wise/good"]["trials"] == rows["other/twin"]["trials"]
    assert rows["third/one"]["trials"] == rows["wise/good"]["trials"].split()[1]
    assert len({id for record in records for id in record["trials"].split()}) == 6


def test_a_pair_that_is_one_trial_is_neither_tested_nor_counted(
    twins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    compare(["wise/good", "other/twin", "wise/plain"], twins, "json")
    found = json.loads(capsys.readouterr().out)
    tested = [record for record in found if "p" in record]
    assert [(record["first"], record["second"]) for record in tested] == [
        ("wise/good", "wise/plain"),
        ("other/twin", "wise/plain"),
    ]
    assert all(record["p_holm"] <= 2 * record["p"] for record in tested), "Holm's factor is of two pairs, not three"
    with pytest.raises(UsageError, match="one and the same trial"):
        compare(["wise/good", "other/twin"], twins, "text")


def test_a_baseline_that_is_the_same_trial_is_no_difference(tmp_path: Path) -> None:
    store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.8)).add_labels([Label.of("wise/plain")])
    (group,) = Leaderboard.of(Store(tmp_path).finished()).groups
    assert group.differences == ()
    assert len(group.same) == 1


def test_results_as_a_table_have_a_row_for_each_name(twins: Path) -> None:
    table = load_results(twins)
    assert table.groupby(["technique", "variant"]).size().to_dict() == {
        ("other", "twin"): 3,
        ("third", "one"): 1,
        ("wise", "good"): 3,
        ("wise", "plain"): 3,
    }
    assert table["id"].nunique() == 6


def test_the_report_counts_each_trial_once(twins: Path, tmp_path: Path) -> None:
    for folder in Store(twins).finished():
        folder.note_attempt(3600, "done")
    report(twins, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "are one and the same training under several names" in text
    assert "6 finished trials of 4 configurations, 360.0 min of work" in text


Ran = list[Sequence[TrialFolder]]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """What each command ran, in this process."""
    found: Ran = []

    def run_all(folders: Sequence[TrialFolder], *arguments: object) -> list[object]:
        found.append(folders)
        for folder in folders:
            run_trial(folder, lambda event: None)
        return []

    monkeypatch.setattr(execute, "run_all", run_all)
    monkeypatch.setattr(execute, "was_interrupted", lambda *arguments: False)
    return found


def options(tmp_path: Path, techniques: str, **changes: Any) -> RunOptions:
    factors = Factors(data="toy", backbone="test_resnet", weights="none")
    settings = ["image_size=16", "epochs=1", "batch_size=8"]
    common = {"suite": None, "seeds": 1, "sweeps": [], "jobs": 1, "shard": "1/1", "threads": 1}
    given = {**common, "factors": factors, "settings": settings, "store": str(tmp_path / "runs"), **changes}
    return RunOptions.parse(plugin=f"{TOY},{techniques}", data_dir=tmp_path / "cache", **given)


@pytest.fixture(autouse=True)
def no_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is loaded for its data; its technique is not asked for."""
    monkeypatch.setattr("flowers_bench.cli.run._techniques_of", lambda host, file, needed: [])


def test_a_trial_that_is_finished_under_another_name_is_not_trained_again(
    tmp_path: Path, ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(options(tmp_path, "transfer/k0"), "md", 60) == 0
    capsys.readouterr()
    assert run(options(tmp_path, "linear-probe/full"), "md", 60) == 0
    assert [len(folders) for folders in ran] == [1, 0]
    told = capsys.readouterr()
    assert "linear-probe/full seed 0: same trial as transfer/k0, not trained again" in told.err
    assert "| linear-probe/full |" in told.out
    assert "| transfer/k0 |" not in told.out, "the table shows the name that was asked for"
    (folder,) = Store(tmp_path / "runs").finished()
    assert names(folder) == ["linear-probe/full", "transfer/k0"]
    assert run(options(tmp_path, "linear-probe/full"), "md", 60) == 0
    assert "same trial as" not in capsys.readouterr().err


def test_a_trial_under_two_names_is_planned_once(tmp_path: Path, ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(options(tmp_path, "transfer/k0,linear-probe/full"), "md", 60) == 0
    ((folder,),) = ran
    assert names(folder) == ["linear-probe/full", "transfer/k0"]
    told = capsys.readouterr()
    assert "transfer/k0 = linear-probe/full: test_resnet" in told.err
    assert "1 more would be the same trainings under other names" in told.err
    assert "| transfer/k0 |" in told.out
    assert "| linear-probe/full |" in told.out
    assert "are one and the same training under several names" in told.out
