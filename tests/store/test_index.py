"""The index of a store: it changes nothing but the time, and is never believed about files that are others now."""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from stored import outcomes, store_trial

from flowers_bench.cli import main
from flowers_bench.cli.execute import name_again, prepared
from flowers_bench.executors import memory
from flowers_bench.plan.request import TrialPlan
from flowers_bench.report import kept_page, kept_rows
from flowers_bench.report.aggregate import Records
from flowers_bench.store import index
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import Label
from flowers_bench.util.files import write_json

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
    """From the call on, reading a whole trial or its small files, or computing a row or what the page says of it, fails."""

    def fail(*_: object) -> None:
        raise AssertionError("this was to come from the index")

    def start() -> None:
        monkeypatch.setattr(TrialFolder, "check", fail)
        monkeypatch.setattr(Records, "read", fail)
        monkeypatch.setattr(kept_rows, "build_row", fail)
        monkeypatch.setattr(kept_page, "series", fail)
        monkeypatch.setattr(kept_page, "mistakes", fail)

    return start


def page(capsys: pytest.CaptureFixture[str], root: Path) -> tuple[int | str | None, list[str]]:
    """Write the report of the store; give the exit code and the page's lines, without the time at which it was made."""
    output = root.parent / "page.html"
    code = printed(capsys, root, "report", "--output", str(output))[0]
    return code, re.sub(r"Made [^.]* UTC", "", output.read_text()).splitlines()


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


def test_the_page_is_the_same_too(store: Path, capsys: pytest.CaptureFixture[str], unread: Callable[[], None]) -> None:
    (store / index.FOLDER).write_text("no folder can be made here")
    without = page(capsys, store)
    (store / index.FOLDER).unlink()
    new = page(capsys, store)
    assert {"trials", "records", "page"} <= {path.name for path in (store / index.FOLDER).iterdir()}
    unread()
    assert without == new == page(capsys, store)
    assert without[0] == 0


def _change_result(root: Path) -> None:
    folder = Store(root).finished()[0]
    result = folder.result()
    write_json(folder.path / "result.json", replace(result, cost=replace(result.cost, seconds=777.0)).json())


def _change_history(root: Path) -> None:
    folder = Store(root).finished()[0]
    folder.write_history([replace(epoch, val_top1=0.123) for epoch in folder.history()])


def _change_prediction(root: Path) -> None:
    folder = Store(root).finished()[0]
    table = folder.predictions()
    folder.write_predictions(table.assign(logits=table["logits"].map(lambda values: list(reversed(values)))))


def _change_command(root: Path) -> None:
    folder = Store(root).finished()[0]
    write_json(folder.run_path, replace(folder.run(), command=["--plugin", "tulip"]).json())


def _note_attempt(root: Path) -> None:
    Store(root).finished()[0].note_attempt(7200.0, "finished")


def _add_name(root: Path) -> None:
    Store(root).finished()[0].add_labels([Label("aster", "plain")])


def _add_trial(root: Path) -> None:
    store_trial(root, "rose/double", 5, outcomes(5, 0.9, 60))


def _remove_trial(root: Path) -> None:
    shutil.rmtree(Store(root).finished()[0].path)


def _damage_trial(root: Path) -> None:
    path = Store(root).finished()[0].path / "result.json"
    path.write_text(path.read_text()[:-9])


CHANGES = (
    _change_result,
    _change_history,
    _change_prediction,
    _change_command,
    _note_attempt,
    _add_name,
    _add_trial,
    _remove_trial,
    _damage_trial,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
def test_the_page_shows_what_has_changed(
    change: Callable[[Path], None], store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page(capsys, store)
    change(store)
    after = page(capsys, store)
    shutil.rmtree(store / index.FOLDER)
    assert before != after == page(capsys, store)
    assert after[0] == (1 if change is _damage_trial else 0)


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff", b'{"series": 1}', b'{"config": {}}', b"[" * 100_000, None]
)
def test_a_page_with_a_damaged_index_is_the_same(
    content: bytes | None, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = page(capsys, store)
    for file in ("records", "page"):
        lines = index.Lines.of(store, file)
        assert len(lines.lines) == (6 if file == "records" else 2)
        for name, (state, _) in lines.lines.items():
            lines.lines[name] = state, content or b""
        lines.changed = True
        lines.save(lambda name: True)
        if content is None:  # not the lines, but the file as a whole
            (store / index.FOLDER / file).write_bytes(b"nonsense")
    assert page(capsys, store) == before


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


def test_run_looks_up_what_is_finished(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = Store(store).read().finished
    names = {folder.id: folder.labels() for folder in folders}
    planned = [TrialPlan(folder.trial(), names[folder.id], folder.run()) for folder in folders]
    with monkeypatch.context() as patch:
        for method in ("config", "labels", "any_result", "refuse_links"):
            patch.delattr(TrialFolder, method)  # whatever reads a file of a trial fails
        assert name_again(planned, Store(store)) == []
        assert prepared(planned, Store(store)) == ([], [])
    again = replace(planned[0], labels=(*planned[0].labels, Label("aster", "plain")))
    assert [folder.id for folder in name_again([again, *planned[1:]], Store(store))] == [again.trial.id]
    assert name_again([again, *planned[1:]], Store(store)) == []
    (Store(store).folder(again.trial.id).path / "result.json").unlink()
    assert [folder.id for folder in prepared(planned, Store(store))[0]] == [again.trial.id]
    # None of them was measured on changed images.
    assert len(prepared(planned, Store(store), stress=True)[0]) == 6


def test_a_finished_trial_loses_its_checkpoint_with_an_index_too(store: Path) -> None:
    folder = Store(store).read().finished[0]
    folder.checkpoint_path.write_bytes(b"left by a killed process")
    assert prepared([TrialPlan(folder.trial(), folder.labels(), folder.run())], Store(store)) == ([], [])
    assert not folder.checkpoint_path.exists()


def test_expected_memory_is_looked_up(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget() -> None:  # as a new process would begin
        memory._measured.cache_clear()
        memory._index.cache_clear()

    forget()
    first, *_ = Store(store).finished()
    without = memory.expected_peak(first)
    Store(store).read()
    forget()
    with monkeypatch.context() as patch:
        patch.delattr(TrialFolder, "any_result")
        assert memory.expected_peak(first) == without
    result = first.result()
    write_json(first.path / "result.json", replace(result, cost=replace(result.cost, peak_rss_bytes=9 << 40)).json())
    forget()
    assert memory.expected_peak(first) == 9 << 40
    forget()
