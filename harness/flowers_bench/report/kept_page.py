"""What the page says of each row is computed once: it stands in the store's index until a trial of the row changes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from flowers_bench.report.aggregate import Row
from flowers_bench.report.explorer import Mistakes, mistakes
from flowers_bench.report.plots import Series, series
from flowers_bench.store import index

#: The file of the index.
_FILE = "page"


class Part(TypedDict):
    """What follows from a row's trials alone, and not from the other rows of the page."""

    series: Series
    mistakes: Mistakes


_SERIES, _MISTAKES = Series.__annotations__.keys(), Mistakes.__annotations__.keys()


def page_parts(rows: Sequence[Row]) -> list[Part]:
    """Make the parts of these rows, from the store's index where that has them. Raises `Unreadable` for a damaged history."""
    kept: dict[Path, index.Lines] = {}
    parts = []
    for row in rows:
        root = row.trials[0].folder.path.parent
        if root not in kept:
            kept[root] = index.Lines.of(root, _FILE)
        part = _known(kept[root], row)
        if part is None:
            part = Part(series=series(row), mistakes=mistakes(row))
            kept[root].put(row.id, row.key, part)
        # The only thing that other rows have a say in.
        part["series"]["name"] = row.name
        parts.append(part)
    shown = {row.id for row in rows}
    for lines in kept.values():
        lines.save(shown.__contains__)
    return parts


def _known(lines: index.Lines, row: Row) -> Part | None:
    text = lines.get(row.id, row.key)
    # Not of the form that is written above: as if there were none.
    with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
        found = json.loads(text) if text is not None else {}
        part: Part = {"series": found["series"], "mistakes": found["mistakes"]}
        if part["series"].keys() == _SERIES and part["mistakes"].keys() == _MISTAKES:
            return part
    return None
