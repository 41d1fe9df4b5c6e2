"""Merging stores: nothing is lost, nothing contradicts, nothing escapes, and all of it or nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lives import planned
from stored import finish, result_record, train

from flowers_bench.plan.request import TrialPlan
from flowers_bench.store import merge
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import Protocol, config_id
from flowers_bench.store.merge import Merged, merge_stores
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import write_json

Make = Callable[..., TrialFolder]


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> list[TrialPlan]:
    path = tmp_path_factory.mktemp("plan")
    return [planned(path, "transfer/scratch", epochs=str(epochs), warmup_epochs="0") for epochs in (1, 2, 3)]


@pytest.fixture
def make(tmp_path: Path, trials: list[TrialPlan]) -> Make:
    def make(store: str, which: int, *, finished: bool = True, right: int = 40, epochs: int = 1) -> TrialFolder:
        """Of 40 test images, so many right."""
        folder = Store(tmp_path / store).prepare(trials[which].trial, replace(trials[which].run, data_source=store))
        train(folder, epochs)
        if finished:
            finish(folder, np.arange(40) < right)
        return folder

    return make


def content(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_stores_are_united_whole(make: Make, tmp_path: Path) -> None:
    first, second = make("a", 0), make("b", 1)
    (first.path / "figures").mkdir()
    (first.path / "figures" / "offsets.png").write_bytes(b"picture")
    (first.path / ".lock").touch()
    assert merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all") == Merged(2, 0, 2)
    merged = content(tmp_path / "all")
    sources = {k: v for root in ("a", "b") for k, v in content(tmp_path / root).items() if not k.endswith(".lock")}
    assert merged.keys() == sources.keys()
    assert [k for k in merged if merged[k] != sources[k]] == [k for k in merged if k.endswith("run.json")]
    assert [folder.id for folder in Store(tmp_path / "all").finished()] == sorted((first.id, second.id))
    # Once more changes nothing, and a third machine can be added to what is there.
    assert merge_stores([tmp_path / "a"], tmp_path / "all") == Merged(0, 1, 2)
    make("c", 2)
    assert merge_stores([tmp_path / "c"], tmp_path / "all") == Merged(1, 0, 3)
    assert {k: v for k, v in content(tmp_path / "all").items() if k in merged} == merged
    assert not list((tmp_path / "all").glob(".*"))


def test_the_finished_trial_is_taken_and_then_the_one_that_got_further(make: Make, tmp_path: Path) -> None:
    make("a", 0, finished=False, epochs=5)
    make("b", 0, epochs=1)
    make("a", 1, finished=False, epochs=1)
    make("b", 1, finished=False, epochs=2)
    for sources, target in ((["a", "b"], "x"), (["b", "a"], "y"), (["b"], "a")):
        merge_stores([tmp_path / name for name in sources], tmp_path / target)
        assert [folder.run().data_source for folder in Store(tmp_path / target).trials()] == ["b", "b"]
        assert len(Store(tmp_path / target).finished()) == 1


def test_searches_are_united_too(trials: list[TrialPlan], tmp_path: Path) -> None:
    def searched(store: str, which: int, top1: float) -> None:
        trial = replace(trials[which].trial, protocol=Protocol(report="none"))
        folder = Store(tmp_path / store).of_searches().prepare(trial, trials[which].run)
        record = {key: value for key, value in result_record(folder).items() if key != "test"}
        train(folder, 3)
        write_json(folder.path / "result.json", {**record, "val": {**record["val"], "top1": top1}})

    for store, which in (("a", 0), ("b", 1), ("c", 2)):
        trial = trials[which]
        Store(tmp_path / store).prepare(trial.trial, trial.run)
    searched("a", 0, 0.5)
    searched("b", 0, 0.5)
    searched("b", 1, 0.6)
    assert merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all") == Merged(4, 1, 4)
    assert len(Store(tmp_path / "all").of_searches().finished()) == 2
    before = content(tmp_path / "all")
    searched("c", 0, 0.7)
    with pytest.raises(UsageError, match=r"has other predictions in .*c/search \(val 70.00 %\)"):
        merge_stores([tmp_path / "c"], tmp_path / "all")
    assert content(tmp_path / "all") == before


def test_same_predictions_of_one_trial_are_no_contradiction(make: Make, tmp_path: Path) -> None:
    make("a", 0)
    make("b", 0)
    assert merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all") == Merged(1, 1, 1)


def test_other_predictions_of_one_trial_are_refused_and_nothing_is_written(make: Make, tmp_path: Path) -> None:
    make("a", 0)
    make("a", 1)
    folder = make("b", 0, right=20)
    with pytest.raises(UsageError, match=rf"{folder.id} has other predictions in .*b \(test 50.00 %\) than in .*a"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def left_out(tmp_path: Path, store: str, taken: int) -> str:
    """What `merge` says of the one trial that it leaves out, while it takes the others."""
    shutil.rmtree(tmp_path / "all", ignore_errors=True)
    merged = merge_stores([tmp_path / store], tmp_path / "all")
    (error,) = merged.damaged
    assert (merged.taken, merged.total) == (taken, taken)
    assert len(list((tmp_path / "all").iterdir())) == taken
    return str(error)


def test_renamed_and_edited_trials_are_left_out(make: Make, tmp_path: Path) -> None:
    make("a", 1)
    folder = make("a", 0)
    shutil.copytree(folder.path, tmp_path / "a" / ("0" * 16))
    assert "its folder was renamed, or it was edited" in left_out(tmp_path, "a", taken=2)
    shutil.rmtree(tmp_path / "a" / ("0" * 16))
    write_json(folder.path / "config.json", {**folder.config().json(), "seed": 7})
    assert "its folder was renamed, or it was edited" in left_out(tmp_path, "a", taken=1)


def test_a_trial_with_links_out_of_the_store_is_left_out(make: Make, tmp_path: Path) -> None:
    make("a", 1)
    folder = make("a", 0)
    (tmp_path / "secret").write_text("secret")
    (folder.path / "log.txt").symlink_to(tmp_path / "secret")
    assert "log.txt is a link" in left_out(tmp_path, "a", taken=1)
    os.rename(folder.path, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "log.txt").unlink()
    folder.path.symlink_to(tmp_path / "elsewhere")
    assert f"{folder.id} is a link" in left_out(tmp_path, "a", taken=1)


def test_a_damaged_trial_of_the_target_stays_as_it_is(make: Make, tmp_path: Path) -> None:
    make("a", 0)
    folder = make("b", 0)
    (folder.path / "result.json").write_text("{")
    before = content(tmp_path / "b")
    merged = merge_stores([tmp_path / "a"], tmp_path / "b")
    assert merged.taken == 0
    assert "result.json" in str(merged.damaged[0])
    assert content(tmp_path / "b") == before


def test_places_of_another_machine_are_left_behind(make: Make, tmp_path: Path) -> None:
    folder = make("a", 0)
    places = {"weights_path": "/w.pth", "data_path": "/d", "store": "/s", "plugin_files": ["/p.py"], "cache_dir": "/c"}
    write_json(folder.path / "run.json", {**folder.run().json(), **places, "command": ["-p", "x"]})
    merge_stores([tmp_path / "a"], tmp_path / "all")
    arrived = Store(tmp_path / "all").folder(folder.id).run()
    assert not arrived.json().keys() & places.keys()
    assert arrived.command == ["-p", "x"]
    assert arrived.data_source == "a"


def test_what_is_no_store_is_refused(make: Make, tmp_path: Path) -> None:
    make("a", 0)
    with pytest.raises(UsageError, match="nothere is not a run store"):
        merge_stores([tmp_path / "a", tmp_path / "nothere"], tmp_path / "all")


def test_broken_off_it_leaves_whole_trials_and_can_be_repeated(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for which in range(3):
        make("a", which)
    copies = []

    def fails(source: Path, *arguments: object, **options: object) -> object:
        copies.append(source)
        if len(copies) == 2:
            raise OSError("disk full")
        return copytree(source, *arguments, **options)

    copytree = merge.shutil.copytree
    monkeypatch.setattr(merge.shutil, "copytree", fails)
    with pytest.raises(OSError, match="disk full"):
        merge_stores([tmp_path / "a"], tmp_path / "all")
    assert [path.name for path in (tmp_path / "all").iterdir()] == [copies[0].name]
    assert merge_stores([tmp_path / "a"], tmp_path / "all") == Merged(2, 1, 3)
    assert content(tmp_path / "all").keys() == content(tmp_path / "a").keys()


def test_ids_of_other_versions_are_checked_too(trials: list[TrialPlan]) -> None:
    facts = json.loads(json.dumps(trials[0].trial.facts()))
    assert config_id(facts) == trials[0].trial.id
    assert config_id({**facts, "schema_version": 9, "id": "whatever"}) == trials[0].trial.id
    assert config_id({**facts, "harness_revision": 99}) != trials[0].trial.id
