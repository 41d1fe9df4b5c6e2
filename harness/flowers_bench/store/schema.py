"""What every file of a trial holds, and the one way in which it is read.

A run store may come from anywhere: its files are data, and are believed only as far as they were checked. Each has a schema
below, in the terms of this module: `Record` for an object with fields, `Each` for a list, `ByName` for an object with names of
any kind, `Number`, `Text`, `Flag` for what stands in them. Whatever a schema does not name may be there and be anything
(fields are added within a schema version), but is plain JSON: no NaN, no name twice, no text that is not Unicode, not deep.

`TrialFolder` in store.py says which file has which schema, and what must agree between files.
"""

from __future__ import annotations

import errno
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flowers_bench.util.errors import Unreadable, shortage
from flowers_bench.util.files import open_regular, read_regular

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

#: Bytes of a JSON file: the result of 100,000 classes has a tenth of it in lists by class.
LARGEST = 64 << 20
#: Objects and lists inside each other.
DEEPEST = 32
#: Digits of a whole number: as many as still make a floating-point number.
DIGITS = 300
#: Of any number: sums and squares of smaller ones stay finite, so that no table has an infinite mean.
HUGE = 1e100
#: Bytes of a text in a table: as long as a path may be.
LONGEST = 4096


class Form(Protocol):
    """What a value must be."""

    def fault(self, value: Any, name: str) -> str | None:
        """What is wrong with the value that stands at `name`, in words; None if nothing is."""


@dataclass(frozen=True)
class Number:
    """A number between two bounds, both allowed; `whole` for an integer."""

    low: float = -HUGE
    high: float = HUGE
    whole: bool = False

    def fault(self, value: Any, name: str) -> str | None:
        kinds = int if self.whole else (int, float)
        if isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        bounds = [f"{word} {bound:g}" for word, bound in (("from", self.low), ("to", self.high)) if abs(bound) < 2**31]
        return f"{name} is {_shown(value)}, not {' '.join(['a whole number' if self.whole else 'a number', *bounds])}"


@dataclass(frozen=True)
class Text:
    """A text, not longer than `longest` characters, that matches `pattern` where there is one."""

    longest: int = 1_000_000
    pattern: str | None = None

    def fault(self, value: Any, name: str) -> str | None:
        if not isinstance(value, str) or (self.pattern and not re.fullmatch(self.pattern, value)):
            return f"{name} is {_shown(value)}" + ("" if isinstance(value, str) else ", not a text")
        return f"{name} has {len(value)} characters" if len(value) > self.longest else None


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def fault(self, value: Any, name: str) -> str | None:
        return None if isinstance(value, bool) else f"{name} is {_shown(value)}, not true or false"


@dataclass(frozen=True)
class Plain:
    """Anything that is no list and no object."""

    def fault(self, value: Any, name: str) -> str | None:
        return f"{name} is {_shown(value)}, not a single value" if isinstance(value, (list, dict)) else None


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""

    def fault(self, value: Any, name: str) -> str | None:
        return None


@dataclass(frozen=True)
class OrNull:
    """Null, or what `form` is."""

    form: Form

    def fault(self, value: Any, name: str) -> str | None:
        return None if value is None else self.form.fault(value, name)


@dataclass(frozen=True)
class Each:
    """A list of `least` or more of `form`."""

    form: Form
    least: int = 0

    def fault(self, value: Any, name: str) -> str | None:
        if not isinstance(value, list):
            return f"{name} is {_shown(value)}, not a list"
        if len(value) < self.least:
            return f"{name} has {len(value)} entries, not {self.least} or more"
        return next(filter(None, (self.form.fault(item, f"{name}[{i}]") for i, item in enumerate(value))), None)


@dataclass(frozen=True)
class ByName:
    """An object with names of any kind, the value of each of `form`."""

    form: Form

    def fault(self, value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} is {_shown(value)}, not an object"
        return next(filter(None, (self.form.fault(item, _within(name, key)) for key, item in value.items())), None)


