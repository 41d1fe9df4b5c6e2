"""TensorBoard and MLflow: nothing unless asked, the same figures if asked, and no harm by any observer."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lives import live

import flowers_bench_plugins
from flowers_bench.contract.host import discover
from flowers_bench.store.folder import TrialFolder
from flowers_bench.training.events import Event, Warned
from flowers_bench.util.errors import UsageError

PLUGINS = Path(flowers_bench_plugins.__file__).parent
SKIPPED = ("epoch",)

HARMFUL = """
import random
import numpy, torch
from flowers_bench import hookimpl

@hookimpl
def trial_started(trial):
    trial["recipe"]["lr"] = 99
    raise RuntimeError("no disk")

@hookimpl
def epoch_finished(trial, epoch):
    torch.manual_seed(0), numpy.random.seed(0), random.seed(0)
    torch.rand(100)
    epoch["val_top1"] = 1.0
    raise SystemExit(3)

@hookimpl
def trial_finished(result):
    result["test"]["top1"] = 1.0
    result.clear()
"""


def files(name: str) -> list[Path]:
    """The tracker as a plugin file, where the installed metadata is older than it."""
    return [] if name in discover().plugins else [PLUGINS / f"{name}.py"]


def tracked(tmp_path: Path, name: str) -> TrialFolder:
    return live(tmp_path, "toy/plain", files=files(name), run={"track": [name]})


def test_tensorboard_has_the_numbers_of_history_and_result(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.util.tensor_util import make_ndarray

    folder = tracked(tmp_path, "tensorboard")
    (directory,) = (tmp_path / "runs" / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(directory), {accumulator.TENSORS: 0}).Reload()

    def read(tag: str) -> list[tuple[int, float]]:
        return [(e.step, float(make_ndarray(e.tensor_proto))) for e in events.Tensors(tag)]

    history, result = [record.json() for record in folder.history()], folder.result().json()
    for key in history[0]:
        if key not in SKIPPED:
            assert read(f"epoch/{key}") == [(record["epoch"], record[key]) for record in history]
    assert read("result/test/top1") == [(result["best_epoch"], result["test"]["top1"])]
    assert read("result/cost/seconds") == [(result["best_epoch"], result["cost"]["seconds"])]


def test_mlflow_has_the_numbers_of_history_and_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tracked(tmp_path, "mlflow")
    client = mlflow.MlflowClient((tmp_path / "runs" / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("flowers-bench toy")
    (run,) = client.search_runs([experiment.experiment_id])
    history, result = [record.json() for record in folder.history()], folder.result().json()
    for key in history[0]:
        if key not in SKIPPED:
            logged = client.get_metric_history(run.info.run_id, f"epoch.{key}")
            assert [(m.step, m.value) for m in logged] == [(record["epoch"], record[key]) for record in history]
    assert run.data.metrics["test.top1"] == result["test"]["top1"]
    assert run.data.metrics["cost.seconds"] == result["cost"]["seconds"]
    assert run.data.params["recipe.lr"] == str(folder.config().recipe.lr)
    assert run.data.tags["flowers_bench.trial"] == folder.id
    assert run.info.status == "FINISHED"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers: its address."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    kept.append(server.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        for connection in kept:
            connection.close()


def test_a_server_that_never_answers_is_said_once_and_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    pytest.importorskip("mlflow")
    from flowers_bench_plugins.mlflow import PATIENCE

    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent_server)
    for name in PATIENCE:
        monkeypatch.delenv(name, raising=False)
    events: list[Event] = []
    started = time.monotonic()
    folder = live(tmp_path, "toy/plain", files=files("mlflow"), run={"track": ["mlflow"]}, emit=events.append)
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert "tracker 'mlflow' is left out of this trial from here on: trial_started" in warnings[0]
    assert time.monotonic() - started < 90, "four hooks would have waited for minutes each"
    assert folder.finished()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_tracker_that_cannot_write_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip(name)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / {"mlflow": "mlruns", "tensorboard": "tensorboard"}[name]).write_text("in the way")
    events: list[Event] = []
    folder = live(tmp_path, "toy/plain", files=files(name), run={"track": [name]}, emit=events.append)
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert len(warnings) == 1
    assert f"tracker {name!r} is left out of this trial" in warnings[0]
    assert folder.finished()


def test_a_tracker_that_hangs_is_broken_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = (
        "import time\nfrom flowers_bench import hookimpl\nFLOWERS_BENCH_TRACKER = 'json'\n"
        "@hookimpl\ndef trial_started(trial):\n    time.sleep(60)\n"
    )
    (tmp_path / "sleepy.py").write_text(source)
    monkeypatch.setattr("flowers_bench.contract.host.TRACKER_TIMEOUT", 0.2)
    host = discover([tmp_path / "sleepy.py"])
    host.tracking = ["sleepy"]
    started = time.monotonic()
    (said,) = host.notify("trial_started", trial={}, run={})
    assert "tracker 'sleepy' is left out of this trial" in said
    assert host.notify("trial_started", trial={}, run={}) == []
    assert time.monotonic() - started < 10


def test_trackers_are_silent_unless_asked(tmp_path: Path) -> None:
    live(tmp_path, "toy/short", files=[*files("tensorboard"), *files("mlflow")])
    assert {path.name for path in (tmp_path / "runs").iterdir() if len(path.name) != 16} == set()


def test_a_harmful_observer_changes_no_number(tmp_path: Path) -> None:
    (tmp_path / "harmful.py").write_text(HARMFUL)
    events: list[Event] = []
    alone = live(tmp_path, "toy/plain", store="alone")
    beside = live(tmp_path, "toy/plain", store="beside", files=[tmp_path / "harmful.py"], emit=events.append)
    warnings = [event.text for event in events if isinstance(event, Warned)]
    assert any("no disk" in text for text in warnings)
    assert sum("SystemExit" in text for text in warnings) == 4
    logits = [np.stack(list(folder.predictions()["logits"])) for folder in (alone, beside)]
    assert np.array_equal(*logits)
    assert alone.result().test == beside.result().test
    assert alone.history()[-1].val_top1 == beside.history()[-1].val_top1


def test_what_cannot_track_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    host = discover([*files("tensorboard"), *files("mlflow")])
    with pytest.raises(UsageError, match=r"unknown tracker 'tensorbord'.*Did you mean 'tensorboard'"):
        host.refuse_unfit_trackers(["tensorbord"])
    with pytest.raises(UsageError, match="unknown tracker 'deformable'"):
        host.refuse_unfit_trackers(["deformable"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"--track mlflow needs mlflow, which is not installed: pip install"):
        host.refuse_unfit_trackers(["mlflow"])


def test_a_name_never_leaves_the_store() -> None:
    from flowers_bench_plugins.tensorboard import directory

    trial = {"technique": "../..", "variant": "/etc", "dataset": {"name": "a/b"}, "seed": 0, "id": "ab12"}
    found = directory(trial, {"store": "/runs"})
    assert found.parent == Path("/runs/tensorboard")
    assert re.fullmatch(r"[\w.-]+", found.name)
