"""Datasets of the Hugging Face hub, `hf:NAME@REVISION`: exported once to a folder of images with a table, which is read from then on.

A revision is a commit of the hub's repository. Without one the newest is asked for, and stands in the options from then on, so that
a trial is continued on what it began with. A folder, `hf:./FOLDER`, that holds such a dataset is read too; its revision is a hash of its
files. What was exported needs neither the package nor a network.
"""

from __future__ import annotations

import csv
import functools
import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.options import Options, parse_options
from flowers_bench.data.exported import write_once
from flowers_bench.data.files import files_below, has_image_name
from flowers_bench.data.listing import SPLIT_NAMES
from flowers_bench.data.manifest import dataset_of, read_table
from flowers_bench.data.options import HUB_OPTIONS
from flowers_bench.util.errors import UsageError

_TABLE = "images.csv"
#: Columns of labels by other names than their type tells, in the order in which they are taken.
_LABELS = ("label", "labels", "class", "target", "fine_label")
#: Seconds for the hub's answer to which revision is the newest.
_TIMEOUT = 20.0

#: A dataset as its package opens it: the rows of each split, by the split's name.
Splits: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Columns:
    """Which columns of a dataset are read: the image, the label, and further ones that name classes."""

    image: str
    label: str
    further: Sequence[str] = ()


def named(text: str) -> dict[str, str]:
    """Read what stands behind `hf:`, NAME or NAME@REVISION, as options; where no revision is given, it is looked up.

    Raises:
        UsageError: there is no name, or the hub cannot be asked.
    """
    name, _, revision = text.partition("@")
    if not name.strip():
        raise UsageError(
            "--data hf: names no dataset. Write --data hf:NAME or hf:NAME@REVISION, such as hf:USER/BIRDS."
        )
    local = Path(name).expanduser()
    found = _hash_of(local) if local.is_dir() else revision or _newest(name)
    if revision and not found.startswith(revision):
        raise UsageError(f"--data hf:{text}: the folder's content has revision {found}.")
    return {"name": str(local.resolve()) if local.is_dir() else name, "revision": found}


def load(request: DataRequest) -> Dataset:
    """Load the dataset that `request.options` name: from its export in `request.cache_dir`, or from the hub.

    Raises:
        UsageError: the package or the network is missing, there is no such dataset, or its columns or splits do not tell
            what to train on; says what to do.
    """
    options = parse_options(HUB_OPTIONS, request.options, "data.")
    name, revision = options.text("name"), options.text("revision")
    if not name:
        raise UsageError("--data hf: names no dataset. Write --data hf:NAME or hf:NAME@REVISION.")
    if not revision:
        revision = named(name)["revision"]
    folder = request.cache_dir / "hf" / _place(options, revision)
    if not (folder / _TABLE).is_file():
        if request.read_only:
            raise UsageError(f"{folder} is not there.")
        _export(request, options, revision, folder)
    notes = [f"Hugging Face dataset {name}, revision {revision}", *_notes(folder)]
    return dataset_of(request, folder / _TABLE, read_table(folder / _TABLE), f"hf:{Path(name).name}", notes)


def _place(options: Options, revision: str) -> str:
    """Name the folder of an export: for people, with a hash of everything that decides its content."""
    words = [options.text("name"), revision, options.text("config"), options.text("image"), options.text("label")]
    digest = hashlib.sha256("\0".join(words).encode()).hexdigest()[:12]
    return f"{re.sub('[^A-Za-z0-9_.-]+', '-', Path(words[0]).name)[:60]}-{digest}"


@functools.cache
def _newest(name: str) -> str:
    """Find the newest revision by asking the hub, once in a process."""
    _package()
    from huggingface_hub import dataset_info

    try:
        sha: str | None = dataset_info(name, timeout=_TIMEOUT).sha
    except Exception as error:  # of the package, of the network, of the system: many kinds
        raise UsageError(
            f"--data hf:{name}: the hub could not be asked ({type(error).__name__}: {_first_line(error)}). Without a network name a "
            f"revision that was used before, hf:{name}@REVISION, or a folder that holds the dataset, hf:./FOLDER."
        ) from error
    if not sha:
        raise UsageError(f"--data hf:{name}: the hub names no revision. Name one: hf:{name}@REVISION.")
    return sha


def _hash_of(folder: Path) -> str:
    """Hash names and contents of a folder's files."""
    digest = hashlib.sha256()
    for path in sorted(Path(entry.path) for entry in files_below(folder)):
        digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:40]


def _package() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "--data hf: needs the package datasets, which is not installed: pip install 'flowers-bench[hf]'."
        ) from None
    return datasets


def _export(request: DataRequest, options: Options, revision: str, folder: Path) -> None:
    """Write a dataset's images and table to a folder, which appears only when it is whole."""
    splits = _opened(request, options, revision)
    write_once(folder, _TABLE, lambda place: _write(request, options, splits, place))


def _opened(request: DataRequest, options: Options, revision: str) -> Splits:
    """Open a dataset's splits with the package, downloading what is missing."""
    datasets = _package()
    name, config = options.text("name"), options.text("config") or None
    try:
        if Path(name).is_dir() and any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(name)
        else:
            pinned = {} if Path(name).is_dir() else {"revision": revision}
            cache = os.fspath(request.cache_dir / "hf" / "downloads")
            found = datasets.load_dataset(name, config, cache_dir=cache, **pinned)
    except Exception as error:  # of the package, of the network, of the system: many kinds
        raise UsageError(
            f"Hugging Face dataset {name}, revision {revision}, cannot be opened ({type(error).__name__}: {_first_line(error)}). Without a "
            "network, copy the dataset's repository here and name its folder: --data hf:./FOLDER."
        ) from error
    return found if isinstance(found, Mapping) else {"train": found}


