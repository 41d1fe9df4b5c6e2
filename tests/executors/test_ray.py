"""Trials on a real Ray cluster of several nodes on this machine: equal to local ones, whatever happens to a node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flowers_bench.cli.options import RunOptions, check_executor
from flowers_bench.contract.host import discover
from flowers_bench.executors import local
from flowers_bench.executors.ray import Cluster, run_all
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.decisions import read_decisions
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.events import EpochFinished, Event, Resumed, Step, Waiting
from flowers_bench.util.errors import UsageError

TOY = Path(__file__).parents[1] / "toy.py"
CRASHING = """
import os, signal
from flowers_bench import hookimpl

@hookimpl
def trial_started(trial):
    if trial["seed"] == 1:
        os.kill(os.getpid(), signal.SIGSEGV)
"""
Events = list[tuple[int, Event]]


def asked(**changes: Any) -> RunOptions:
    return RunOptions.parse(plugin="toy", **changes)


def test_without_ray_the_command_that_installs_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r'pip install "flowers-bench\[ray\]"'):
        check_executor(asked(executor="ray"))
    check_executor(asked())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"executor": "rya"}, "Did you mean 'ray'"),
        ({"address": "10.0.0.1:6379"}, "go with --executor ray"),
        ({"gpus": 0.5}, "go with --executor ray"),
    ],
)
def test_what_does_not_fit_the_executor_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check_executor(asked(**changes))


def test_threads_of_a_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert asked(executor="ray").threads_of_a_trial == 3
    assert asked(executor="ray", threads=2).threads_of_a_trial == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert asked(executor="ray").threads_of_a_trial == 1
    assert asked().threads_of_a_trial is None


@pytest.mark.parametrize(
    ("address", "words"), [("nonsense", "expected HOST:PORT"), ("127.0.0.1:1", "no Ray cluster answers")]
)
def test_an_address_where_no_cluster_is(address: str, words: str) -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    with pytest.raises(UsageError, match=words), Cluster(address, 1).connected():
        pass


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A head without processors, and two nodes of one each."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    from ray.cluster_utils import Cluster as Nodes

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # else 15: on a busy machine, hardly ever
    small = {"object_store_memory": 80 * 2**20}
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **small})
    for _ in range(2):
        nodes.add_node(num_cpus=1, **small)
    yield nodes
    nodes.shutdown()


def prepared(tmp_path: Path, store: str, seeds: int, plugin: Path | None = None, **settings: str) -> list[TrialFolder]:
    files = [TOY, *([plugin] if plugin else [])]
    request = Request(["toy/plain"], "toy", tmp_path / "cache", seeds, settings=settings, threads=1)
    return [
        Store(tmp_path / store).prepare(item.trial, replace(item.run, command=[]), item.labels)
        for item in plan(discover(files), request, files)
    ]


class Listener:
    """Keeps all events but steps, by seed."""

    def __init__(self) -> None:
        self.events: Events = []

    def __call__(self, folder: TrialFolder, event: Event) -> None:
        if not isinstance(event, Step):
            self.events.append((folder.config().seed, event))

    def kinds(self, seed: int) -> list[type[Event]]:
        return [type(event) for of, event in self.events if of == seed]

    def waits(self, seed: int) -> list[str]:
        return [event.reason for of, event in self.events if of == seed and isinstance(event, Waiting)]


def same(one: TrialFolder, other: TrialFolder) -> bool:
    def numbers(folder: TrialFolder) -> list[Any]:
        return [(r.epoch, r.train_loss, r.val_top1, r.val_nll) for r in folder.history()]

    files = ("model.safetensors", "predictions.parquet")
    equal = all((one.path / name).read_bytes() == (other.path / name).read_bytes() for name in files)
    return equal and numbers(one) == numbers(other)


@pytest.mark.slow
def test_trials_equal_local_ones_and_a_crash_ends_only_its_own(tmp_path: Path, nodes: Any) -> None:
    plugin = tmp_path / "crashing.py"
    plugin.write_text(CRASHING)
    folders, reference = prepared(tmp_path, "ray", 3, plugin), prepared(tmp_path, "local", 3)
    heard, expected = Listener(), Listener()
    ends = run_all(folders, heard, 120, Cluster(nodes.address, 1))
    local.run_all(reference, expected, 120)
    assert {end.folder.config().seed: end.state for end in ends} == {0: "done", 1: "failed", 2: "done"}
    assert [end.kind for end in ends if end.state == "failed"] == ["killed"]
    assert "SIGSEGV" in folders[1].failure().error
    for seed in (0, 2):
        assert same(folders[seed], reference[seed])
        assert heard.kinds(seed) == expected.kinds(seed)
    assert [attempt.state for attempt in folders[0].attempts()] == ["done"]


@pytest.mark.slow
def test_timeouts_and_folders_that_a_node_does_not_see(tmp_path: Path, nodes: Any) -> None:
    late, unseen = prepared(tmp_path, "runs", 2, epochs="100000")
    (unseen.path / "config.json").rename(tmp_path / "config.json")
    ends = {end.folder: end for end in run_all([late, unseen], lambda *_: None, 8, Cluster(nodes.address, 1))}
    assert "took longer than --timeout 8 s" in ends[late].reason
    assert "does not see" in ends[unseen].reason
    assert (ends[late].kind, ends[unseen].kind) == ("timeout", "node")


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_says_so(tmp_path: Path, nodes: Any) -> None:
    (folder,) = prepared(tmp_path, "runs", 1, explode="true")
    (end,) = run_all([folder], lambda *_: None, 60, Cluster(nodes.address, 1))
    assert end.untrainable
    assert "the loss is" in end.reason


@pytest.mark.slow
def test_an_interrupt_lets_epochs_end_and_starts_no_more(tmp_path: Path, nodes: Any) -> None:
    folders = prepared(tmp_path, "runs", 4, epochs="100000")
    heard = Listener()
    sent: list[int] = []

    def interrupt_once_both_train(folder: TrialFolder, event: dict[str, Any]) -> None:
        heard(folder, event)
        # One may be many epochs ahead of the other, whose node took longer to start it.
        if not sent and all(EpochFinished in heard.kinds(seed) for seed in (0, 1)):
            sent.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    ends = run_all(folders, interrupt_once_both_train, 120, Cluster(nodes.address, 1))
    assert [end.state for end in ends] == ["interrupted"] * 2
    assert all((end.folder.path / "checkpoint.pt").is_file() for end in ends)
    assert heard.kinds(2) == heard.kinds(3) == [], "one processor, one trial"
    assert not (folders[3].path / "history.jsonl").exists()


@pytest.mark.slow
def test_trials_of_a_killed_node_end_on_another(tmp_path: Path, nodes: Any) -> None:
    # So many that the first still trains when the other's node has started it, on a busy machine too.
    folders, reference = (prepared(tmp_path, store, 2, epochs="200") for store in ("ray", "local"))
    heard = Listener()

    def kill_a_node_once_both_train(folder: TrialFolder, event: dict[str, Any]) -> None:
        heard(folder, event)
        if (
            isinstance(event, EpochFinished)
            and len(nodes.worker_nodes) == 2
            and all(EpochFinished in heard.kinds(s) for s in (0, 1))
        ):
            nodes.remove_node(next(iter(nodes.worker_nodes)), allow_graceful=False)

    try:
        ends = run_all(folders, kill_a_node_once_both_train, 280, Cluster(nodes.address, 1))
    finally:
        nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    assert [end.state for end in ends] == ["done"] * 2
    (lost,) = [seed for seed in (0, 1) if heard.waits(seed)]
    assert "lost with its node" in heard.waits(lost)[0]
    assert Resumed in heard.kinds(lost)
    assert [attempt.state for attempt in folders[lost].attempts()] == ["lost", "done"]
    local.run_all(reference, lambda *_: None, 200)
    assert all(map(same, folders, reference))


@pytest.mark.slow
def test_seeds_are_added_on_a_cluster_until_it_is_decided(
    tmp_path: Path, nodes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["--plugin", f"{TOY},toy/plain,toy/short", "--data", "toy", "--decide=1", "--seeds-max=4"]
    script = Path(sys.executable).with_name("flowers-bench")
    cluster = ["--executor=ray", f"--address={nodes.address}", "--threads=1"]
    for where, store in ((cluster, "ray"), (["--threads=1"], "local")):
        done = subprocess.run([script, *command, *where, "--out", store], capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
    (plan,) = read_decisions(tmp_path / "ray")
    (reference,) = read_decisions(tmp_path / "local")
    assert plan.done > 0
    assert plan == reference
