"""Names and messages that would do something in a terminal, a spreadsheet or a table: they show as text."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from stored import outcomes, store_trial

from flowers_bench.cli.catalogue import print_all, print_plugins
from flowers_bench.cli.compare import compare
from flowers_bench.cli.leaderboard import print_leaderboard
from flowers_bench.cli.show import show
from flowers_bench.errors import printable
from flowers_bench.host import discover
from flowers_bench.store import Store, file_name, write_json

ACTS = "\x1b[2J\x1b]0;owned\x07\x9b31m\r\u202e"
FORMULA = "=cmd|'/c calc'!A1"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for seed in range(2):
        dataset = {"name": f"meadow{ACTS}[/bold]", "notes": [ACTS]}
        for label in (f"{FORMULA}{ACTS}/[/x]", "plain/plain"):
            store_trial(tmp_path / "runs", label, seed, outcomes(seed, 0.7), dataset=dataset, class_names=(ACTS,) * 4)
    (folder, *_) = Store(tmp_path / "runs").trials()
    write_json(folder.path / "failure.json", {"kind": "crash", "error": ACTS})
    return tmp_path / "runs"


def assert_harmless(text: str) -> None:
    assert text
    assert not [c for c in text if not c.isprintable() and c not in "\n\t"]


@pytest.mark.parametrize("format", ["text", "md", "latex", "csv", "json"])
def test_leaderboards_do_not_act(runs: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    print_leaderboard(runs, format, trials=False)
    assert_harmless(capsys.readouterr().out)


def test_lists_and_single_trials_do_not_act(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_leaderboard(runs, "text", trials=True)
    for folder in Store(runs).trials():
        show(folder.id, runs, "text")
    assert_harmless(capsys.readouterr().out)


@pytest.mark.parametrize("format", ["text", "md", "csv", "json"])
def test_comparisons_do_not_act(runs: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    ids = [folder.id for folder in Store(runs).trials() if folder.config()["seed"] == 0]
    compare(ids, runs, format)
    assert_harmless(capsys.readouterr().out)


def test_a_spreadsheet_reads_text(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_leaderboard(runs, "csv", trials=False)
    cells = [cell for row in csv.reader(io.StringIO(capsys.readouterr().out)) for cell in row]
    assert any(cell.startswith(f"'{FORMULA}") for cell in cells)
    assert not [cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r")]


def test_text_of_any_language_stays_as_it_is() -> None:
    assert printable("Größe 向日葵 🌻 \u3000ок\n\tx") == "Größe 向日葵 🌻 \u3000ок\n\tx"
    assert printable("a\x1b[2Jb\x9bc") == r"a\x1b[2Jb\x9bc"


@pytest.mark.parametrize("label", ["../../up/x", "/etc/x", f"a{ACTS}/b c"])
def test_words_as_a_files_name_stay_in_their_folder(label: str) -> None:
    name = file_name(f"{label}.onnx")
    assert Path(name).name == name
    assert_harmless(name)


def test_lists_of_plugins_do_not_act(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / f"named{ACTS}.py"
    file.write_text("from flowers_bench import hookimpl\n@hookimpl\ndef trial_started(trial):\n    pass\n")
    print_plugins([file])
    (tmp_path / f"broken{ACTS}.py").write_text("")
    print_all([tmp_path / f"broken{ACTS}.py"])
    told = capsys.readouterr().out
    assert "trial_started" in told
    assert "broken plugin broken" in told
    assert_harmless(told)


@pytest.mark.parametrize("name", ["a\x1b[2J", "", "two\nlines", 7])
def test_a_plugin_with_such_a_name_is_skipped(tmp_path: Path, name: object) -> None:
    source = f"from flowers_bench import Loss, hookimpl\n@hookimpl\ndef register_losses():\n    return [Loss({name!r}, '', build=print)]\n"
    (tmp_path / "named.py").write_text(source)
    error = discover([tmp_path / "named.py"]).plugins["named"].error
    assert error is not None
    assert "expected printable text" in error
    assert_harmless(error)
