"""Run stores at a URL: what is pushed and pulled, what is not trusted, and a real S3 server that two machines share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import stored
from filelock import FileLock

from flowers_bench import load_results
from flowers_bench.cli.options import Factors, RunOptions
from flowers_bench.cli.run import run
from flowers_bench.store.decisions import Decision, LookRecord, PairRecord, read_decisions, write_decision
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.remote import Pusher, RemoteStore, opened
from flowers_bench.util.errors import Unreadable, UsageError

TOY = str(Path(__file__).parents[1] / "toy.py")
URL = "memory://flowers/runs"
ROOT = "/flowers/runs"


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()


def finished(root: Path, seed: int = 0) -> TrialFolder:
    folder = stored.store_trial(root, "toy/plain", seed, stored.outcomes(seed, 0.7))
    (folder.path / "model.safetensors").write_bytes(b"weights")
    (folder.path / "figures").mkdir()
    (folder.path / "figures" / "offsets.png").write_bytes(b"picture")
    (folder.path / ".lock").touch()
    return folder


def test_what_one_machine_pushes_another_pulls_without_weights(tmp_path: Path, memory: Any) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    folder = finished(here.mirror)
    here.push(folder)
    there.pull()
    (pulled,) = Store(there.mirror).finished()
    assert pulled.result() == folder.result()
    assert pulled.predictions().equals(folder.predictions())
    assert (pulled.path / "figures" / "offsets.png").read_bytes() == b"picture"
    assert not (pulled.path / "model.safetensors").exists()
    assert pulled.weights().read_bytes() == b"weights"
    assert there.unpushed() == []
    assert f"{ROOT}/{folder.id}/.lock" not in memory.store


def test_what_is_at_the_url_is_a_run_store(tmp_path: Path, memory: Any) -> None:
    remote = RemoteStore(URL, tmp_path)
    folder = finished(remote.mirror)
    remote.push(folder)
    memory.get(ROOT, str(tmp_path / "copied"), recursive=True)
    (copied,) = Store(tmp_path / "copied").finished()
    assert copied.result() == folder.result()


def test_a_trial_without_its_result_is_not_there_yet(tmp_path: Path, memory: Any) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    folder = finished(here.mirror)
    here.push(folder)
    memory.rm(f"{ROOT}/{folder.id}/result.json")
    there.pull()
    assert Store(there.mirror).finished() == []


def test_the_first_push_stands(tmp_path: Path, memory: Any) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    here.push(finished(here.mirror))
    before = dict(memory.store)
    there.push(finished(there.mirror))
    assert memory.store == before
    assert there.unpushed() == []


def test_a_mixture_of_two_pushes_is_left_out(tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    mixed, whole = finished(here.mirror, 0), finished(here.mirror, 1)
    here.push(mixed)
    here.push(whole)
    memory.pipe(f"{ROOT}/{mixed.id}/history.jsonl", b"")
    there.pull()
    assert [folder.id for folder in Store(there.mirror).finished()] == [whole.id]
    assert "history.jsonl is not what was pushed with it" in capsys.readouterr().err


def test_what_is_pushed_while_another_process_pulls_is_kept(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteStore(URL, tmp_path)
    folder = finished(remote.mirror)
    look = remote.files.system.ls

    def look_and_then_push(*arguments: Any, **more: Any) -> Any:
        names = look(*arguments, **more) if memory.exists(ROOT) else []
        monkeypatch.undo()
        remote.push(folder)
        return names

    monkeypatch.setattr(remote.files.system, "ls", look_and_then_push)
    remote.pull()
    assert Store(remote.mirror).finished() == [folder]
    memory.rm(f"{ROOT}/{folder.id}", recursive=True)
    remote.pull()
    assert Store(remote.mirror).finished() == [], "removed at the URL, it is forgotten"


def test_weights_that_are_not_the_trials_are_refused(tmp_path: Path, memory: Any) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    folder = finished(here.mirror)
    here.push(folder)
    memory.pipe(f"{ROOT}/{folder.id}/model.safetensors", b"others")
    there.pull()
    with pytest.raises(UsageError, match="not the one that was pushed"):
        Store(there.mirror).finished()[0].weights()


def test_another_trials_name_is_not_believed(tmp_path: Path, memory: Any, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    folder = finished(here.mirror)
    here.push(folder)
    memory.cp(f"{ROOT}/{folder.id}", f"{ROOT}/{'0' * 16}", recursive=True)
    there.pull()
    assert [folder.id for folder in Store(there.mirror).finished()] == [folder.id]
    assert "config.json is not of the trial that it describes" in capsys.readouterr().err


def test_names_at_the_url_stay_in_their_folder(tmp_path: Path, memory: Any) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    folder = finished(here.mirror)
    here.push(folder)
    evil = f"{ROOT}/{folder.id}/../../../evil"
    memory.store[evil] = memory.store[f"{ROOT}/{folder.id}/config.json"]
    assert evil in memory.find(f"{ROOT}/{folder.id}")
    there.pull()
    assert Store(there.mirror).finished()[0].id == folder.id
    assert not list(tmp_path.rglob("evil"))


def test_what_is_removed_at_the_url_is_forgotten_and_what_was_never_there_is_kept(tmp_path: Path, memory: Any) -> None:
    remote = RemoteStore(URL, tmp_path)
    removed, unpushed = finished(remote.mirror, 0), finished(remote.mirror, 1)
    remote.push(removed)
    memory.rm(f"{ROOT}/{removed.id}", recursive=True)
    remote.pull()
    assert Store(remote.mirror).finished() == [unpushed]
    with Pusher(remote) as pusher:
        pass
    assert pusher.failed == {}
    assert f"{ROOT}/{unpushed.id}/result.json" in memory.store


def test_a_trial_that_runs_here_is_not_touched(tmp_path: Path, memory: Any) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    folder = finished(here.mirror)
    here.push(folder)
    running = there.mirror / folder.id
    running.mkdir()
    with FileLock(running / ".lock"):
        there.pull()
    assert not TrialFolder(running).finished()
    there.pull()
    assert TrialFolder(running).finished()


def test_a_push_that_fails_is_told_and_costs_no_result(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = RemoteStore(URL, tmp_path)
    folder = finished(remote.mirror)

    def broken(*arguments: Any, **options: Any) -> None:
        raise PermissionError("read only")

    monkeypatch.setattr(type(memory), "put_file", broken)
    with Pusher(remote) as pusher:
        pass
    assert "read only" in str(pusher.failed[folder.id])
    assert remote.unpushed() == [folder]


def test_a_url_of_no_kind_and_a_missing_library_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"nonsense://x cannot be used|nonsense://x: "):
        RemoteStore("nonsense://x", tmp_path)
    monkeypatch.setattr(fsspec.core, "url_to_fs", raise_import_error)
    with pytest.raises(UsageError, match=r'pip install "flowers-bench\[remote\]"'):
        RemoteStore("s3://bucket/runs", tmp_path)


def raise_import_error(*arguments: Any, **options: Any) -> None:
    raise ImportError("Install s3fs to access S3")


def test_missing_weights_of_a_plain_store_are_said(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    (folder.path / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"model.safetensors is missing"):
        folder.weights()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A boto3 client of a real S3 server on loopback, with an empty bucket `flowers`."""
    server = pytest.importorskip("moto.server", reason='needs pip install "moto[server]"')
    pytest.importorskip("s3fs", reason="the extra [remote] is not installed")
    import boto3
    import s3fs

    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    given = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b", "DEFAULT_REGION": "us-east-1", "ENDPOINT_URL": ""}
    given["ENDPOINT_URL"] = f"http://{host}:{port}"
    for name, value in given.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="flowers")
    yield client
    running.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def asked(cache: Path, shard: str) -> RunOptions:
    return RunOptions.parse(
        plugin=f"{TOY},toy/plain",
        factors=Factors("toy"),
        seeds=2,
        settings=["epochs=1"],
        data_dir=cache,
        store="s3://flowers/runs",
        shard=shard,
    )


