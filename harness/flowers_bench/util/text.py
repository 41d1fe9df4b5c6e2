"""Text of others, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Text that a terminal shows and does not obey: control characters other than line feed and tab as `\\x1b`.

    Names of classes, trials and plugins come from folders, results and code of others.
    """
    return "".join(
        c if c in "\n\t" or c.isprintable() or (c.isspace() and ord(c) > 0xA0) else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def text_of(error: BaseException) -> str:
    """The message of an exception of somebody else's class, which may be broken itself."""
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"
