"""A full disk at the other end of the output, a reader that has gone, too little memory: one line, and no traceback."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from stored import outcomes, store_trial

from flowers_bench.store.reading import read_record
from flowers_bench.store.schema import Record
from flowers_bench.util.errors import shortage

SCRIPT = str(Path(sys.executable).with_name("flowers-bench"))
FULL = Path("/dev/full")
SUITE = """
[[trials]]
technique = "wise/good"

[[figures]]
name = "curves"
title = "How it trained"
draw = "curves"
technique = ["wise/good", "wise/worse"]
"""
#: Commands that print much, or slowly.
COMMANDS = [
    "--version", "list", "leaderboard", "leaderboard --format csv", "leaderboard --format json",
    "compare", "compare --format csv", "compare --format json", "compare --format md", "figures",
]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        store_trial(root, "wise/good", seed, outcomes(seed, 0.8, 60))
        store_trial(root, "wise/worse", seed, outcomes(seed + 2, 0.6, 60))
    (root / "mine.toml").write_text(SUITE)
    return root


def arguments_of(command: str, runs: Path, tmp_path: Path) -> list[object]:
    """The words of a command on this store."""
    name, *options = command.split()
    more: dict[str, list[object]] = {
        "compare": ["wise/good", "wise/worse", "--out", runs],
        "figures": [runs / "mine.toml", runs, "-o", tmp_path / "figures"],
        "leaderboard": ["--out", runs],
    }
    return [name, *more.get(name, []), *options]


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    words = [SCRIPT, *map(str, arguments)]
    return subprocess.run(words, stderr=subprocess.PIPE, text=True, timeout=240, check=False, **options)  # type: ignore[call-overload,no-any-return]


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, as Linux has it")
@pytest.mark.parametrize("command", COMMANDS)
def test_output_that_cannot_be_written_is_said(runs: Path, tmp_path: Path, command: str) -> None:
    with FULL.open("w") as full:
        done = run(*arguments_of(command, runs, tmp_path), stdout=full)
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_who_has_seen_enough_is_no_failure(runs: Path, tmp_path: Path, command: str) -> None:
    words = [SCRIPT, *map(str, arguments_of(command, runs, tmp_path))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        told = process.stderr.read()
        assert process.wait(240) == 0
    assert told == b""
    if command == "figures":  # which are for whoever looks into the folder
        assert list((tmp_path / "figures").iterdir())


def test_a_name_that_the_encoding_lacks_is_escaped(runs: Path, tmp_path: Path) -> None:
    """Such as a file's of bytes that are no UTF-8, or a flower's where stdout is ASCII."""
    strict = {**os.environ, "PYTHONIOENCODING": "ascii:strict"}
    done = run("report", runs, "-o", tmp_path / "Übersicht.html", stdout=subprocess.PIPE, env=strict)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\xdcbersicht.html: 4 trials" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="limits of the address space are Linux's")
@pytest.mark.parametrize("mebibytes", [150, 600])
def test_too_little_memory_is_said(runs: Path, mebibytes: int) -> None:
    limit = mebibytes << 20
    done = run(
        "leaderboard",
        "--out",
        runs,
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "there is not enough memory" in done.stderr


def test_a_file_is_not_called_damaged_because_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.json").write_text("{}")

    def fails(*arguments: object, **options: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr("flowers_bench.store.reading.read_regular", fails)
    monkeypatch.setattr("flowers_bench.store.reading._affordable", lambda: False)
    with pytest.raises(MemoryError):
        read_record(tmp_path / "a.json", Record)


def test_what_is_no_shortage_is_not_called_one() -> None:
    assert shortage(ValueError("no")) is None
    assert shortage(FileNotFoundError(2, "no")) is None
    assert "memory" in str(shortage(ImportError("x.so: failed to map segment from shared object")))
