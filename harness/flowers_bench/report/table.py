"""Tables of text with notes below them, in the terminal and as Markdown; all tables look the same."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from flowers_bench.report.formatting import markdown_cell
from flowers_bench.util.text import printable


@dataclass(frozen=True)
class Table:
    """One table of text.

    Attributes:
        title: the title; may be empty.
        head: the names of the columns.
        body: the cells of each line.
        left: how many columns, from the first, hold names, and are aligned to the left.
        notes: what must stand below the table.
    """

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    left: int
    notes: tuple[str, ...]


class _Stdout(Console):
    """A console that leaves a closed pipe to the command; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`, which `cli.main` handles."""
        raise BrokenPipeError


def stdout() -> Console:
    """Make a console as wide as the terminal, or wide enough for all tables if stdout is not a terminal."""
    console = _Stdout(highlight=False, emoji=False)
    return console if console.is_terminal else _Stdout(highlight=False, emoji=False, width=200)


def print_table(table: Table, console: Console) -> None:
    """Print the table, then its notes, each on a line."""
    shown = RichTable(title=escape(printable(table.title)) or None, title_justify="left")
    for index, column in enumerate(table.head):
        shown.add_column(column, justify="left" if index < table.left else "right", overflow="fold")
    for line in table.body:
        shown.add_row(*(escape(printable(cell)) for cell in line))
    console.print(shown)
    for note in table.notes:
        console.print(printable(note), markup=False, soft_wrap=True)


def markdown_lines(table: Table) -> list[str]:
    """Write a GitHub table, and its notes as a list."""
    lines = [f"**{markdown_cell(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join(map(markdown_cell, table.head)) + " |")
    lines.append("|" + "---|" * table.left + "---:|" * (len(table.head) - table.left))
    lines += ["| " + " | ".join(map(markdown_cell, line)) + " |" for line in table.body]
    return [*lines, "", *(f"- {markdown_cell(note)}" for note in table.notes)]