def _write(request: DataRequest, options: Options, splits: Splits, folder: Path) -> None:
    chosen, notes = _chosen(options.text("name"), splits)
    with (folder / _TABLE).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        for split, (rows, called) in chosen.items():
            columns = columns_of(options, rows.features, split)
            if stream.tell() == 0:
                head, first = ["path", "label", "split", *columns.further], columns
                table.writerow(head)
            elif columns != first:
                raise UsageError(f"split {split!r} of {options.text('name')} has other columns than those before.")
            (folder / split).mkdir()
            lines = _lines(rows, columns, called, split, folder)
            table.writerows(request.progress(lines, f"exporting {split}", len(rows)))
    (folder / "notes.txt").write_text("".join(f"{note}\n" for note in notes), encoding="utf-8")


def _notes(folder: Path) -> list[str]:
    return (folder / "notes.txt").read_text(encoding="utf-8").splitlines()


def _chosen(name: str, splits: Splits) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """Choose a dataset's splits: of each its rows and what it is called here; and say what is to be said of them.

    Where there is training and validation alone, most authors mean the latter to test on; a single split is divided by rule.
    """
    known = {split: SPLIT_NAMES[split.lower()] for split in splits if split.lower() in SPLIT_NAMES}
    beside = [split for split in splits if split not in known]
    notes = [f"splits {', '.join(beside)} were left out"] if beside else []
    if len(set(known.values())) < len(known):
        raise UsageError(f"{name} has several splits for one: {', '.join(known)}.")
    if set(known.values()) == {"train", "val"}:
        known = {split: "test" if called == "val" else called for split, called in known.items()}
        notes.append("it has no test split: its validation split is the test here")
    elif set(known.values()) == {"train"}:
        known = dict.fromkeys(known, "")
    elif "train" not in known.values() or "test" not in known.values():
        raise UsageError(
            f"{name} has the splits {', '.join(splits)}. Needed are train and test, or train alone, which is split by rule."
        )
    return {split: (splits[split], called) for split, called in known.items()}, notes


def columns_of(options: Options, features: Mapping[str, Any], split: str) -> Columns:
    """Find the columns of image and label, by the options or by their types, and further columns that name classes.

    Raises:
        UsageError: there is none or there are several; lists the columns and says how to name one.
    """
    datasets = _package()
    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    usual = [name for name in _LABELS if name in features]
    image = options.text("image") or (images[0] if len(images) == 1 else "")
    label = options.text("label") or (classes[0] if len(classes) == 1 else next(iter(usual), ""))
    for option, name in (("image", image), ("label", label)):
        if name not in features:
            what = f"no column {name!r}" if name else f"no one column that must be the {option}"
            have = ", ".join(f"{column} ({_kind(kind)})" for column, kind in features.items())
            raise UsageError(
                f"split {split!r} of {options.text('name')} has {what}. Name it with --set data.{option}=COLUMN; there are: {have}."
            )
    if image not in images:
        raise UsageError(
            f"column {image!r} of {options.text('name')} holds no images; {', '.join(images) or 'none'} does."
        )
    if features[label] in images or getattr(features[label], "dtype", "") not in ("string", "large_string", *_WHOLE):
        raise UsageError(f"column {label!r} of {options.text('name')} holds no labels, but {_kind(features[label])}.")
    return Columns(image, label, [name for name in classes if name not in (label, "path", "label", "split")])


_WHOLE = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def _kind(feature: Any) -> str:
    kind = type(feature).__name__
    return str(getattr(feature, "dtype", kind)) if kind == "Value" else kind


def _lines(rows: Any, columns: Columns, called: str, split: str, folder: Path) -> Iterator[list[str]]:
    """Write each row's image to a file, as its bytes are, and give the row's line of the table."""
    from datasets import Image

    names = [_names(rows.features[column]) for column in (columns.label, *columns.further)]
    undecoded = rows.select_columns([columns.image, columns.label, *columns.further]).cast_column(
        columns.image, Image(decode=False)
    )
    for number, row in enumerate(undecoded):
        image, values = row[columns.image], [row[column] for column in (columns.label, *columns.further)]
        if image is None:
            raise UsageError(f"row {number} of split {split!r} has no image.")
        content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
        suffix = os.path.splitext(image["path"] or "")[1].lower()
        path = f"{split}/{number:07d}{suffix if has_image_name(suffix and f'x{suffix}') else ''}"
        (folder / path).write_bytes(content)
        texts = [_text(value, kind, number, split) for value, kind in zip(values, names, strict=True)]
        yield [path, texts[0], called, *texts[1:]]


def _names(feature: Any) -> Sequence[str] | None:
    """Give the names of a column's classes; None where its values are names themselves."""
    return getattr(feature, "names", None)


def _text(value: Any, names: Sequence[str] | None, number: int, split: str) -> str:
    if value is None or (names is not None and not 0 <= value < len(names)):
        raise UsageError(
            f"row {number} of split {split!r} has no label ({value}): this split is not meant to be measured on."
        )
    return str(value) if names is None else names[value]


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