@pytest.mark.slow
def test_two_machines_share_a_bucket(
    tmp_path: Path, bucket: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "reader"))
    assert run(asked(tmp_path / "a", "1/2"), "text", 120) == 0
    assert run(asked(tmp_path / "b", "2/2"), "text", 120) == 0
    capfd.readouterr()
    assert run(asked(tmp_path / "a", "1/1"), "text", 120) == 0
    assert "2 of 2 trials are finished already" in capfd.readouterr().err
    assert set(load_results("s3://flowers/runs")["seed"]) == {0, 1}
    (first, _) = Store(opened("s3://flowers/runs")).finished()
    assert not (first.path / "model.safetensors").exists()
    assert first.weights().stat().st_size > 0


def test_a_bucket_that_is_not_there(tmp_path: Path, bucket: Any) -> None:
    remote = RemoteStore("s3://elsewhere/runs", tmp_path)
    with pytest.raises(UsageError, match="s3://elsewhere/runs cannot be used"):
        remote.push(finished(remote.mirror))


def plan_of_looks(done: int) -> Decision:
    techniques = ["a" * 16, "b" * 16]
    pair = PairRecord(
        first=techniques[0], second=techniques[1], p=[0.5] * done, p_within=[0.5] * done, p_adjusted=1.0,
        p_within_adjusted=1.0, outcome="open",
    )  # fmt: skip
    looks = [LookRecord(seeds=3, spent=0.1), LookRecord(seeds=10, spent=1.0)]
    return Decision(
        techniques=techniques, labels=["a", "b"], margin=0.01, finished_before=0, looks=looks, done=done, pairs=[pair]
    )


def test_a_plan_of_looks_goes_along_and_no_look_is_forgotten(tmp_path: Path, memory: Any) -> None:
    here, there = RemoteStore(URL, tmp_path / "a"), RemoteStore(URL, tmp_path / "b")
    early, late = plan_of_looks(0), plan_of_looks(1)
    write_decision(here.mirror, late)
    here.push_decision(late.id)
    write_decision(there.mirror, early)
    there.pull()
    assert read_decisions(there.mirror)[0].done == 1
    there.push_decision(late.id)
    write_decision(here.mirror, early)
    here.pull()
    assert read_decisions(here.mirror)[0].done == 1


def test_a_damaged_plan_of_looks_at_the_url_is_refused(tmp_path: Path, memory: Any) -> None:
    remote = RemoteStore(URL, tmp_path / "a")
    memory.pipe(f"{ROOT}/decisions/{plan_of_looks(0).id}.json", b"{")
    memory.pipe(f"{ROOT}/decisions/notes.json", b"not a plan")
    with pytest.raises(Unreadable, match="decisions"):
        remote.pull()
