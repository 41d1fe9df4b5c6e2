"""Convert numbers and names to text for people, Markdown, LaTeX, JSON and spreadsheets. A missing number is `-`."""

from __future__ import annotations

import json
import re

from flowers_bench.util.text import printable


def percent(share: float | None) -> str:
    """Write a share from 0 to 1 as percent with one decimal, without the sign."""
    return "-" if share is None else f"{100 * share:.1f}"


def percent_interval(low: float, high: float) -> str:
    """Write an interval of shares in percent."""
    return f"[{percent(low)}, {percent(high)}]"


def points_interval(low: float, high: float) -> str:
    """Write an interval of differences between shares in points, with signs."""
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def count(number: float | None) -> str:
    """Write a count with a unit: 11228838 is `11.2 M`."""
    if number is None:
        return "-"
    if number >= 1e9:
        return f"{number / 1e9:.2f} G"
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number:,.0f}"


def energy(joules: float | None) -> str:
    """Write an energy, given in joules, as joules, or as kilojoules from a thousand on."""
    if joules is None:
        return "-"
    return f"{joules:.3g} J" if joules < 1000 else f"{joules / 1000:,.1f} kJ"


def duration(seconds: float | None) -> str:
    """Write a time, given in seconds, as seconds, or as minutes from two minutes on."""
    if seconds is None:
        return "-"
    return f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def size(number: float | None) -> str:
    """Write a size, given in bytes, as MiB."""
    return "-" if number is None else f"{number / 2**20:,.0f} MiB"


def memory(number: float | None) -> str:
    """Write a size, given in bytes, as MiB, or as GiB from a thousand of them on."""
    if number is None or number < 1000 * 2**20:
        return size(number)
    return f"{number / 2**30:.1f} GiB"


def milliseconds(number: float | None) -> str:
    """Write a time, given in milliseconds, with three significant digits."""
    return "-" if number is None else f"{number:.3g} ms"


def rate(number: float | None) -> str:
    """Write a rate in images per second."""
    return "-" if number is None else f"{number:,.3g}/s" if number < 1000 else f"{number:,.0f}/s"


def plain(number: float | None) -> str:
    """Write three significant digits, including zeros at the end, so that a column's numbers are equally exact."""
    return "-" if number is None else f"{number:#.3g}".removesuffix(".")


def p_value(p: float) -> str:
    """Write a p-value with two significant digits, and never as zero."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def p_equals(p: float) -> str:
    """Write `p = 0.03`, or `p < 0.0001`."""
    return f"p {p_value(p)}" if p < 1e-4 else f"p = {p_value(p)}"


def markdown_cell(text: str) -> str:
    """Escape text so that Markdown shows it unchanged, in a table cell or on a line of its own.

    Nothing in it ends a cell, opens a tag, mentions a user, or becomes a link, picture, code, formula, heading or list.
    """
    line = " ".join(printable(text).split())
    line = _ACTS.sub(r"\\\g<0>", line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))
    line = re.sub(r"^(\d{1,9})([.)])(?=\s|$)", r"\1\\\2", line)
    return _CALLS.sub(r"\g<0><!-- -->", line)


#: What needs a backslash before it: characters that act anywhere; underscores, except inside a word; brackets that would
#: make a link; the colon or dot of an address, which would become a link; and characters that act at the start of a line.
_ACTS = re.compile(
    r"[\\`*~|$]|(?<![^\W_])_|_(?![^\W_])|!(?=\[)|\](?=[(\[:])|:(?=//)|(?<=www)\."
    r"|^#|^[-+=](?=[-+=\s])|^[+=]$|^\[(?=[ x]\]\s)",
    re.IGNORECASE,
)
#: What GitHub turns into a mail address, a mention or a reference, even after a backslash.
_CALLS = re.compile(r"(?<!\w)[@#](?=\w)|@(?=[\w-]+\.\w)")


def json_text(records: object) -> str:
    """Write JSON for people and programs: letters of all languages unchanged, control characters as `\\u009b`."""
    text = json.dumps(records, indent=1, ensure_ascii=False)
    return "".join(c if c in "\n" or printable(c) == c else json.dumps(c)[1:-1] for c in text)


def latex_cell(text: str) -> str:
    """Escape text so that LaTeX prints it unchanged, on one line."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(printable(text).split()))
    return re.sub(
        r"([-,])(?=\1)", r"\1{}", escaped
    )  # LaTeX would print two hyphens as a dash and two commas as a quotation mark


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
    """Make a cell harmless for spreadsheets and terminals: quote what begins like a formula, and escape control characters.

    Full-width characters count as well. Source: OWASP, "CSV injection".
    """
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value[:1] in tuple("=+-@\t\r\n＝＋－＠﹢﹣﹦﹫") else value)
