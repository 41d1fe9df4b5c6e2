"""The page of a run that goes on, and how long that still takes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from stored import cost, finish, outcomes, store_trial, train

from flowers_bench.cli.progress import TrialProgress
from flowers_bench.cli.report import follow
from flowers_bench.report.remaining import Pace
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.events import EpochFinished
from flowers_bench.util.errors import UsageError


def begun(root: Path, label: str, epochs: int, planned: int = 10) -> TrialFolder:
    """Store a trial that has so many epochs behind it, of 20 seconds each."""
    folder = store_trial(root, label, 0, outcomes(0, 0.8), recipe={"epochs": planned, "warmup_epochs": 0})
    (folder.path / "result.json").unlink()
    train(folder, epochs)
    return folder


def test_time_left_is_epochs_left_at_the_pace_so_far(tmp_path: Path) -> None:
    first, second = begun(tmp_path, "a/x", 4), begun(tmp_path, "b/x", 0)
    assert Pace([first, second]).seconds_left() == pytest.approx(20 * (6 + 10))
    assert Pace([first, second], jobs=2).seconds_left() == pytest.approx(20 * (6 + 10) / 2)
    assert Pace([second]).seconds_left() is None, "nothing is known yet"


def test_what_finished_trials_took_beside_epochs_counts(tmp_path: Path) -> None:
    done = store_trial(tmp_path, "a/x", 0, outcomes(0, 0.8), result={"cost": cost(60.0 + 7)})
    waiting = begun(tmp_path, "b/x", 9)
    beside = 60.0 + 7 + 1 + 1 - 3 * 20  # with setup and test, without three epochs
    assert Pace([done, waiting]).seconds_left() == pytest.approx(20 + beside)
    assert Pace([done]).seconds_left() == 0


def test_measuring_under_stress_counts_once_a_trial_has_begun_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    done = store_trial(tmp_path, "a/x", 0, outcomes(0, 0.8), result={"cost": cost(60.0 + 7)})
    waiting = begun(tmp_path, "b/x", 9)
    for folder in (done, waiting):
        run = json.loads((folder.path / "run.json").read_text())
        (folder.path / "run.json").write_text(json.dumps({**run, "stress": True}))
    pace = Pace([done, waiting])
    assert pace.seconds_left() is None, "nobody knows yet what stress takes"
    pace.under_stress(done.id, 0, 45)
    assert pace.seconds_left() is None
    clock[0] += 30
    pace.under_stress(done.id, 10, 45)
    training = 20 + 60 + 7 + 1 + 1 - 3 * 20
    assert pace.seconds_left() == pytest.approx(training + 3 * (35 + 45))
    monkeypatch.setattr(TrialFolder, "stressed", lambda folder: folder.id == done.id)
    assert pace.seconds_left() == pytest.approx(training + 3 * 45)
    assert Pace([done]).seconds_left() == 0


def test_a_finished_trial_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = store_trial(tmp_path, "a/x", 0, outcomes(0, 0.8))
    waiting, history, read = begun(tmp_path, "b/x", 9), TrialFolder.history, []
    monkeypatch.setattr(TrialFolder, "history", lambda folder: [read.append(folder.id), history(folder)][1])
    pace = Pace([done, waiting])
    assert pace.seconds_left() == pace.seconds_left() == pace.seconds_left()
    assert (read.count(done.id), read.count(waiting.id)) == (1, 3)


def test_the_line_of_an_epoch_says_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = begun(tmp_path, "a/x", 4)
    with TrialProgress({folder.id: "a/x seed 0"}, 1, Pace([folder])) as progress:
        progress.on_event(folder, EpochFinished(folder.history()[-1]))
    assert "a/x seed 0 epoch 4: loss" in capsys.readouterr().err
    (folder.path / "history.jsonl").write_text("damaged")
    with TrialProgress({folder.id: "a/x seed 0"}, 1, Pace([folder])) as progress:
        progress._left()


def test_the_page_follows_the_run_until_it_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, page = begun(tmp_path / "runs", "a/x", 1), tmp_path / "report.html"
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(follow(tmp_path / "runs", page, every=0.05)))
    thread.start()

    def shows(text: str) -> bool:
        return page.exists() and text in page.read_text()

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 120
        while not shows(text):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)

    wait_for("epoch 1 of at most 10")
    assert shows('http-equiv="refresh"')
    assert shows("0 of 1 trials are finished; at most 3.0 min left in all")
    time.sleep(0.02)
    train(folder, 2)
    wait_for("epoch 2 of at most 10")
    finish(folder, outcomes(0, 0.8), cost=cost(60.0), class_names=list("wxyz"))
    thread.join(timeout=120)
    assert codes == [0]
    assert shows("a/x has the highest test accuracy")
    assert not shows('http-equiv="refresh"')
    assert "all 1 trials are finished" in capsys.readouterr().out
    assert len(Store(tmp_path / "runs").finished()) == 1


def test_a_store_that_is_not_there_cannot_be_followed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no run store"):
        follow(tmp_path / "absent", tmp_path / "report.html")
