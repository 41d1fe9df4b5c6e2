"""Numbers and names as people, Markdown and spreadsheets read them."""

from __future__ import annotations


def percent(share: float | None) -> str:
    """A share as percent with one decimal."""
    return "-" if share is None else f"{100 * share:.1f}"


def count(number: float | None) -> str:
    """11228838 as 11.2 M."""
    if number is None:
        return "-"
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes from two on."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def size(number: float | None) -> str:
    """Bytes as MiB."""
    return "-" if number is None else f"{number / 2**20:,.0f} MiB"


def p_value(p: float) -> str:
    """Two significant digits, and never zero."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def markdown_cell(text: str) -> str:
    """Text that neither ends a cell nor opens a tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def inert(value: object) -> object:
    """A cell that a spreadsheet does not run: text that begins like a formula is quoted."""
    return f"'{value}" if isinstance(value, str) and value[:1] in "=+-@\t\r" else value
