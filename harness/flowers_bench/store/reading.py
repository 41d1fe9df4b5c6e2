"""The one way in which a JSON file of a trial is read: a regular file, plain JSON, of its record's form.

Plain JSON is RFC 8259 and nothing beyond: no NaN, no name twice, no text that is not Unicode, not deep.
"""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flowers_bench.store.schema import Record, form_of
from flowers_bench.util.errors import Unreadable, shortage
from flowers_bench.util.files import read_regular

#: Bytes of the largest JSON file: ten times what a result of 100,000 classes has in lists by class.
LARGEST = 64 << 20
#: Most levels of objects and lists inside each other.
DEEPEST = 32
#: Most digits of a whole number: so many always fit a floating-point number.
DIGITS = 300
#: The folder of a store that has its plans of looks (`decisions.py`).
PLANS = "decisions"
#: Schema version of `result.json` and `config.json`. Readers refuse a newer one.
SCHEMA_VERSION = 2

R = TypeVar("R", bound=Record)


def read_record(path: Path, record: type[R]) -> R:
    """Read the record in a JSON file. Raises `Unreadable`, which names the file and what is wrong with it."""
    (value,) = _parsed(path, lambda text: [text])
    return _made(path, value, record)


def read_versioned(path: Path, record: type[R]) -> R:
    """Read the record in a JSON file as `read_record` does, after a check that this version knows its schema version.
    Raises `Unreadable`."""
    (value,) = _parsed(path, lambda text: [text])
    _made(path, value, Record)
    version = value.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise damaged(path, "is damaged: it has no schema version")
    if version > SCHEMA_VERSION:
        raise Unreadable(
            f"{path} has schema version {version}; this flowers-bench reads up to {SCHEMA_VERSION}. Upgrade flowers-bench."
        )
    return _made(path, value, record)


def read_lines(path: Path, record: type[R]) -> list[R]:
    """Read the records of a file of JSON lines. Raises `Unreadable`."""
    values = _parsed(path, lambda text: text.removesuffix("\n").split("\n") if text else [])
    return [_made(path, value, record, f"line {number}: ") for number, value in enumerate(values, 1)]


def _made(path: Path, value: Any, record: type[R], where: str = "") -> R:
    if fault := form_of(record).fault(value, ""):
        raise damaged(path, f"is damaged: {where}{fault}")
    return record.read(value)


def damaged(path: Path, what: str) -> Unreadable:
    """Make the error for a file of a run store that cannot be used; its message says what to do."""
    places = (path.name, path.parent.name)
    if PLANS in places:
        cure = (
            "By such a plan seeds were added, and without it nothing can be claimed about them: copy it again from where the "
            "trials ran, or remove it together with the trials."
        )
    elif path.name in _SIDE_FILES or "figures" in places:
        cure = "Remove it: the trial does not need it."
    else:
        cure = "Remove its folder to run that trial again."
    return Unreadable(f"{path} {what.rstrip('.')}. {cure}")


#: Files that nothing else depends on.
_SIDE_FILES = ("attempts.jsonl", "failure.json", "environment.json", "files.json")


def _parsed(path: Path, documents: Callable[[str], Sequence[str]]) -> list[Any]:  # JSON that is not checked yet
    try:
        text = read_regular(path, LARGEST, follow_links=False).decode("utf-8")
        return [parse_json(document) for document in documents(text)]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> Exception:
    """Choose the error to raise for a file that could not be read. Where memory or the like was short, it is `error`
    itself: nobody shall remove a file because of that."""
    if shortage(error) and not (isinstance(error, MemoryError) and _affordable()):
        return error
    if isinstance(error, MemoryError):
        return damaged(path, "cannot be read: it asks for more memory than there is")
    if isinstance(error, OSError) and error.strerror:
        kept = (
            ""
            if error.errno in (errno.ENOENT, errno.ELOOP)
            else " Perhaps it is whole, and the disk or its permissions are not."
        )
        return damaged(path, f"cannot be read: {error.strerror}.{kept}")
    return damaged(path, f"cannot be read: {error or type(error).__name__}")


def _affordable() -> bool:
    """Tell whether 256 MiB of memory can be had: then it was the file that needed too much."""
    try:
        bytearray(256 << 20)
    except MemoryError:
        return False
    return True


def parse_json(text: str) -> Any:
    """Read the value that JSON text (RFC 8259) stands for, and nothing beyond that standard.

    Raises:
        ValueError: it is no JSON; or NaN or an infinite number, a number too long, a name twice in one object, half a
            surrogate pair, more than `DEEPEST` levels.
        RecursionError: it is deeper than the parser goes.
    """
    value = json.loads(
        text, parse_constant=_no_constant, parse_float=_finite, parse_int=_short, object_pairs_hook=_each_once
    )
    _refuse_depth(value)
    if "\\ud" in text or "\\uD" in text:
        _refuse_surrogates(value)
    return value


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits:.20} is too large a number")
    return number


def _short(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r:.40} stands twice in one object")
    return found


def _refuse_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise ValueError(f"more than {DEEPEST} objects or lists inside each other")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _refuse_surrogates(value: Any) -> None:
    json.dumps(value, ensure_ascii=False).encode("utf-8")
