"""Numbers and names as people, Markdown and spreadsheets read them."""

from __future__ import annotations

import json
import re

from flowers_bench.util.text import printable


def percent(share: float | None) -> str:
    """A share as percent with one decimal."""
    return "-" if share is None else f"{100 * share:.1f}"


def percent_interval(low: float, high: float) -> str:
    """An interval of shares, in percent."""
    return f"[{percent(low)}, {percent(high)}]"


def points_interval(low: float, high: float) -> str:
    """An interval of differences between shares, in points."""
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def count(number: float | None) -> str:
    """11228838 as 11.2 M."""
    if number is None:
        return "-"
    if number >= 1e9:
        return f"{number / 1e9:.2f} G"
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,.0f}"


def energy(joules: float | None) -> str:
    """Joules, or kilojoules from a thousand on."""
    if joules is None:
        return "-"
    return f"{joules:.3g} J" if joules < 1000 else f"{joules / 1000:,.1f} kJ"


def duration(seconds: float | None) -> str:
    """Seconds, or minutes from two on."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def size(number: float | None) -> str:
    """Bytes as MiB."""
    return "-" if number is None else f"{number / 2**20:,.0f} MiB"


def milliseconds(number: float | None) -> str:
    """Milliseconds with three digits."""
    return "-" if number is None else f"{number:.3g} ms"


def rate(number: float | None) -> str:
    """Images per second."""
    return "-" if number is None else f"{number:,.3g}/s" if number < 1000 else f"{number:,.0f}/s"


def plain(number: float | None) -> str:
    """Three digits, zeros at the end among them, so that a column's figures are equally exact."""
    return "-" if number is None else f"{number:#.3g}".removesuffix(".")


def p_value(p: float) -> str:
    """Two significant digits, and never zero."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def markdown_cell(text: str) -> str:
    """Text that Markdown shows as it stands, in a table or in a line of its own: nothing in it ends a cell, opens a tag,
    becomes a link, a picture, code, a formula, a heading or a list, or calls somebody."""
    line = " ".join(printable(text).split())
    line = _ACTS.sub(r"\\\g<0>", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    line = re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", line)
    return _CALLS.sub(r"\g<0><!-- -->", line)


#: What is text after a backslash: what acts anywhere, underscores but inside a word, brackets before what makes a link of
#: them, the colon or dot by which an address becomes one, and what acts where a line begins.
_ACTS = re.compile(
    r"[\\`*~|$]|(?<![^\W_])_|_(?![^\W_])|!(?=\[)|\](?=[(\[:])|:(?=//)|(?<=www)\."
    r"|^#|^[-+=](?=[-+=\s])|^[+=]$|^\[(?=[ x]\]\s)",
    re.IGNORECASE,
)
#: What GitHub makes a mail, a mention or a reference of, with or without a backslash.
_CALLS = re.compile(r"(?<!\w)[@#](?=\w)|@(?=[\w-]+\.\w)")


def json_text(records: object) -> str:
    """JSON for people and programs: letters of every language as they are, control characters as `\\u009b`."""
    text = json.dumps(records, indent=1, ensure_ascii=False)
    return "".join(c if c in "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in text)


def latex_cell(text: str) -> str:
    """Text that LaTeX prints as it stands, on one line."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(printable(text).split()))
    return re.sub(r"([-,])(?=\1)", r"\1{}", escaped)  # else two hyphens are a dash, two commas a quotation mark


_LATEX = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
}


def inert(value: object) -> object:
    """A cell that neither a spreadsheet nor a terminal obeys: text that begins like a formula, in wide letters too, is
    quoted (OWASP, "CSV injection"), control characters are escaped."""
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value[:1] in tuple("=+-@\t\r\n＝＋－＠﹢﹣﹦﹫") else value)
