"""A table as text with what must stand under it, in the terminal and as Markdown: one look for all of them."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flowers_bench.report.formatting import markdown_cell
from flowers_bench.util.text import printable


@dataclass(frozen=True)
class Sheet:
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


def print_sheet(sheet: Sheet, console: Console) -> None:
    """The table, then its notes, a line each."""
    table = Table(title=escape(printable(sheet.title)) or None, title_justify="left")
    for index, column in enumerate(sheet.head):
        table.add_column(column, justify="left" if index < sheet.left else "right", overflow="fold")
    for line in sheet.body:
        table.add_row(*(escape(printable(cell)) for cell in line))
    console.print(table)
    for note in sheet.notes:
        console.print(printable(note), markup=False, soft_wrap=True)


def markdown_lines(sheet: Sheet) -> list[str]:
    """A GitHub table, and its notes as a list."""
    lines = [f"**{markdown_cell(sheet.title)}**", ""] if sheet.title else []
    lines.append("| " + " | ".join(map(markdown_cell, sheet.head)) + " |")
    lines.append("|" + "---|" * sheet.left + "---:|" * (len(sheet.head) - sheet.left))
    lines += ["| " + " | ".join(map(markdown_cell, line)) + " |" for line in sheet.body]
    return [*lines, "", *(f"- {markdown_cell(note)}" for note in sheet.notes)]
