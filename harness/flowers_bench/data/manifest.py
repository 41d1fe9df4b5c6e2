"""A table of images: a CSV, TSV or Parquet file with a row for each image, its path and its label.

Columns: `path` and `label`; `split` (train, val, test), if the images are split already; every further column in which each label
has one value is a coarser name of the classes, such as their family. Paths are relative to the table's folder and stay in it;
an absolute path stands for itself.
"""

from __future__ import annotations

import csv
import os
import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers_bench.contract.dataset import DataRequest, Dataset, NameLevel
from flowers_bench.data.files import open_named
from flowers_bench.data.hashes import copies_note, image_contents
from flowers_bench.data.labelled import SPLITS, LabelledFiles, assemble, check_classes, numbered, uneven_note
from flowers_bench.data.listing import SPLIT_NAMES, Classes, names_alike
from flowers_bench.data.splitting import shares_of, split_by_rule, validation_by_rule
from flowers_bench.util.errors import UsageError

_NEEDED = ("path", "label")
#: So many mistakes, or look-alikes, are listed.
_NAMED = 10


@dataclass(frozen=True)
class Row:
    """An image as the table has it.

    Attributes:
        line: where it stands, for people.
        values: the other columns' values.
    """

    line: int
    path: str
    label: str
    split: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A manifest's rows, and the names of the columns that their `values` are of."""

    rows: Sequence[Row]
    further: Sequence[str]


def load(request: DataRequest) -> Dataset:
    """Load the dataset from the table `request.path`. Raises `UsageError` for whatever is missing, empty, twice or
    unreadable, by file and line."""
    table = request.path
    if table is None:
        raise UsageError("--data manifest: name the file itself, such as --data ../my/images.csv.")
    return dataset_of(request, table, read_table(table), table.stem)


def dataset_of(request: DataRequest, table: Path, found: Table, name: str, notes: Sequence[str] = ()) -> Dataset:
    """Make a dataset of a table's rows.

    Args:
        table: its file, in whose folder the images lie.
        name: the dataset's name.
        notes: what is to be said of it first.

    Raises:
        UsageError: as for `load`.
    """
    val, test, seed = shares_of(request.options)
    root, rows = table.parent, _checked(table, found)
    contents = image_contents(
        root, [row.path for row in rows], request.cache_dir, request.progress, read_only=request.read_only
    )
    hashes = {path: content.sha256 for path, content in contents.items()}
    splits, rule = _splits(table, rows, hashes, val, test, seed)
    check_classes(table, splits)
    names = in_order(splits["train"])
    listing = numbered(splits, names)
    levels, passed_over = _levels(found.further, rows, names)
    said = [
        *notes,
        *rule,
        *(
            f"the classes {one!r} and {other!r} look alike, and count as two"
            for one, other in names_alike(table, names)
        ),
        *passed_over,
        *_far_note(rows),
        *copies_note({split: {hashes[path] for path in paths} for split, (paths, _) in listing.items()}),
        *uneven_note(splits),
    ]
    files = LabelledFiles(name, root, "manifest", names, listing, notes=said, name_levels=levels, source=table)
    return assemble(request, files, contents)


def read_table(table: Path) -> Table:
    """Read a manifest's rows; paths are normalised, and labels, splits and further values freed of spaces around them.

    Raises:
        UsageError: it cannot be read, lacks a column or has one twice, a row is too short or too long, or no row is there.
    """
    lines = _parquet(table) if table.suffix.lower() == ".parquet" else _text(table)
    header = [name.strip().lower() for name in next(lines, (0, []))[1]]
    _check_header(table, header)
    path, label = (header.index(name) for name in _NEEDED)
    split = header.index("split") if "split" in header else None
    others = [place for place, name in enumerate(header) if name not in (*_NEEDED, "split")]
    rows = []
    for line, cells in lines:
        if len(cells) != len(header):
            raise UsageError(
                f"{table}, line {line}: {len(cells)} cells, where the first line has {len(header)} columns. Put quotes "
                "around a value that holds the separator."
            )
        rows.append(
            Row(
                line,
                posixpath.normpath(cells[path]) if cells[path] else "",
                cells[label].strip(),
                "" if split is None else cells[split].strip(),
                tuple(cells[place].strip() for place in others),
            )
        )
    if not rows:
        raise UsageError(f"{table} has no rows below its first line.")
    return Table(rows, [header[place] for place in others])


