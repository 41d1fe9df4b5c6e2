"""A table as text with what must stand under it, in the terminal and as Markdown: one look for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flowers_bench.report.formatting import markdown_cell
from flowers_bench.util.text import printable


@dataclass(frozen=True)
class Table:
    """One table as text.

    Attributes:
        title: what it is about; may be empty.
        left: how many columns, from the first, hold names.
        notes: what must stand under it.
    """

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    left: int
    notes: tuple[str, ...]


class _Stdout(Console):
    """A closed pipe is the command's to answer, not rich's, which ends the process with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def stdout() -> Console:
    """As wide as the terminal, or as wide as tables need where stdout is no terminal."""
    console = _Stdout(highlight=False, emoji=False)
    return console if console.is_terminal else _Stdout(highlight=False, emoji=False, width=200)


def print_table(table: Table, console: Console) -> None:
    """The table, then its notes, a line each."""
    shown = RichTable(title=escape(printable(table.title)) or None, title_justify="left")
    for index, column in enumerate(table.head):
        shown.add_column(column, justify="left" if index < table.left else "right", overflow="fold")
    for line in table.body:
        shown.add_row(*(escape(printable(cell)) for cell in line))
    console.print(shown)
    for note in table.notes:
        console.print(printable(note), markup=False, soft_wrap=True)


def markdown_lines(table: Table) -> list[str]:
    """A GitHub table, and its notes as a list."""
    lines = [f"**{markdown_cell(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join(map(markdown_cell, table.head)) + " |")
    lines.append("|" + "---|" * table.left + "---:|" * (len(table.head) - table.left))
    lines += ["| " + " | ".join(map(markdown_cell, line)) + " |" for line in table.body]
    return [*lines, "", *(f"- {markdown_cell(note)}" for note in table.notes)]
