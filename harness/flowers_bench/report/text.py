"""The leaderboard in the terminal, and as Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowers_bench.report.comparison_text import sentence
from flowers_bench.report.leaderboard import Group, Leaderboard
from flowers_bench.report.numbers import count, duration, inert, markdown_cell, percent, size
from flowers_bench.report.rows import Row
from flowers_bench.store import TrialFolder

COLUMNS = (
    "technique/variant",
    "backbone",
    "weights",
    "seeds",
    "test top-1 %",
    "95 % interval",
    "mean per class %",
    "val top-1 %",
    "trainable",
    "parameters",
    "training time",
    "peak memory",
)


def cells(row: Row) -> tuple[str, ...]:
    """One row as text, in the order of `COLUMNS`."""
    return (
        row.name,
        row.config["backbone"],
        row.config["weights"]["name"],
        str(len(row.seeds)),
        percent(row.top1.value),
        f"[{percent(row.top1.low)}, {percent(row.top1.high)}]",
        percent(row.mean_per_class),
        percent(row.mean("val", "top1")),
        count(row.mean("cost", "trainable_parameters")),
        count(row.mean("cost", "parameters")),
        duration(row.mean("cost", "seconds")),
        size(row.mean("cost", "peak_rss_bytes")),
    )


def footnotes(group: Group) -> list[str]:
    """What must stand under every table: differences, how intervals were made, notes, hardware."""
    overs = sorted({f"{row.top1.over}" for row in group.rows})
    lines = [sentence(pair, len(group.differences)) for pair in group.differences]
    lines.append(
        f"intervals: 95 %, over {'; '.join(overs)}; the test split was read once, by the checkpoint chosen on validation"
    )
    lines += [f"note: {note}" for note in group.notes]
    lines += [f"measured on: {hardware}" for hardware in group.hardware]
    return lines


def print_text(board: Leaderboard) -> None:
    """Tables to stdout, as wide as the terminal, or as wide as they need where stdout is no terminal."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    for group in board.groups:
        table = Table(title=escape(group.title), title_justify="left")
        for index, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if index < 3 else "right", overflow="fold")
        for row in group.rows:
            table.add_row(*map(escape, cells(row)))
        console.print(table)
        for line in footnotes(group):
            console.print(line, markup=False, soft_wrap=True)


def markdown(board: Leaderboard) -> str:
    """GitHub tables, one per group."""
    lines: list[str] = []
    for group in board.groups:
        lines += [f"**{markdown_cell(group.title)}**", "", "| " + " | ".join(COLUMNS) + " |"]
        lines.append("|" + "---|" * 3 + "---:|" * (len(COLUMNS) - 3))
        lines += ["| " + " | ".join(markdown_cell(cell) for cell in cells(row)) + " |" for row in group.rows]
        lines += ["", *(f"- {markdown_cell(line)}" for line in footnotes(group)), ""]
    return "\n".join(lines)


def csv_text(board: Leaderboard) -> str:
    """One line per row, full precision, with the group in the first column."""
    stream = io.StringIO()
    records = _records(board)
    writer = csv.DictWriter(stream, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: inert(value) for key, value in record.items()} for record in records)
    return stream.getvalue().rstrip("\n")


def json_text(board: Leaderboard) -> str:
    """A list of rows as `csv_text` has them."""
    return json.dumps(_records(board), indent=1, ensure_ascii=False)


def _records(board: Leaderboard) -> list[dict[str, object]]:
    return [
        {
            "group": group.title,
            "name": row.name,
            "backbone": row.config["backbone"],
            "weights": row.config["weights"]["name"],
            "seeds": len(row.seeds),
            "test_top1": row.top1.value,
            "test_top1_low": row.top1.low,
            "test_top1_high": row.top1.high,
            "interval_over": row.top1.over,
            "n_test": row.top1.n_images,
            "mean_per_class": row.mean_per_class,
            "val_top1": row.mean("val", "top1"),
            "trainable_parameters": row.mean("cost", "trainable_parameters"),
            "parameters": row.mean("cost", "parameters"),
            "seconds": row.mean("cost", "seconds"),
            "peak_rss_bytes": row.mean("cost", "peak_rss_bytes"),
            "hardware": "; ".join(group.hardware),
        }
        for group in board.groups
        for row in group.rows
    ]


FORMATS: dict[str, Callable[[Leaderboard], str]] = {"md": markdown, "csv": csv_text, "json": json_text}


def trials_table(folders: Sequence[TrialFolder]) -> str:
    """One line per finished trial: id, name, data, seed, test and validation accuracy."""
    lines = []
    for folder in folders:
        config, result = folder.config(), folder.result()
        lines.append(
            f"{folder.id}  {result['label']:<28} {config['dataset']['name']:<14} {config['backbone']:<20} seed {result['seed']:<3} "
            f"test {percent(result['test']['top1'])} %  val {percent(result['val']['top1'])} %"
        )
    return "\n".join(lines)
