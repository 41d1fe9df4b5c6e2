"""Text of others, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape text so that a terminal shows and does not obey it: control characters other than line feed and tab as
    `\x1b`.

    Names of classes, trials and plugins come from folders, results and code of others.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c in "\n\t" or c.isprintable() or (c.isspace() and ord(c) > 0xA0) else _escaped(c) for c in text
    )


def counted(number: int, noun: str) -> str:
    """Write how many there are: `1 trial`, `2 trials`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def text_of(error: BaseException) -> str:
    """Give the message of an exception, whose class may be somebody else's and broken itself."""
    try:
        return str(error)
    except Exception:
        return "(its message cannot be shown)"
