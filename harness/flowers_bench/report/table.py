"""Tables of text with notes below them, in the terminal and as Markdown; all tables look the same, and no word is broken."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console

from flowers_bench.report.formatting import markdown_cell
from flowers_bench.util.text import printable

#: Between two columns.
_GAP = "  "


@dataclass(frozen=True)
class Table:
    """One table of text.

    Attributes:
        title: the title; may be empty.
        head: the names of the columns.
        body: the cells of each line.
        left: how many columns, from the first, hold names, and are aligned to the left.
        notes: what must stand below the table.
        spare: names of columns that a narrow terminal may leave out, the first of them first.
    """

    title: str
    head: tuple[str, ...]
    body: tuple[tuple[str, ...], ...]
    left: int
    notes: tuple[str, ...]
    spare: tuple[str, ...] = ()


class _Stdout(Console):
    """A console that leaves a closed pipe to the command; rich would end the process with exit code 1."""

    def on_broken_pipe(self) -> None:
        """Raise `BrokenPipeError`, which `cli.main` handles."""
        raise BrokenPipeError


def stdout() -> Console:
    """Make a console for stdout."""
    return _Stdout(highlight=False, emoji=False)


def terminal_width(console: Console | None = None) -> int | None:
    """Give the width of the terminal that stdout is; None where it is none."""
    console = console or stdout()
    return console.width if console.is_terminal else None


def print_table(table: Table, console: Console) -> None:
    """Print the table and its notes, as wide as the terminal; where there is no terminal, as wide as it takes."""
    width = terminal_width(console)
    for line in [*layout(table, width), *(text for note in table.notes for text in wrapped(note, width))]:
        _print(line, console)


def print_lines(lines: Iterable[str], console: Console) -> None:
    """Print lines of text, broken between words where the terminal ends; what follows is indented like the beginning."""
    for line in lines:
        for part in wrapped(line, terminal_width(console)) or [""]:
            _print(part, console)


def _print(line: str, console: Console) -> None:
    console.print(line, markup=False, soft_wrap=True)


def wrapped(text: str, width: int | None) -> list[str]:
    """Wrap text between words into lines of at most `width` cells, indented as it is; a longer word has its own line."""
    text = printable(text)
    indent = text[: len(text) - len(text.lstrip(" "))]
    if width is None or cell_len(text) <= width:
        return [text]
    lines: list[str] = []
    for word in text.split():
        if lines and cell_len(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(indent + word)
    return lines


def _name_parts(name: str, width: int) -> list[str]:
    """Split a name between words, and where that is not enough, after the slash of `technique/variant`."""
    parts: list[str] = []
    for line in wrapped(name, width):
        while cell_len(line) > width and "/" in line[:-1]:
            head, _, line = line.partition("/")
            parts.append(f"{head}/")
        parts.append(line)
    return parts


def layout(table: Table, width: int | None) -> list[str]:
    """Arrange the table in lines of at most `width` cells; None for as many as it takes.

    Names are broken between words, and after a slash. Where that is not enough, columns in `spare` are left out and named below; where that
    is not, each line of the table becomes a paragraph. A word longer than `width` is not broken.
    """
    table = _one_line_cells(table)
    title = wrapped(table.title, width) if table.title else []
    fitted, widths = table, _widths(table, width)
    for column in table.spare:
        if widths is None:
            fitted = _without(fitted, column)
            widths = _widths(fitted, width)
    if widths is None:
        return [*title, *(line for row in table.body for line in _paragraph(table, row, width))]
    left_out = [column for column in table.head if column not in fitted.head]
    note = wrapped(f"left out, as the terminal is narrow: {', '.join(left_out)}", width) if left_out else []
    head = _row(fitted.head, widths, fitted.left, bottom=True)
    rule = _GAP.join("─" * size for size in widths)
    body = [line for row in fitted.body for line in _row(row, widths, fitted.left)]
    return [*title, *head, rule, *body, *note]


def _one_line_cells(table: Table) -> Table:
    body = tuple(tuple(" ".join(printable(cell).split()) for cell in row) for row in table.body)
    return Table(table.title, table.head, body, table.left, table.notes, table.spare)


def _widths(table: Table, width: int | None) -> list[int] | None:
    """Give each column its width in cells; None if they do not fit. Numbers stay whole; what room there is goes to their
    headings, so that none takes three lines, and then to names."""
    columns = list(zip(table.head, *table.body, strict=True))
    whole = [max(_two_lines(head), *map(cell_len, cells), 1) for head, *cells in columns]
    if width is None:
        return whole
    least = [
        max(map(_longest_part, column))
        if index < table.left
        else max(_longest_word(column[0]), *map(cell_len, column[1:]), 1)
        for index, column in enumerate(columns)
    ]
    room = width - len(_GAP) * (len(columns) - 1) - sum(least)
    if room < 0:
        return None
    for index in (*range(table.left, len(columns)), *range(table.left)):
        more = min(room, whole[index] - least[index])
        least[index] += more
        room -= more
    return least


def _longest_word(text: str) -> int:
    return max(map(cell_len, text.split()), default=0)


def _two_lines(heading: str) -> int:
    """Give the width that a heading takes on two lines at most, broken between words."""
    words = heading.split()
    breaks = [(" ".join(words[:place]), " ".join(words[place:])) for place in range(1, len(words))]
    return min((max(map(cell_len, lines)) for lines in breaks), default=cell_len(heading))


def _longest_part(name: str) -> int:
    return max((cell_len(part) for word in name.split() for part in word.replace("/", "/ ").split()), default=0)


def _without(table: Table, column: str) -> Table:
    keep = [index for index, name in enumerate(table.head) if name != column]
    left = sum(index < table.left for index in keep)
    body = tuple(tuple(row[index] for index in keep) for row in table.body)
    return Table(table.title, tuple(table.head[index] for index in keep), body, left, table.notes, table.spare)


def _row(cells: Sequence[str], widths: Sequence[int], left: int, *, bottom: bool = False) -> list[str]:
    """Write one row, which takes several lines where a cell does; shorter cells stand at the top, or at the bottom."""
    parts = [
        _name_parts(cell, size) if index < left else wrapped(cell, size)
        for index, (cell, size) in enumerate(zip(cells, widths, strict=True))
    ]
    height = max(map(len, parts))
    filled = [[""] * (height - len(part)) + part if bottom else part + [""] * (height - len(part)) for part in parts]
    lines = []
    for number in range(height):
        pieces = []
        for index, (part, size) in enumerate(zip(filled, widths, strict=True)):
            room = " " * (size - cell_len(part[number]))
            pieces.append(part[number] + room if index < left else room + part[number])
        lines.append(_GAP.join(pieces).rstrip())
    return lines


def _paragraph(table: Table, row: Sequence[str], width: int | None) -> list[str]:
    """Write one row as its name, and below it its cells, each after its column's name."""
    lines = wrapped(row[0], width)
    line = ""
    for name, cell in zip(table.head[1:], row[1:], strict=True):
        item = f"{name}: {cell}"
        longer = f"{line}; {item}" if line else f"  {item}"
        if line and width is not None and cell_len(longer) > width:
            lines += wrapped(line, width)
            longer = f"  {item}"
        line = longer
    return [*lines, *wrapped(line, width)]


def markdown_lines(table: Table) -> list[str]:
    """Write a GitHub table, and its notes as a list."""
    lines = [f"**{markdown_cell(table.title)}**", ""] if table.title else []
    lines.append("| " + " | ".join(map(markdown_cell, table.head)) + " |")
    lines.append("|" + "---|" * table.left + "---:|" * (len(table.head) - table.left))
    lines += ["| " + " | ".join(map(markdown_cell, line)) + " |" for line in table.body]
    return [*lines, "", *(f"- {markdown_cell(note)}" for note in table.notes)]
