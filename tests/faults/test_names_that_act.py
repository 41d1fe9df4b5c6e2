"""Names and messages that would do something in a terminal, a spreadsheet or a table: they show as text."""

from __future__ import annotations

import csv
import html
import io
import itertools
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from markdown_it import MarkdownIt
from stored import outcomes, store_trial

from flowers_bench.cli.catalogue import print_all, print_plugins
from flowers_bench.cli.compare import compare
from flowers_bench.cli.figures import figures
from flowers_bench.cli.leaderboard import print_leaderboard
from flowers_bench.cli.show import show
from flowers_bench.contract.host import discover
from flowers_bench.report.formatting import inert, latex_cell, markdown_cell
from flowers_bench.store.folder import Store
from flowers_bench.util.files import file_name, write_json
from flowers_bench.util.text import printable

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
    ids = [folder.id for folder in Store(runs).trials() if folder.config().seed == 0]
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


LINK = "[a](javascript:alert(1))"
#: Texts that a Markdown reader would make something of.
MARKUP = (LINK, f"!{LINK}", "[a][b]", "[b]: javascript:x", f"\\{LINK}", "[a\\](javascript:1)", "<javascript:alert(1)>", "<b>", "<!--",
          "&lt;b&gt; &#91;", "`code`", "**b** __init__ _i_ ~~s~~", "a_b_ c__d", "a|b", "# h", "## h", "- x", "+ x", "+", "=== x", "---",
          "***", "- - -", "1. x", "12345) x", "[x] task", "> quote", "a\n\n# b", "\\", "`", "a\\. b", "1\\. b", "$x$", "@who", "see #12",
          "https://e.vil", "www.e.vil", "who@e.vil")  # fmt: skip


def rendered(markdown: str) -> tuple[set[str], str]:
    """What a Markdown reader makes of it: the names of its tags, and its text."""
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(markdown).replace("<!-- -->", "")
    return set(re.findall(r"<([a-z!]\w*)", page)), html.unescape(re.sub(r"<[^>]*>", "", page))


@pytest.mark.parametrize("text", MARKUP)
@pytest.mark.parametrize("around", ["| a |\n|---|\n| {} |", "- {}", "**{}**", "- note: {}"])
def test_markdown_shows_text_as_it_stands(text: str, around: str) -> None:
    tags, shown = rendered(around.format(markdown_cell(text)))
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td", "ul", "li", "p", "strong"}
    assert " ".join(text.split()) in shown


def test_random_text_is_never_markup() -> None:
    rng = np.random.default_rng(0)
    pieces = [*"[]()!<>&#*_`~|\\:-+1.=^{}\"' ", "//", "www.", "http", "javascript:", "a", "b.c", " x "]
    for _ in range(1000):
        text = "".join(rng.choice(pieces, rng.integers(1, 12))).strip() or "a"
        tags, shown = rendered(f"| a |\n|---|\n| {markdown_cell(text)} |")
        assert tags <= {"table", "thead", "tbody", "tr", "th", "td"}, text
        assert " ".join(text.split()) in shown, text


def test_addresses_and_callings_do_not_become_links() -> None:
    """Which GitHub makes of text, with a backslash before them or without; its reader is not at hand here."""
    assert markdown_cell("https://e.vil www.e.vil") == r"https\://e.vil www\.e.vil"
    assert markdown_cell("@who a@b.co #12") == "@<!-- -->who a@<!-- -->b.co #<!-- -->12"


def test_figures_of_our_own_need_no_escapes() -> None:
    for text in (
        "82.5 [80.0, 85.1]",
        "-",
        "+3.1",
        "[+0.1, +0.2]",
        "recall@1 %",
        "a/b-c x=convnextv2_nano.in1k (3 seeds)",
    ):
        assert markdown_cell(text) == text


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Two techniques on two backbones; every name that a store holds is a link."""
    for seed, name, backbone in itertools.product(range(2), ("x", "plain"), (LINK, "plain")):
        store_trial(
            tmp_path, f"{LINK}/{name}", seed, outcomes(seed, 0.7), backbone=backbone, weights={"name": LINK, "sha256": "ab" * 32},
            dataset={"name": LINK, "notes": [LINK]}, options={LINK: LINK}, class_names=(LINK,) * 4, code={LINK: LINK},
            data_options={LINK: LINK}, result=under_stress(),
        )  # fmt: skip
    return tmp_path


def under_stress() -> dict[str, Any]:
    return {"stress": {LINK: [{"level": 1, "label": LINK, "top1": 0.5}]}, "robustness": {"rotation": 0.5}}


def test_markdown_of_a_store_has_no_link(linked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_leaderboard(linked, "md", trials=False)
    compare([f"{LINK}/{name} backbone=plain" for name in ("x", "plain")], linked, "md")
    tags, shown = rendered(capsys.readouterr().out)
    assert not tags & {"a", "img", "code", "em", "h1"}
    assert shown.count(f"{LINK}/x backbone={LINK}") > 1


@pytest.mark.parametrize("label", ["$\\frac{$", "_hidden", "a\x1b[2J\x00", "<b>&amp;"])
def test_figures_draw_names_as_text(tmp_path: Path, label: str) -> None:
    store_trial(tmp_path / "runs", f"{label}/x", 0, outcomes(0, 0.7), dataset={"notes": ["$x"]})
    suite = tmp_path / "mine.toml"
    title = '[[figures]]\nname = "c"\ntitle = "T $\\\\frac{$"\ndraw = "curves"\n'
    technique = "".join(f"\\u{ord(c):04x}" for c in f"{label}/x")
    suite.write_text(f'[[trials]]\ntechnique = "a"\n{title}technique = "{technique}"\n')
    figures(str(suite), tmp_path / "runs", tmp_path)
    words = " ".join(ElementTree.parse(tmp_path / "c-meadow-resnet18.svg").getroot().itertext())
    assert f"{printable(label)}/x: 70.0 [" in words
    assert "T $\\frac{$" in words


def test_latex_rows_do_not_begin_with_an_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for label in ("[9cm]/x", "*/x"):
        store_trial(tmp_path, label, 0, outcomes(0, 0.7), dataset={"name": "two\n\nlines"})
    print_leaderboard(tmp_path, "latex", trials=False)
    told = capsys.readouterr().out
    assert "\n    {}[9cm]/x & " in told
    assert "\n    {}*/x & " in told
    assert r"\caption{two lines: " in told
    assert (
        latex_cell("a--b 'c' `d`")
        == r"a-{}-b \textquotesingle{}c\textquotesingle{} \textasciigrave{}d\textasciigrave{}"
    )


def test_a_name_is_no_emoji(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_trial(tmp_path, ":skull:/x", 0, outcomes(0, 0.7), dataset={"notes": [":skull:"]})
    print_leaderboard(tmp_path, "text", trials=False)
    assert capsys.readouterr().out.count(":skull:") == 2


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠"])
def test_no_cell_begins_like_a_formula(sign: str) -> None:
    assert str(inert(f"{sign}1+1"))[0] == "'"
