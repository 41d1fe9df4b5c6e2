"""The index of a store: it changes nothing but the time, and is never believed about files that are others now."""

from __future__ import annotations

import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from stored import outcomes, store_trial

from flowers_bench.cli import main
from flowers_bench.report import kept_rows
from flowers_bench.store import index
from flowers_bench.store.folder import Store, TrialFolder

COMMANDS = [
    ["leaderboard"],
    ["leaderboard", "--wide"],
    ["leaderboard", "--trials"],
    *(["leaderboard", "--format", name] for name in ("md", "latex", "csv", "json")),
    ["compare"],
    ["compare", "--format", "json"],
]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six finished trials of two techniques, whose files count as settled and as enough for an index."""
    monkeypatch.setattr(index, "LEAST", 2)
    monkeypatch.setattr(index, "SETTLED", 0)
    root = tmp_path / "runs"
    for seed in range(3):
        store_trial(root, "rose/plain", seed, outcomes(seed, 0.7, 60))
        store_trial(root, "rose/double", seed, outcomes(seed + 9, 0.8, 60))
    return root


def printed(capsys: pytest.CaptureFixture[str], root: Path, *command: str) -> tuple[int | str | None, str, str]:
    """Run a command on the store; give exit code, stdout and stderr."""
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["flowers-bench", *command, "--store", str(root)])
        with pytest.raises(SystemExit) as exit:
            main()
    return (exit.value.code or 0, *capsys.readouterr())


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, reading a whole trial or computing a row fails."""

    def fail(*_: object) -> None:
        raise AssertionError("this was to come from the index")

    def start() -> None:
        monkeypatch.setattr(TrialFolder, "check", fail)
        monkeypatch.setattr(kept_rows, "build_row", fail)

    return start


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_output_is_the_same_without_an_index_with_a_new_and_with_an_old_one(
    command: list[str], store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, unread: Callable[[], None]
) -> None:  # fmt: skip
    monkeypatch.setattr(index, "LEAST", 99)
    without = printed(capsys, store, *command)
    assert not (store / index.FOLDER).exists()
    monkeypatch.setattr(index, "LEAST", 2)
    new = printed(capsys, store, *command)
    assert (store / index.FOLDER / "trials").is_file()
    unread()
    old = printed(capsys, store, *command)
    assert without == new == old
    assert without[0] == 0


def test_the_page_is_the_same_too(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = []
    for name in ("without", "new", "old"):
        if name == "without":
            (store / index.FOLDER).write_text("no folder can be made here")
        page = tmp_path / f"{name}.html"
        assert printed(capsys, store, "report", "--output", str(page))[0] == 0
        lines = page.read_text().splitlines()
        pages.append([line for line in lines if "UTC" not in line])  # when it was made
        if name == "without":
            (store / index.FOLDER).unlink()
    assert (store / index.FOLDER / "trials").is_file()
    assert pages[0] == pages[1] == pages[2]


def test_what_has_changed_is_read_again(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = printed(capsys, store, "leaderboard")
    folder = Store(store).finished()[0]
    path = folder.path / "result.json"
    path.write_text(path.read_text()[:-9])
    code, out, error = printed(capsys, store, "leaderboard")
    assert (code, str(path) in error) == (1, True)
    assert out != before[1]
    store_trial(store, "rose/double", 5, outcomes(5, 0.9, 60))
    assert "4" in printed(capsys, store, "leaderboard", "--format", "csv")[1]


def test_a_changed_prediction_changes_the_row(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = printed(capsys, store, "leaderboard", "--format", "json")
    folder = Store(store).finished()[0]
    table = folder.predictions()
    logits = table["logits"].map(lambda values: list(reversed(values)))
    folder.write_predictions(table.assign(logits=logits))
    after = printed(capsys, store, "leaderboard", "--format", "json")
    shutil.rmtree(store / index.FOLDER)
    assert before != after == printed(capsys, store, "leaderboard", "--format", "json")


@pytest.mark.parametrize(
    "damage",
    [b"", b"nonsense", b"\0" * 4096, None],
    ids=["empty", "nonsense", "zeros", "half"],
)
def test_a_damaged_index_is_made_anew(damage: bytes | None, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = printed(capsys, store, "leaderboard")
    for path in (store / index.FOLDER).iterdir():
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    assert printed(capsys, store, "leaderboard") == before
    assert index.kept(store, "trials", index.code()) is not None


@pytest.mark.parametrize("content", [b"[]", b"[1]", b'{"a": 1}', b'{"a": [1, 2]}', b"{", b"\xff", b"[" * 100_000])
def test_an_index_of_another_form_is_none(content: bytes, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = printed(capsys, store, "leaderboard")
    for path in list((store / index.FOLDER).iterdir()):
        key = path.read_bytes()[32:].partition(b"\n")[0].decode()
        if path.name.startswith(("trials", "row")):
            index.keep(store, path.name, key, content)
        else:
            path.unlink()
    assert printed(capsys, store, "leaderboard") == before


def test_an_index_that_came_with_a_copied_store_is_not_believed(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(capsys, store, "leaderboard")
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)  # times and sizes are the same
    path = Store(copy).finished()[0].path / "result.json"
    status, text = path.stat(), path.read_text()
    path.write_text(text.replace("{", "[", 1))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    code, _, error = printed(capsys, copy, "leaderboard")
    assert (code, str(path) in error) == (1, True)


def test_another_version_reads_anew(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed(capsys, store, "leaderboard")
    assert Store(store).read().finished
    monkeypatch.setattr(index, "code", lambda: "another")
    read: list[Path] = []
    check = TrialFolder.check
    monkeypatch.setattr(TrialFolder, "check", lambda self: read.append(self.path) or check(self))
    Store(store).read()
    assert len(read) == 6


def test_a_store_that_cannot_be_written_to_works_without(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, error = printed(capsys, store, "leaderboard")
    assert (code, error) == (0, "")
    assert not (store / index.FOLDER).exists()


def test_few_trials_have_no_index(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "LEAST", 7)
    printed(capsys, store, "leaderboard")
    assert not (store / index.FOLDER).exists()


def test_a_file_that_was_written_just_now_is_read_again(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "SETTLED", 3600 * 10**9)
    Store(store).read()
    assert not (store / index.FOLDER).exists(), "its time may not tell the next change from this one"


def test_several_writers_leave_a_whole_index(store: Path, unread: Callable[[], None]) -> None:
    contents = []

    def read() -> None:
        for _ in range(5):
            contents.append(len(Store(store).read().finished))
            shutil.rmtree(store / index.FOLDER, ignore_errors=True)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Store(store).read()
    assert set(contents) == {6}
    unread()
    assert len(Store(store).read().finished) == 6


def test_a_removed_trial_leaves_the_index(store: Path) -> None:
    folders = Store(store).read().finished
    shutil.rmtree(folders[0].path)
    store_trial(store, "rose/double", 7, outcomes(7, 0.9, 60))
    Store(store).read()
    assert folders[0].id.encode() not in (store / index.FOLDER / "trials").read_bytes()
