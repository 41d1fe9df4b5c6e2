"""A full disk, a store that cannot be written, two runs on one store, a clock set back."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from lives import TOY, planned

from flowers_bench.cli.execute import prepared as trials_to_run
from flowers_bench.executors.local import Outcome, run_all
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.events import Event, Starting, Waiting
from flowers_bench.util.errors import UsageError


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB, where mounting one is permitted."""
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def prepared(tmp_path: Path, store: Path, name: str, **settings: str) -> TrialFolder:
    item = planned(tmp_path, name, **settings)
    return Store(store).prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)


def run(folders: list[TrialFolder]) -> tuple[list[Outcome], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    return run_all(folders, lambda folder, event: events.append(event), timeout=120), events


def test_a_full_disk_is_named_costs_nothing_finished_and_is_got_over(tmp_path: Path, small_disk: Path) -> None:
    first = prepared(tmp_path, small_disk, "toy/short")
    second = prepared(tmp_path, small_disk, "toy/plain")
    assert [outcome.state for outcome in run([first])[0]] == ["done"]
    result = (first.path / "result.json").read_bytes()
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while stream.write(b"\0" * 4096):
            pass
    outcomes, events = run([second])
    assert [outcome.state for outcome in outcomes] == ["failed"]
    assert "No space left on device" in outcomes[0].reason + str(events)
    assert not second.finished()
    with pytest.raises(UsageError, match=r"cannot be written: .*No space left"):
        prepared(tmp_path, small_disk, "toy/plain", epochs="2")
    assert (first.path / "result.json").read_bytes() == result
    filler.unlink()
    assert [outcome.state for outcome in run([second])[0]] == ["done"]
    assert second.failure() is None
    assert not [path for path in small_disk.rglob(".*") if path.name not in (".lock", ".attempts-lock")]


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(UsageError, match=r"the run store .*small/runs cannot be written: .*Read-only.* --store"):
        prepared(tmp_path, small_disk / "runs", "toy/short")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        prepared(tmp_path, tmp_path / "file" / "runs", "toy/short")


def test_two_runs_on_one_store_run_each_trial_once(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flowers_bench", "--plugin", f"{TOY},toy/plain,toy/short", "--data", "toy"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    both = [
        subprocess.Popen(
            [*command, "--seeds", "2"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=240) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    trials = list(Store(tmp_path / "runs").trials())
    assert len(trials) == 4
    for trial in trials:
        assert trial.finished()
        # Whoever came second found it finished, and trained nothing.
        epochs = [line for _, errors in said for line in errors.splitlines() if f"{_name(trial)} epoch" in line]
        assert len(epochs) == len(trial.history())


def test_waiting_for_another_run_is_said_and_does_not_count(tmp_path: Path) -> None:
    folder = prepared(tmp_path, tmp_path / "runs", "toy/short")
    lock = FileLock(folder.path / ".lock", thread_local=False)
    lock.acquire()
    heard: list[Event] = []

    def on_event(told: TrialFolder, event: Event) -> None:
        heard.append(event)
        if isinstance(event, Waiting):
            threading.Timer(3, lock.release).start()

    began = time.monotonic()
    (outcome,) = run_all([folder], on_event, timeout=100)
    took = time.monotonic() - began
    assert outcome.state == "done"
    assert [type(event) for event in heard[:2]] == [Waiting, Starting]
    (attempt,) = folder.attempts()
    assert attempt.seconds < took - 3


def _name(trial: TrialFolder) -> str:
    return f"{trial.labels()[0].text} seed {trial.config().seed}"


@pytest.fixture
def backwards(tmp_path: Path) -> dict[str, str]:
    """What has to stand in the environment for the time of day to run backwards."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler, and Linux")
    library = tmp_path / "backwards.so"
    source = Path(__file__).with_name("backwards.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    code = "import sys, time; first = time.time(); sys.exit(time.time() >= first)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "LD_PRELOAD": str(library)}, check=True)
    return {"LD_PRELOAD": str(library)}


def test_a_clock_that_is_set_back_changes_nothing(
    flowers_bench: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, backwards: dict[str, str]
) -> None:
    """No measured time, lock or order of files depends on the time of day."""
    command = ("--plugin", f"{TOY},toy/plain,toy/short", "--data", "toy", "--seeds", "1", "--out")
    for out, environment in (("calm", {}), ("set-back", backwards), ("set-back", backwards)):
        done = flowers_bench(*command, out, **environment)
        assert done.returncode == 0, done.stderr
        for path in tmp_path.rglob("*"):
            os.utime(path, (4e9, 4e9))  # written "in the future"
    assert "2 of 2 trials are finished already" in done.stderr
    for trial in Store(tmp_path / "set-back").trials():
        calm = Store(tmp_path / "calm").folder(trial.id)
        assert (trial.path / "model.safetensors").read_bytes() == (calm.path / "model.safetensors").read_bytes()
        assert trial.result().test == calm.result().test
        cost = trial.result().cost
        assert all((cost.seconds > 0, cost.train_seconds > 0, cost.setup_seconds > 0, cost.test_seconds > 0))
        assert [attempt.seconds > 0 for attempt in trial.attempts()] == [True]


def test_a_trial_that_cannot_be_run_does_not_stop_the_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    items = [planned(tmp_path, name) for name in ("toy/short", "toy/plain")]
    broken = store.prepare(items[0].trial, items[0].run, items[0].labels)
    (broken.path / "log.txt").unlink(missing_ok=True)
    os.mkfifo(broken.path / "log.txt")
    todo, unfit = trials_to_run(items, store)
    assert [folder.id for folder in todo] == [items[1].trial.id]
    assert [str(error).split(" ")[0] for error in unfit] == [str(broken.path / "log.txt")]
