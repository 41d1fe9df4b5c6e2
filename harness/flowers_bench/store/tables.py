"""The Parquet files of a trial: which columns they have, and the one way in which they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.store.reading import unreadable
from flowers_bench.store.schema import HUGE
from flowers_bench.util.files import open_regular

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: Bytes of a text in a table: as long as a path may be.
LONGEST = 4096
#: What a column of a table holds.
Kind = Callable[["pa.DataType"], bool]


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_whole(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind))


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_floating(kind))


def _is_truth(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_boolean(kind))


def _is_scores(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) and pa.types.is_floating(kind.value_type))


#: A column whose name ends with `?` may be missing.
PREDICTIONS: Mapping[str, Kind] = {
    "split": _is_text,
    "key": _is_text,
    "label": _is_whole,
    "prediction?": _is_whole,
    "logits": _is_scores,
}
#: Of `predictions.parquet` too: each test image's share of a figure of retrieval. Versions before 0.2 wrote none.
SHARES: Mapping[str, Kind] = {"split": _is_text, "key": _is_text, "recall_at_1?": _is_number, "map_at_r?": _is_number}
#: Validation images have no value there.
_NULLABLE = ("recall_at_1", "map_at_r")
STRESS: Mapping[str, Kind] = {
    "kind": _is_text,
    "level": _is_whole,
    "value?": _is_number,
    "key": _is_text,
    "correct": _is_truth,
}


def read_table(
    path: Path, columns: Mapping[str, Kind], rows: int, *, fewer: bool = False, classes: int = 0
) -> pa.Table:
    """The columns of a Parquet file, without what pandas or Arrow noted beside them: texts as such, whole numbers as int64;
    no row has a null but in `_NULLABLE`, and no number is infinite or larger than `HUGE`.

    Args:
        rows: how many there must be, with `fewer` at most; looked up before anything is unpacked, as is what it takes.
        classes: scores of a row.

    Raises:
        Unreadable: the file cannot be read, lacks a column, or has one of another type, with nulls or of another length.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        texts = [name.removesuffix("?") for name, fits in columns.items() if fits is _is_text]
        with open_regular(path, follow_links=False) as stream:
            # Texts as dictionaries: one that stands in every row is unpacked once. No threads, here and below: a process that
            # ends while Arrow still starts some is aborted.
            file = pq.ParquetFile(stream, page_checksum_verification=True, read_dictionary=texts, pre_buffer=False)
            if file.metadata.num_rows > rows or (file.metadata.num_rows < rows and not fewer):
                raise ValueError(f"it has {file.metadata.num_rows} rows, not {rows}{' at most' if fewer else ''}")
            there = file.schema_arrow
            names = _columns(columns, there)
            _refuse_bomb(file.metadata, names, rows, classes)
            table = (
                file.read(columns=names, use_threads=False).select(names).replace_schema_metadata(None).combine_chunks()
            )
        table.validate(full=True)
        return pa.table({name: _plain(table.column(name).combine_chunks(), name) for name in names})
    except (pa.ArrowException, ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error


def _refuse_bomb(metadata: pq.FileMetaData, names: Sequence[str], rows: int, classes: int) -> None:
    """A few kilobytes may unpack to any size. Raises `ValueError` for more than these columns of so many rows can have, and
    for more than this machine's memory."""
    import psutil

    parts = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [chunk for part in parts for chunk in map(part.column, range(part.num_columns))]
    for name in names:
        own = [chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == name]
        if sum(chunk.num_values for chunk in own) > rows * max(1, classes):
            raise ValueError(f"column {name} has more values than {rows} rows can have")
        if sum(chunk.total_uncompressed_size for chunk in own) > (1 << 20) + rows * max(LONGEST, 16 * classes):
            raise ValueError(f"column {name} would unpack to more than {rows} rows can have")
    size = rows * 8 * (classes + len(names))
    if size > psutil.virtual_memory().total:
        raise ValueError(f"it would unpack to {size / 2**30:.1f} GiB, more than this machine has memory")


def _plain(column: pa.Array, name: str) -> pa.Array:
    """A column that was read: a text decoded, whole numbers as int64. Raises `ValueError` for values that nothing can be
    calculated with."""
    import pyarrow as pa
    import pyarrow.compute as pc

    inner = column.flatten() if pa.types.is_list(column.type) else column
    if name not in _NULLABLE and (column.null_count or inner.null_count):
        raise ValueError(f"column {name} has nulls")
    if pa.types.is_dictionary(column.type):
        if (pc.max(pc.binary_length(column.dictionary)).as_py() or 0) > LONGEST:
            raise ValueError(f"column {name} has a text of more than {LONGEST} bytes")
        return column.dictionary_decode().cast(pa.string())
    if pa.types.is_integer(column.type):
        return column.cast(pa.int64())
    if (
        pa.types.is_floating(inner.type)
        and not pc.all(pc.less_equal(pc.abs(inner.cast(pa.float64())), HUGE)).as_py()
        and len(inner)
    ):
        raise ValueError(f"column {name} has values that are not finite")
    return column


def _columns(wanted: Mapping[str, Kind], there: pa.Schema) -> list[str]:
    found = []
    for name, fits in wanted.items():
        own = name.removesuffix("?")
        count = len(there.get_all_field_indices(own))
        if count == 0 and own != name:
            continue
        if count != 1:
            raise ValueError(f"it has {count or 'no'} column{'' if count < 2 else 's'} {own}")
        if not fits(there.field(own).type):
            raise ValueError(f"column {own} is of type {there.field(own).type}")
        found.append(own)
    return found