def in_order(labels: Iterable[str]) -> list[str]:
    """Sort labels: by number where all of them are whole numbers, else as text."""
    found = list(labels)
    return sorted(found, key=lambda label: (int(label), label)) if all(map(str.isdecimal, found)) else sorted(found)


def _text(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Read lines of a CSV or TSV file with their numbers, from 1; empty ones are passed over. A byte order mark is no text."""
    with open_named(table, "table") as stream:
        try:
            text = stream.read().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UsageError(f"{table} is not UTF-8 (byte {error.start:,}). Save it as UTF-8.") from None
    first = text.partition("\n")[0]
    # Where a comma separates decimals, spreadsheets write semicolons between cells.
    separator = "\t" if table.suffix.lower() == ".tsv" else ";" if ";" in first and "," not in first else ","
    reader = csv.reader(text.splitlines(keepends=True), delimiter=separator, strict=True)
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield reader.line_num, cells
    except csv.Error as error:
        raise UsageError(f"{table}, line {reader.line_num}: {error}.") from None


def _parquet(table: Path) -> Iterator[tuple[int, list[str]]]:
    """Read a Parquet file as lines of text; the column names are line 1."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_named(table, "table") as stream:
        try:
            columns = pq.read_table(stream)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UsageError(f"{table} cannot be read as Parquet: {error}.") from None
    yield 1, list(columns.column_names)
    for name, kind in zip(columns.column_names, columns.schema.types, strict=True):
        if name.strip().lower() == "label" and pa.types.is_floating(kind):
            raise UsageError(
                f"{table}: column {name!r} holds floating-point numbers. Make whole numbers or text of them."
            )
    values = [["" if v is None else str(v) for v in column.to_pylist()] for column in columns.columns]
    for number, cells in enumerate(zip(*values, strict=True), 2):
        yield number, list(cells)


def _check_header(table: Path, header: Sequence[str]) -> None:
    twice = [name for place, name in enumerate(header) if name in header[:place]]
    if twice:
        raise UsageError(f"{table} has the column {twice[0]!r} twice. Rename one of them.")
    missing = [name for name in _NEEDED if name not in header]
    if missing:
        have = ", ".join(map(repr, header[:_NAMED])) or "none"
        raise UsageError(
            f"{table} has no column {' and no column '.join(map(repr, missing))}; its columns are {have}. The first line names them: path, "
            "label, and if there are splits, split (train, val or test)."
        )


def _checked(table: Path, found: Table) -> list[Row]:
    """Give the rows, each image once, with the splits' usual names.

    Raises:
        UsageError: a path or label is missing, a split is none, an image is not there, leaves the folder, or stands
            there twice with different words; names the first mistakes by line.
    """
    faults: list[str] = []
    rows: dict[str, Row] = {}
    links = _Links(table.parent)
    for row in found.rows:
        fault = _fault(row, rows.get(row.path)) or links.fault(row.path)
        if fault:
            faults.append(f"line {row.line}: {fault}")
            continue
        rows.setdefault(
            row.path, Row(row.line, row.path, row.label, SPLIT_NAMES.get(row.split.lower(), ""), row.values)
        )
    if faults:
        more = [f"... and {len(faults) - _NAMED} more"] if len(faults) > _NAMED else []
        raise UsageError("\n".join([f"{table} cannot be used:", *faults[:_NAMED], *more]))
    return list(rows.values())


def _fault(row: Row, before: Row | None) -> str | None:
    """Say what is wrong with a row by itself, or beside an earlier one of the same path; None if nothing is."""
    if not row.path:
        return "it has no path"
    if not row.label:
        return f"{row.path} has no label"
    if row.split and row.split.lower() not in SPLIT_NAMES:
        return f"split {row.split!r} is none of {', '.join(SPLITS)}"
    if before is None:
        return None
    if before.label != row.label:
        return f"{row.path} is {row.label!r} here and {before.label!r} in line {before.line}"
    if before.split != SPLIT_NAMES.get(row.split.lower(), ""):
        return f"{row.path} is in split {row.split!r} here and in {before.split!r} in line {before.line}"
    return f"{row.path} stands in line {before.line} already. Remove one of them"


class _Links:
    """Tells what is wrong with a path as such, whatever it holds."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._inside: dict[str, bool] = {}

    def fault(self, path: str) -> str | None:
        """Say why a path cannot be read, or leaves the folder; None if it can."""
        file = os.path.join(self._root, path)
        if not posixpath.isabs(path):
            if path.startswith("../") or path == "..":
                return f"{path} leaves the table's folder. Give an absolute path, or move the table"
            if not self._stays(file):
                return f"{path} is a link that leaves the table's folder. Give the absolute path of what it points to"
        if not os.path.exists(file):
            hint = ". Separate folders by /" if "\\" in path else ""
            return f"there is no file {path}{hint}"
        return None if os.path.isfile(file) else f"{path} is no file"

    def _stays(self, file: str) -> bool:
        folder = os.path.dirname(file)
        if folder not in self._inside:
            self._inside[folder] = self._below(folder)
        return self._inside[folder] and (not os.path.islink(file) or self._below(file))

    def _below(self, path: str) -> bool:
        return os.path.commonpath([os.path.realpath(path), self._real]) == self._real


def _splits(
    table: Path, rows: Sequence[Row], hashes: Mapping[str, str], val: float, test: float, seed: int
) -> tuple[dict[str, Classes], list[str]]:
    """Divide the images as the table says, or by rule; and say which."""
    found: dict[str, Classes] = {}
    for row in rows:
        found.setdefault(row.split, {}).setdefault(row.label, []).append(row.path)
    found = {split: {name: sorted(classes[name]) for name in sorted(classes)} for split, classes in found.items()}
    if set(found) == {""}:
        rule = f"split by rule: val {val}, test {test}, split_seed {seed}"
        return split_by_rule(found[""], hashes, val, test, seed), [rule]
    if "" in found:
        line = next(row.line for row in rows if not row.split)
        raise UsageError(
            f"{table}, line {line}: no split, while other images have one. Give each image a split, or none (they are split by rule then)."
        )
    if set(found) == {"train", "test"}:
        train, validation = validation_by_rule(found["train"], hashes, val, seed)
        rule = f"validation taken from the training images by rule: val {val}, split_seed {seed}"
        return {"train": train, "val": validation, "test": found["test"]}, [rule]
    missing = [split for split in SPLITS if split not in found]
    if missing:
        raise UsageError(
            f"{table} has no {' and no '.join(missing)} images. Needed are train and test (validation is taken from train if there is "
            "none), or no split at all: the images are split by rule then."
        )
    return found, []


def _levels(further: Sequence[str], rows: Sequence[Row], names: Sequence[str]) -> tuple[list[NameLevel], list[str]]:
    """Make coarser names of the further columns, those with most names first; and say which columns are none, and why."""
    levels, notes = [], []
    for place, column in enumerate(further):
        of_label: dict[str, set[str]] = {}
        for row in rows:
            of_label.setdefault(row.label, set()).add(row.values[place])
        mixed = next((label for label, values in of_label.items() if len(values) > 1), None)
        coarse = [next(iter(of_label[name])) for name in names]
        if mixed is not None:
            notes.append(f"column {column!r} was passed over: label {mixed!r} has {len(of_label[mixed])} values in it")
        elif "" in coarse:
            notes.append(f"column {column!r} was passed over: label {names[coarse.index('')]!r} has no value in it")
        elif not 1 < len(set(coarse)) < len(names):
            notes.append(
                f"column {column!r} was passed over: with {len(set(coarse))} values, it is no coarser name of {len(names)} labels"
            )
        else:
            levels.append(NameLevel.of(column, coarse))
    return sorted(levels, key=lambda level: -len(level.names)), notes


def _far_note(rows: Sequence[Row]) -> list[str]:
    far = sum(posixpath.isabs(row.path) for row in rows)
    note = f"{far} images have absolute paths, which are in the trials' ids: on another machine they are other trials"
    return [note] if far else []
