"""Several trials at once, shards of one command, and the memory that a trial needs before it may start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from stored import result_record

from flowers_bench.cli.options import parse_shard
from flowers_bench.contract.host import discover
from flowers_bench.executors import worker
from flowers_bench.executors.local import run_all
from flowers_bench.executors.memory import UNKNOWN, MemoryGuard, expected_peak
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.events import Ended, EpochFinished, Event, Starting, Waiting
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import write_json

TOY = Path(__file__).parents[1] / "toy.py"


def prepared(tmp_path: Path, store: str, seeds: int, jobs: int = 1, **settings: str) -> list[TrialFolder]:
    request = Request(["toy/plain"], "toy", tmp_path / "cache", seeds, settings=settings, jobs=jobs)
    return [
        Store(tmp_path / store).prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)
        for item in plan(discover([TOY]), request, [TOY])
    ]


def test_trials_at_once_equal_trials_in_turn(tmp_path: Path) -> None:
    alone, together = prepared(tmp_path, "a", 3), prepared(tmp_path, "b", 3)
    running: set[str] = set()
    most = 0

    def watch(folder: TrialFolder, event: Event) -> None:
        nonlocal most
        if isinstance(event, Starting):
            running.add(folder.id)
        elif event == Ended("done"):
            running.remove(folder.id)
        most = max(most, len(running))

    assert [end.state for end in run_all(alone, watch, timeout=120)] == ["done"] * 3
    assert most == 1
    assert [end.state for end in run_all(together, watch, timeout=120, jobs=2)] == ["done"] * 3
    assert most == 2
    for one, other in zip(alone, together, strict=True):
        assert one.predictions().equals(other.predictions())


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_all_that_run_and_starts_no_more(stop: signal.Signals, tmp_path: Path) -> None:
    folders = prepared(tmp_path, "runs", 4, epochs="50")
    training: set[str] = set()

    def interrupt_once_both_train(folder: TrialFolder, event: Event) -> None:
        if isinstance(event, EpochFinished) and folder.id not in training:
            training.add(folder.id)
            if len(training) == 2:
                os.kill(os.getpid(), stop)

    ends = run_all(folders, interrupt_once_both_train, timeout=120, jobs=2)
    assert [end.state for end in ends] == ["interrupted"] * 2
    assert [folder.finished() for folder in folders] == [False] * 4


def test_an_interrupt_reaches_a_trial_that_does_not_listen_yet(tmp_path: Path) -> None:
    """Also where the whole run was started with SIGINT ignored, as a shell's script starts what ends with `&`."""
    (folder,) = prepared(tmp_path, "runs", 1)
    context = multiprocessing.get_context("fork")
    events, emit = context.Pipe(duplex=False)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = context.Process(target=worker.main, args=(folder, emit))
    try:
        with FileLock(folder.path / ".lock"):
            process.start()
            assert isinstance(events.recv(), Waiting)
            os.kill(process.pid or 0, signal.SIGINT)
            process.join(20)
    finally:
        signal.signal(signal.SIGINT, before)
        process.kill()
    assert process.exitcode == worker.INTERRUPTED


def test_threads_are_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    def threads(jobs: int) -> Any:
        request = Request(["toy/plain"], "toy", tmp_path / "cache", 1, jobs=jobs)
        return plan(discover([TOY]), request, [TOY])[0].run.threads

    assert [threads(jobs) for jobs in (1, 2, 3, 16)] == [None, 4, 2, 1]


@given(st.integers(1, 12), st.integers(0, 40))
def test_shards_share_nothing_and_leave_nothing_out(shards: int, trials: int) -> None:
    every = list(range(trials))
    parts = [every[parse_shard(f"{i}/{shards}").indices] for i in range(1, shards + 1)]
    assert sorted(item for part in parts for item in part) == every
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "1/0", "-1/2", "a/b", "1/2/3"])
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected I/N"):
        parse_shard(text)


def finish(folder: TrialFolder, peak: int) -> None:
    cost = {"seconds": 1.0, "epochs": 3, "peak_rss_bytes": peak}
    write_json(folder.path / "result.json", result_record(folder, cost=cost))


def test_expected_memory_is_that_of_the_same_kind_else_the_largest_known(tmp_path: Path) -> None:
    first, second = prepared(tmp_path, "runs", 2)
    (other,) = prepared(tmp_path, "runs", 1, image_size="24")
    assert expected_peak(first) == UNKNOWN
    finish(other, 700)
    assert expected_peak(first) == 700
    finish(second, 300)
    assert expected_peak(first) == 300
    (other.path / "result.json").write_text("{")
    assert expected_peak(first) == 300


def test_a_trial_waits_until_it_fits(tmp_path: Path) -> None:
    first, second = prepared(tmp_path, "runs", 2)
    guard, said, stopping = MemoryGuard(available=lambda: UNKNOWN), [], threading.Event()
    entered, leave = threading.Event(), threading.Event()

    def hold(folder: TrialFolder, say: Callable[[str], None]) -> None:
        with guard.held_for(folder, stopping, say):
            entered.set()
            leave.wait(20)

    one = threading.Thread(target=hold, args=(first, said.append))
    one.start()
    assert entered.wait(20)
    entered.clear()
    two = threading.Thread(target=hold, args=(second, said.append))
    two.start()
    assert not entered.wait(0.5)
    leave.set()
    assert entered.wait(20)
    one.join()
    two.join()
    (reason,) = said
    assert "needs about 2.0 GiB" in reason
