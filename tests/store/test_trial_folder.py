"""The run store: atomic, and honest about damage."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from stored import outcomes, store_trial

from flowers_bench.store.folder import Store
from flowers_bench.store.identity import Protocol
from flowers_bench.store.reading import SCHEMA_VERSION, read_record
from flowers_bench.store.schema import Record
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import write_atomically, write_json


def test_json_round_trip_leaves_no_temporary_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ü": [1, 2.5, None]})
    assert read_record(tmp_path / "a.json", Record).json() == {"ü": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})

    def fails(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fails)
    assert read_record(path, Record).json() == {"old": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    trial = store_trial(tmp_path, "a/b", 0, outcomes(0, 0.7, 40))
    whole = {path.name for path in trial.path.iterdir()}
    for name in (".lock", ".checkpoint.pt.a1b2", ".result.json.c3d4", ".config.json.e5f6"):
        (trial.path / name).write_text("half")
    trial.remove_half_files()  # the last belongs to whoever prepares the trial at the moment
    assert {path.name for path in trial.path.iterdir()} == whole | {".lock", ".config.json.e5f6"}


@pytest.mark.parametrize("report", ["test", "none"])
def test_a_finished_trial_keeps_no_more_than_it_needs(tmp_path: Path, report: str) -> None:
    trial = store_trial(tmp_path, "a/b", 0, outcomes(0, 0.7, 40), protocol=Protocol(report=report))
    for name in ("checkpoint.pt", "model.safetensors"):
        (trial.path / name).write_text("state")
    trial.discard_leftovers()
    assert not (trial.path / "checkpoint.pt").exists()
    assert (trial.path / "model.safetensors").exists() == (report == "test")


def test_killed_writer_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    code = (
        "import sys; from pathlib import Path; from flowers_bench.store.folder import write_json\n"
        "i = 0\nwhile True:\n    write_json(Path(sys.argv[1]), {'n': [i] * 2000}); i += 1"
    )
    for delay in (0.3, 0.35, 0.45):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(delay)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        if path.exists():
            values = read_record(path, Record).json()["n"]
            assert len(values) == 2000
            assert len(set(values)) == 1


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00", "[" * 100000])
def test_damaged_json_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UsageError, match=r"result\.json"):
        read_record(tmp_path / "result.json", Record)


def test_result_of_another_version_is_refused(tmp_path: Path) -> None:
    folder = store_trial(tmp_path, "a/b", 0, outcomes(0, 0.7, 40))
    result = folder.path / "result.json"
    record = json.loads(result.read_text())
    for change, message in (
        (
            {"schema_version": SCHEMA_VERSION + 1},
            rf"schema version {SCHEMA_VERSION + 1}; .* reads up to {SCHEMA_VERSION}",
        ),
        ({"schema_version": None}, "no schema version"),
        ({"class_names": ["rose"]}, "it names 1 classes of 4"),
    ):
        result.write_text(json.dumps({**record, **change}))
        with pytest.raises(UsageError, match=message):
            folder.result()
    (folder.path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config\.json is damaged: it has no schema version"):
        folder.config()


def test_find_by_prefix(tmp_path: Path) -> None:
    for name in ("abc1", "abd2"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    store = Store(tmp_path)
    assert store.find("abc").id == "abc1"
    with pytest.raises(UsageError, match="2 trials"):
        store.find("ab")
    with pytest.raises(UsageError, match="no trial"):
        store.find("x")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_reading_a_trial_starts_no_threads(tmp_path: Path) -> None:
    """Where Arrow's own threads are still starting when the process ends, C++ aborts it: exit code 134 after a good page."""
    store_trial(tmp_path, "a/b", 0, outcomes(0, 0.7, 40))
    program = f"""
import os, numpy, pyarrow
from pathlib import Path
from flowers_bench.store.folder import Store
def threads(): return len(os.listdir("/proc/self/task"))
before = threads()
(folder,) = Store(Path({str(tmp_path)!r})).trials()
folder.check(); folder.predictions(); folder.scores(); folder.retrieval_shares()
print(threads() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0"]
