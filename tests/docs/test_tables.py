"""The tables of docs/ are those of the CSV files in benchmarks/results/, and the plots were drawn from them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = sorted((ROOT / "docs").rglob("*.md"))
Script = Callable[[str], ModuleType]


@pytest.fixture
def tables(script: Script) -> ModuleType:
    return script("benchmarks/tables.py")


def test_every_page_has_the_tables_of_its_files(tables: ModuleType) -> None:
    for path in PAGES:
        text = path.read_text()
        assert tables.page(text) == text, f"{path}: run python benchmarks/tables.py"


def test_every_file_is_shown_and_says_where_it_comes_from(tables: ModuleType) -> None:
    files = {path.relative_to(RESULTS).as_posix() for path in RESULTS.rglob("*.csv")} - {"provenance.csv"}
    assert set(tables.Table.read("provenance.csv").column("file")) == files
    shown = {name for path in PAGES for name in re.findall(r"<!-- table: (\S+\.csv)", path.read_text())}
    assert shown == files


def test_a_changed_figure_changes_the_page(tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("stage,X %,X % low,X % high,batch\n1,50.0,48.1,52.0,8\n2,,,,32\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    empty = "<!-- table: a.csv; where: batch=8 -->\n<!-- end -->"
    filled = tables.page(empty)
    assert "| stage | X % | batch |\n|---:|---:|---:|\n| 1 | 50.0 [48.1, 52.0] | 8 |\n\n<!-- end -->" in filled
    assert tables.page(filled) == filled
    (tmp_path / "a.csv").write_text("stage,X %,X % low,X % high,batch\n1,51.0,48.1,52.0,8\n")
    assert "51.0 [48.1, 52.0]" in tables.page(filled)


def test_an_interval_without_a_value_is_a_column_of_its_own(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("top-1 %,95 % interval low,95 % interval high,seeds\n50.0,48.1,52.0,3\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.table("a.csv").columns == ["top-1 %", "95 % interval", "seeds"]
    assert tables.table("a.csv; show: seeds | 95 % interval").rows == [["3", "[48.1, 52.0]"]]


def test_what_a_page_asks_for_must_be_there(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("stage,batch\n1,8\n2\n")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    with pytest.raises(ValueError, match=r"a\.csv, line 3: 1 cells under 2 columns"):
        tables.table("a.csv")
    (tmp_path / "a.csv").write_text("stage,batch\n1,8\n")
    with pytest.raises(ValueError, match="no column 'stages'; there are: stage, batch"):
        tables.table("a.csv; show: stages")


def test_the_summary_is_of_rows_that_other_files_have(tables: ModuleType) -> None:
    def rows(name: str) -> set[tuple[str, ...]]:
        table = tables.Table.read(name)
        columns = ("technique/variant", "test top-1 %", "95 % interval low", "95 % interval high")
        if not set(columns) <= set(table.columns):
            return set()
        return set(zip(*map(table.column, columns), strict=True))

    others = [path for path in (RESULTS / "photographs").glob("*.csv") if path.name != "summary.csv"]
    found = set().union(*(rows(f"photographs/{path.name}") for path in others))
    assert rows("photographs/summary.csv") <= found


def test_the_ratios_of_the_summary_by_hand(tables: ModuleType) -> None:
    """Of the 16 forward rows with batches of 8 and 32, and the five deterministic ones of stage 4."""
    assert next(ratio.range() for ratio in tables.RATIOS) == "1.03 to 1.28"
    assert tables.Ratio(
        "", "", ("performance/kernel-h200.csv",), "deterministic / ours", {"stage": ("4",), "batch": ("32",)}
    ).range() == "1.3 to 1.4"  # fmt: skip


def test_plots_were_drawn_from_these_files(script: Script) -> None:
    for plot in script("benchmarks/plots.py").PLOTS:
        drawn = (ROOT / "docs" / plot.target).read_text()
        assert plot.checksum() in drawn, f"docs/{plot.target}: run python benchmarks/plots.py"


def test_a_plot_is_drawn_alike_each_time_and_has_colours_for_dark_pages(script: Script) -> None:
    plots = script("benchmarks/plots.py")
    plot = next(plot for plot in plots.PLOTS if plot.target == "results/small-cnn.svg")
    text = plot.text()
    assert text == plot.text()
    assert "prefers-color-scheme: dark" in text
    assert "prototypical/euclidean" in text


def test_a_benchmark_writes_a_file_that_tables_reads(
    tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = tables.Table(["stage", "ours / conv2d"])
    found.add(1, "1.28")
    assert capsys.readouterr().out.splitlines() == ["| stage | ours / conv2d |", "| --- | --- |", "| 1 | 1.28 |"]
    found.write(tmp_path / "a.csv")
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert tables.Table.read("a.csv") == found