@dataclass(frozen=True)
class Record:
    """An object with these fields. One whose name ends with `?` may be missing or null; others may be there too."""

    fields: Mapping[str, Form]

    def fault(self, value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} is {_shown(value)}, not an object" if name else "it is not a JSON object"
        for key, form in self.fields.items():
            own = key.removesuffix("?")
            if own not in value and own == key:
                return f"it has no {_within(name, own)}"
            if own not in value or (value[own] is None and own != key):
                continue
            if found := form.fault(value[own], _within(name, own)):
                return found
        return None


def _within(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _shown(value: Any) -> str:
    return f"{value!r:.40}"


def _all(names: Sequence[str], form: Form) -> dict[str, Form]:
    return dict.fromkeys(names, form)


COUNT = Number(0, 2**63, whole=True)
AMOUNT = Number(0)
#: Rounding may carry a mean a little further than its terms.
SHARE = Number(-1e-6, 1 + 1e-6)
WORDS = Text()
#: Of what people or plugins named.
NAME = Text(1000)
ID = Text(16, "[0-9a-f]{16}")
DIGEST = Text(64, "[0-9a-f]{64}")
#: Where something lies. No zero byte, at which the system's calls would break off.
PLACE = Text(4096, "[^\0]*")

CONFIG = Record(
    {
        "schema_version": COUNT,
        "id": ID,
        "harness_revision": COUNT,
        **_all(("model", "loss", "augmentation", "sampler", "predictor", "backbone"), NAME),
        "options": ByName(Plain()),
        "data_options": ByName(Plain()),
        "code": ByName(NAME),
        "dataset": Record(
            {
                **_all(("name", "resolution"), NAME),
                **_all(("fingerprint", "split_checksum"), DIGEST),
                "classes": Number(1, 2**31, whole=True),
                **_all(("n_train", "n_val", "n_test"), Number(0, 2**31, whole=True)),
                "notes": Each(WORDS),
                "options?": ByName(Plain()),
                "grey_levels?": Record(_all(("integer?", "float?", "colour?"), Each(Number()))),
            }
        ),
        "weights": Record({"name": NAME, "sha256": OrNull(DIGEST)}),
        "recipe": Record(
            {
                "optimizer": NAME,
                "lr": AMOUNT,
                "lr_scale?": ByName(AMOUNT),
                "schedule?": NAME,
                "precision?": NAME,
                **_all(("layer_decay?", "weight_decay?", "clip_norm?", "ema_decay?"), AMOUNT),
                "ema_warmup?": Flag(),
                **_all(("epochs", "image_size", "batch_size", "warmup_epochs?", "patience?"), COUNT),
            }
        ),
        "seed": COUNT,
        "protocol": Record(
            {"report": Text(4, "test|none"), "train?": NAME, "select?": NAME, **_all(("search?", "shots?"), COUNT)}
        ),
    }
)
#: In schema 1, the trial's only name stood in it; which variant it was to be compared with, in `run.json`.
CONFIG_1 = Record({**CONFIG.fields, **_all(("technique", "variant"), NAME)})
#: A file of `labels/`: one of the trial's names, since schema 2.
LABEL = Record({**_all(("technique", "variant"), NAME), "baseline?": Text(2001)})

#: Names of `run.json` that hold places of the machine where the trial ran. They are not in any hash, so that whoever passes a
#: store on chooses them: another machine has no use for them, and `merge` leaves them behind.
PLACES = ("data_path", "cache_dir", "store", "weights_path", "plugin_files")
RUN = Record(
    {
        "data_source?": NAME,
        **_all(("data_path?", "cache_dir?", "store?", "weights_path?"), PLACE),
        "plugin_files?": Each(PLACE),
        "threads?": Number(1, 2**31, whole=True),
        "devices?": Number(1, 2**31, whole=True),
        "baseline?": NAME,
        "command?": Each(WORDS),
        "stress?": Flag(),
        "track?": Each(NAME),
        "search?": Record(
            {
                "configurations": COUNT,
                "failed?": COUNT,
                "trials": Each(ID),
                "chosen": ID,
                "settings": ByName(Plain()),
                "val_top1": SHARE,
                "seconds": AMOUNT,
            }
        ),
    }
)

_BOUNDED = Record({"value": AMOUNT, **_all(("low?", "high?"), AMOUNT)})
_SPEED = Record(
    {
        "latency?": Record({"p50_ms?": _BOUNDED, "p95_ms?": _BOUNDED, "runs?": COUNT}),
        "throughput?": Record(
            {"images_per_second": AMOUNT, **_all(("low?", "high?"), AMOUNT), **_all(("batch?", "runs?"), COUNT)}
        ),
    }
)
_COST = Record(
    {
        "seconds": AMOUNT,
        "epochs": COUNT,
        **_all(("parameters?", "trainable_parameters?", "trained_bytes?"), COUNT),
        **_all(("peak_rss_bytes?", "peak_cuda_bytes?", "flops?"), COUNT),
        **_all(("train_seconds?", "fit_seconds?", "seconds_to_best?", "search_seconds?"), AMOUNT),
        **_all(("setup_seconds?", "test_seconds?", "train_images_per_second?"), AMOUNT),
        **_all(("package_joules?", "gpu_joules?"), AMOUNT),
        "data_wait_share?": SHARE,
        "flops_uncounted?": Each(NAME),
        "inference?": Record(
            {
                **_all(("float32?", "bfloat16?"), _SPEED),
                **_all(("seconds?", "other_cores_busy?"), AMOUNT),
                "threads?": COUNT,
                "governor?": NAME,
            }
        ),
        "prefix_cache?": Anything(),
    }
)
_CALIBRATION = ("ece", "ece_adaptive", "ece_if_calibrated", "ece_adaptive_if_calibrated")
_PROBABILITIES = {
    "nll?": AMOUNT,
    "brier?": Number(0, 2 + 1e-6),
    **_all([f"{name}?" for name in _CALIBRATION], SHARE),
}
_JUDGED = {
    "n": Number(1, 2**31, whole=True),
    "top1": SHARE,
    **_all(("top5?", "mean_per_class?", "macro_f1?"), SHARE),
    **_PROBABILITIES,
}
_TESTED = {
    **_JUDGED,
    "calibrated?": Record(_PROBABILITIES),
    "per_class?": Record({"n": Each(COUNT), **_all(("precision", "recall", "f1"), Each(OrNull(SHARE)))}),
    "confused?": Each(Record(_all(("label", "prediction", "images"), COUNT))),
}
_EPISODES = Record(
    {
        "accuracy": SHARE,
        **_all(("low?", "high?"), Number()),
        **_all(("n_way", "k_shot", "episodes"), COUNT),
        **_all(("n?", "n_query?"), COUNT),
    }
)
#: Of a trial of a search, which never reads the test split.
SEARCHED = Record(
    {
        "schema_version": COUNT,
        "id": ID,
        "label?": Text(2001),
        "seed": COUNT,
        "best_epoch": COUNT,
        "val": Record(_JUDGED),
        "cost": _COST,
    }
)
ENVIRONMENT = Record(
    {
        **_all(("processor", "cpu_capability", "device"), NAME),
        "kernel": OrNull(NAME),
        "threads": COUNT,
        "load_average": Each(AMOUNT),
        "versions": ByName(NAME),
        **_all(("cores?", "devices?"), COUNT),
        **_all(("system?", "python?"), NAME),
    }
)
RESULT = Record(
    {
        **SEARCHED.fields,
        "stopped_early": Flag(),
        "test": Record(_TESTED),
        "temperature?": Number(1e-9),
        "class_names": Each(WORDS),
        "hardware": ENVIRONMENT,
        # Where every test image is alone in its class, there is nothing to retrieve, and where a batch keeps whole
        # labels, no mixture to recognise: trials of before 0.2 have an empty record then, later ones none.
        "retrieval?": Record(_all(("recall_at_1?", "map_at_r?"), SHARE)),
        "mixed?": Record({"n?": COUNT, "m?": AMOUNT, **_all(("top_m?", "all_m?"), SHARE)}),
        "episodic?": Record({"test?": _EPISODES, "held_out_classes?": _EPISODES}),
        "stress?": ByName(
            Each(
                Record(
                    {
                        "level": Number(1, 1000, whole=True),
                        "label": WORDS,
                        "top1": SHARE,
                        "value?": Number(),
                        "n?": COUNT,
                        **_all(("low?", "high?"), SHARE),
                    }
                ),
                least=1,
            )
        ),
        "robustness?": ByName(SHARE),
        "stress_revision?": COUNT,
        "weights_report?": Anything(),
    }
)

EPOCH = Record(
    {
        "epoch": Number(1, 2**31, whole=True),
        **_all(("train_loss?", "val_nll?"), Number()),
        **_all(("train_top1_clean?", "val_top1?"), SHARE),
        **_all(("train_seconds?", "wait_seconds?", "seconds?", "package_joules?", "gpu_joules?"), AMOUNT),
        "images?": COUNT,
    }
)
ATTEMPT = Record({"seconds": AMOUNT, "state": NAME})
FAILURE = Record({"kind": NAME, "error": WORDS})
#: `files.json`: SHA-256 by the file's name within its folder.
MANIFEST = Record({"sha256": ByName(DIGEST)})


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `Unreadable` names the file when it is damaged."""
    return read_record(path, Record({}))


def read_record(path: Path, form: Record) -> dict[str, Any]:
    """The object in a JSON file, which is of this form. Raises `Unreadable`, which names the file and what is wrong."""
    (value,) = _parsed(path, lambda text: [text])
    refuse_other_form(path, value, form)
    return value


def refuse_other_form(path: Path, value: Any, form: Record) -> None:
    """Raise `Unreadable` unless the value that was read from this file is of this form."""
    if fault := form.fault(value, ""):
        raise damaged(path, f"is damaged: {fault}")


def read_lines(path: Path, form: Record) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each of this form; none where there is no file. Raises `Unreadable`."""
    values = _parsed(path, lambda text: text.removesuffix("\n").split("\n") if text else [])
    for number, value in enumerate(values, 1):
        if fault := form.fault(value, ""):
            raise damaged(path, f"is damaged: line {number}: {fault}")
    return values


def damaged(path: Path, what: str) -> Unreadable:
    """The error for a file of a trial that is of no use, with the way out."""
    side_file = path.name in _SIDE_FILES or "figures" in (path.name, path.parent.name)
    cure = "Remove it: the trial does not need it." if side_file else "Remove its folder to run that trial again."
    return Unreadable(f"{path} {what.rstrip('.')}. {cure}")


#: Nothing else depends on them.
_SIDE_FILES = ("attempts.jsonl", "failure.json", "environment.json", "files.json")


def _parsed(path: Path, parts: Callable[[str], Sequence[str]]) -> list[Any]:
    try:
        text = read_regular(path, LARGEST, follow_links=False).decode("utf-8")
        return [parse_json(part) for part in parts(text)]
    except (OSError, ValueError, RecursionError, MemoryError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> Exception:
    """What to raise for a file that could not be read. Nobody shall remove a file because memory was short."""
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
    """Whether there is memory: then it was the file that asked for too much."""
    try:
        bytearray(256 << 20)
    except MemoryError:
        return False
    return True


def parse_json(text: str) -> Any:
    """The value that JSON (RFC 8259) stands for, and nothing beyond it.

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


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
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
            # Texts as dictionaries: one that stands in every row is unpacked once.
            file = pq.ParquetFile(stream, page_checksum_verification=True, read_dictionary=texts)
            if file.metadata.num_rows > rows or (file.metadata.num_rows < rows and not fewer):
                raise ValueError(f"it has {file.metadata.num_rows} rows, not {rows}{' at most' if fewer else ''}")
            there = file.schema_arrow
            names = _columns(columns, there)
            _refuse_bomb(file.metadata, names, rows, classes)
            table = file.read(columns=names).select(names).replace_schema_metadata(None).combine_chunks()
        table.validate(full=True)
        return pa.table({name: _plain(table.column(name).combine_chunks(), name) for name in names})
    except (pa.ArrowException, ArithmeticError, LookupError, MemoryError, OSError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


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
