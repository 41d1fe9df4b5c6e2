"""`--stress`: a measurement that finished trials get too, and that changes nothing else of them."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from lives import live
from stored import add_stress, outcomes, store_trial

from flowers_bench.executors.local import run_all
from flowers_bench.measure.robustness import CHANGES
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.merge import merge_stores
from flowers_bench.training.events import EpochFinished, Event
from flowers_bench.training.process import Interrupted
from flowers_bench.training.robustness import stress_trial
from flowers_bench.util.files import write_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> TrialFolder:
    return live(tmp_path_factory.mktemp("stress"), "toy/plain")


@pytest.fixture
def folder(finished: TrialFolder, tmp_path: Path) -> TrialFolder:
    return TrialFolder(shutil.copytree(finished.path, tmp_path / "runs" / finished.id))


def test_it_is_added_to_a_finished_trial_without_training(folder: TrialFolder) -> None:
    before, history = folder.result().json(), folder.history()
    weights = hashlib.sha256((folder.path / "model.safetensors").read_bytes()).digest()
    write_json(folder.path / "run.json", {**folder.run().json(), "stress": True})
    assert not folder.complete(stress=True)
    events: list[Event] = []
    (end,) = run_all([folder], lambda _, event: events.append(event), timeout=120)
    assert end.state == "done"
    assert not [event for event in events if isinstance(event, EpochFinished)]
    assert folder.complete(stress=True)
    after = folder.result().json()
    assert {key: after[key] for key in before} == before
    assert folder.history() == history
    assert hashlib.sha256((folder.path / "model.safetensors").read_bytes()).digest() == weights


def test_figures_are_of_the_images_stored_beside_them(folder: TrialFolder) -> None:
    stress_trial(folder, lambda event: None)
    table, result = folder.stress(), folder.result()
    assert set(table["kind"]) == set(result.stress) == set(CHANGES)
    for kind, points in result.stress.items():
        for point in points:
            rows = table[(table["kind"] == kind) & (table["level"] == point.level)]
            assert sorted(rows["key"]) == sorted(folder.scores().keys)
            assert point.top1 == pytest.approx(rows["correct"].mean())
            assert point.low <= point.top1 <= point.high
        assert result.robustness[kind] == pytest.approx(sum(point.top1 for point in points) / 5)


def test_interrupted_it_writes_nothing(folder: TrialFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowers_bench.training.robustness.interrupt_flag", lambda: lambda: True)
    before = folder.result()
    with pytest.raises(Interrupted):
        stress_trial(folder, lambda event: None)
    assert folder.result() == before
    assert not (folder.path / "stress.parquet").exists()


def test_merging_keeps_the_trial_that_has_it(tmp_path: Path) -> None:
    store_trial(tmp_path / "a", "wise/good", 0, outcomes(0, 0.8))
    add_stress(store_trial(tmp_path / "b", "wise/good", 0, outcomes(0, 0.8)))
    for sources in (("a", "b"), ("b", "a")):
        target = tmp_path / "".join(sources)
        merge_stores([tmp_path / source for source in sources], target)
        assert Store(target).finished()[0].stressed()
