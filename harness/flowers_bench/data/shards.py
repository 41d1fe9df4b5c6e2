"""WebDataset shards: tar files that hold each sample's image and label beside each other. They are read once, front to back, into a
folder of images with a table, which is read from then on.

Form: https://github.com/webdataset/webdataset. The files of a sample follow each other and have one name up to the first dot; what
stands behind it says what they are: `0017.jpg`, `0017.cls`. Python's own `tarfile` reads them: names in a shard never become paths, no file
but an image and a label is looked at, and nothing in a shard is executed, where the package `webdataset` would unpickle.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.options import Options, parse_options
from flowers_bench.data.exported import write_once
from flowers_bench.data.files import EXTENSIONS, MAX_BYTES, open_named, unreadable, visible
from flowers_bench.data.hashes import content_hashes
from flowers_bench.data.listing import SPLIT_NAMES
from flowers_bench.data.manifest import dataset_of, read_table
from flowers_bench.data.options import SHARD_OPTIONS
from flowers_bench.util.errors import UsageError

_TABLE, _NAMES = "images.csv", "classnames.txt"
#: Keys of labels in a sample's .json, in the order in which they are taken.
_LABELS = ("label", "cls", "class", "target")
#: A larger label file is refused before it is read.
_LARGEST_LABEL = 1 << 20
_BLOCK = 512


@dataclass
class Sample:
    """Files of one name in a shard.

    Attributes:
        key: their name up to the first dot.
        files: their bytes by what stands behind that dot, in lower case; of images and possible labels alone.
        others: what else there is.
    """

    key: str
    files: dict[str, bytes] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


def named(text: str) -> dict[str, str]:
    """Read what stands behind `wds:`, a folder, as options. Raises `UsageError` if it holds no shards."""
    folder = Path(text).expanduser()
    if not folder.is_dir() or not shards_in(folder):
        raise UsageError(
            f"--data wds:{text}: there is no such folder with shards. Expected FOLDER/train-000000.tar and so on: .tar files, not "
            "compressed ones."
        )
    return {"folder": str(folder.resolve())}


def holds_shards(folder: Path) -> bool:
    """Tell whether a folder holds shards, itself or in train/ val/ test/, and no folders of anything else."""
    folders = [entry for entry in visible(folder) if entry.is_dir()]
    splits = all(entry.name.lower() in SPLIT_NAMES for entry in folders)
    return (
        splits and not any(below.is_dir() for entry in folders for below in visible(entry)) and bool(shards_in(folder))
    )


def load(request: DataRequest) -> Dataset:
    """Load the dataset whose shards lie in `request.path`, or in the folder that the option names.

    Raises:
        UsageError: a shard is damaged, a sample has no one image or no label, or the splits do not tell what to train on; by name.
    """
    options = parse_options(SHARD_OPTIONS, request.options, "data.")
    named_folder = options.text("folder")
    root = request.path or (Path(named_folder) if named_folder else None)
    if root is None:
        raise UsageError("--data wds: names no folder. Write --data wds:FOLDER.")
    shards = shards_in(root) if root.is_dir() else []
    if not shards:
        raise UsageError(f"{root} holds no shards (any more). Name their folder with --data.")
    called, notes = splits_of(root, shards)
    hashes = content_hashes(root, shards, request.cache_dir, request.progress, "shards", read_only=request.read_only)
    folder = request.cache_dir / "wds" / _place(root, options, hashes)
    if not (folder / _TABLE).is_file():
        if request.read_only:
            raise UsageError(f"{folder} is not there.")
        write_once(folder, _TABLE, lambda place: _export(request, root, called, options, place))
    return dataset_of(request, folder / _TABLE, read_table(folder / _TABLE), f"wds:{root.resolve().name}", notes)


def shards_in(root: Path) -> list[str]:
    """List the .tar files of a folder and of train/ val/ test/ in it, relative to it, by name."""
    found = []
    for entry in visible(root):
        if entry.is_dir() and entry.name.lower() in SPLIT_NAMES:
            found += [f"{entry.name}/{below.name}" for below in visible(entry) if _is_tar(below)]
        elif _is_tar(entry):
            found.append(entry.name)
    return sorted(found)


def _is_tar(entry: os.DirEntry[str]) -> bool:
    return entry.name.endswith(".tar") and entry.is_file()


def splits_of(root: Path, shards: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Read each shard's split from its name or its folder's: train, val, test, or "" for all where none is named; and say what is to
    be said of them.

    Raises:
        UsageError: a name tells several splits, or some shards have one and others none; or train or test is missing.
    """
    found = {shard: _split_in(root, shard) for shard in shards}
    kinds = set(found.values())
    if kinds == {"train", "val"}:
        return {s: "test" if split == "val" else split for s, split in found.items()}, [
            "there are no test shards: those of validation are the test here"
        ]
    if kinds == {"train"}:
        return dict.fromkeys(shards, ""), []
    if "" in kinds and len(kinds) > 1:
        without = next(shard for shard, split in found.items() if not split)
        raise UsageError(
            f"{root / without} is of no split by its name, and other shards are of some. Call it train-..., val-... or test-..., or put it "
            "into a folder of that name."
        )
    if kinds != {""} and not {"train", "test"} <= kinds:
        raise UsageError(
            f"{root} has shards of {', '.join(sorted(kinds))}. Needed are train and test, or train alone, which is split by rule."
        )
    return found, []


def _split_in(root: Path, shard: str) -> str:
    words = re.split("[^a-z]+", shard.removesuffix(".tar").lower())
    splits = {SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES}
    if len(splits) > 1:
        raise UsageError(f"{root / shard} names several splits: {', '.join(sorted(splits))}. Rename it.")
    return next(iter(splits), "")


def _place(root: Path, options: Options, hashes: Mapping[str, str]) -> str:
    """Name the folder of an export: for people, with a hash of everything that decides its content."""
    names = root / _NAMES
    digest = hashlib.sha256(json.dumps([list(hashes.items()), options.text("image"), options.text("label")]).encode())
    if names.is_file():
        digest.update(names.read_bytes())
    return f"{_harmless(root.resolve().name)}-{digest.hexdigest()[:12]}"


def _export(request: DataRequest, root: Path, called: Mapping[str, str], options: Options, folder: Path) -> None:
    """Write the shards' images and a table to an empty folder."""
    with (folder / _TABLE).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["path", "label", "split"])
        names = class_names(root)
        for number, shard in enumerate(request.progress(called, "reading shards", len(called))):
            table.writerows(_lines(root, shard, number, called[shard], names, options, folder))


def _lines(
    root: Path, shard: str, number: int, split: str, names: Sequence[str], options: Options, folder: Path
) -> Iterator[list[str]]:
    """Write each sample's image to a file, as its bytes are, and give its line of the table. The file's name is our own; it tells people
    from which sample it is."""
    inside = f"{number:06d}-{_harmless(shard.removesuffix('.tar'))}"
    (folder / inside).mkdir()
    for place, sample in enumerate(samples(root / shard)):
        where = f"{root / shard}, sample {sample.key!r}"
        kind = image_kind(sample, options.text("image"), where)
        label = label_of(sample, options.text("label"), where)
        path = f"{inside}/{place:07d}-{_harmless(sample.key)}.{kind.rpartition('.')[2]}"
        (folder / path).write_bytes(sample.files[kind])
        yield [path, _class_of(label, names, where), split]


def _harmless(name: str) -> str:
    """Reduce a name to its last 60 characters, of which none means anything to a file system."""
    return re.sub("[^A-Za-z0-9_-]+", "-", name)[-60:]


def samples(shard: Path) -> Iterator[Sample]:
    """Read a shard's samples, front to back.

    Raises:
        UsageError: it is no tar file, is damaged or cut, or holds a link, a file that is too large, or a name twice.
    """
    seen: set[str] = set()
    current: Sample | None = None
    for name, content in _members(shard):
        key, ending = _parted(name)
        if current is None or key != current.key:
            if current is not None:
                yield current
            if key in seen:
                raise UsageError(
                    f"{shard}: files of sample {key!r} stand in two places. Those of a sample must follow each other: sort them by name."
                )
            seen.add(key)
            current = Sample(key)
        if content is None:
            current.others.append(ending)
        elif ending in current.files:
            raise UsageError(f"{shard}: {name!r} stands there twice.")
        else:
            current.files[ending] = content
    if current is None:
        raise UsageError(f"{shard} holds no samples. Remove it, or make it anew.")
    yield current


def _parted(name: str) -> tuple[str, str]:
    """Divide a name at the first dot behind its folders: key, and what the file is, in lower case."""
    folder, slash, base = name.rpartition("/")
    key, _, ending = base.partition(".")
    return f"{folder}{slash}{key}", ending.lower()


def _members(shard: Path) -> Iterator[tuple[str, bytes | None]]:
    """Read the files of a shard in order, each its name and its bytes; None for what is neither image nor label."""
    with open_named(shard, "shard") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                last = "its beginning"
                for member in archive:
                    if member.isdir() or os.path.basename(member.name).startswith("."):
                        continue
                    if not member.isreg():
                        raise UsageError(
                            f"{shard}: {member.name!r} is no regular file but a link or a device. Make it anew."
                        )
                    yield member.name, _content(archive, member, shard)
                    last = repr(member.name)
                _check_end(stream, archive.offset, shard, last)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise UsageError(f"{shard} is damaged or cut, or no tar file ({error}). Copy or make it anew.") from error
        except OSError as error:
            raise unreadable(shard, error, "shard") from error


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, shard: Path) -> bytes | None:
    ending = _parted(member.name)[1]
    image = _is_image(ending)
    if not image and ending.rpartition(".")[2] not in ("cls", "json", "txt"):
        return None
    largest = MAX_BYTES if image else _LARGEST_LABEL
    if member.size > largest:
        raise UsageError(f"{shard}: {member.name!r} has {member.size:,} bytes: more than {largest:,}. Leave it out.")
    opened = archive.extractfile(member)
    content = b"" if opened is None else opened.read()
    if len(content) != member.size:
        raise tarfile.ReadError(f"{member.name!r} is shorter than it says")
    return content


def _check_end(stream: BinaryIO, offset: int, shard: Path, last: str) -> None:
    """Raise `UsageError` unless the end mark, a block of zeros, stands where reading stopped: `tarfile` takes any damaged header for the
    end."""
    stream.seek(offset)
    if stream.read(_BLOCK) != bytes(_BLOCK):
        raise UsageError(f"{shard} is damaged or cut behind {last}: it has no end mark there. Copy or make it anew.")


def _is_image(ending: str) -> bool:
    return f".{ending.rpartition('.')[2]}" in EXTENSIONS


def image_kind(sample: Sample, asked: str, where: str) -> str:
    """Find which of a sample's files is its image. Raises `UsageError` if none is, or several are and none was asked for."""
    images = [ending for ending in sample.files if _is_image(ending)]
    if asked in images:
        return asked
    if len(images) == 1 and not asked:
        return images[0]
    have = ", ".join(f".{ending}" for ending in (*sample.files, *sample.others))
    what = f"no .{asked} image" if asked else "several images" if images else "no image"
    advice = " Choose one: --set data.image=" + " or ".join(images) + "." if images else " Leave it out."
    raise UsageError(f"{where} has {what}; its files are {have}.{advice}")


def label_of(sample: Sample, asked: str, where: str) -> str:
    """Read a sample's label as text: from .cls, or from a key of .json; or from what was asked for, an ending or json.KEY.

    Raises:
        UsageError: it has none, or one that is neither text nor a whole number.
    """
    ending, _, key = asked.partition(".") if asked.startswith("json.") else (asked, "", "")
    if not asked:
        ending = next((name for name in ("cls", "json") if name in sample.files), "")
    if ending not in sample.files:
        have = ", ".join(f".{name}" for name in (*sample.files, *sample.others))
        raise UsageError(
            f"{where} has no {f'.{ending}' if ending else '.cls and no .json'}; its files are {have}. Name the label's place: --set "
            "data.label=ENDING, such as cls, or json.KEY."
        )
    try:
        text = sample.files[ending].decode("utf-8-sig").strip()
        value = _in_json(json.loads(text), key, where) if ending.endswith("json") else text
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: .{ending} is no {'JSON' if ending.endswith('json') else 'UTF-8'} ({error})."
        ) from error
    text = "" if isinstance(value, bool) or not isinstance(value, (str, int)) else str(value).strip()
    if not text or not text.isprintable():
        raise UsageError(
            f"{where}: .{ending} has the label {value!r:.100}: expected one line of text, or a whole number."
        )
    return text


def _in_json(found: object, key: str, where: str) -> object:
    if not isinstance(found, dict):
        return found
    names = [key] if key else [name for name in _LABELS if name in found][:1]
    if not names or names[0] not in found:
        have = ", ".join(map(str, found)) or "none"
        raise UsageError(
            f"{where}: its .json has no label {key}. Name one: --set data.label=json.KEY; there are: {have}."
        )
    return found[names[0]]


def class_names(root: Path) -> list[str]:
    """Read `classnames.txt`, a name in each line for label 0, 1, ...; empty without one. Raises `UsageError` if a name stands there
    twice, or it is not UTF-8."""
    path = root / _NAMES
    if not path.is_file():
        return []
    with open_named(path, "list of classes") as stream:
        try:
            names = [line.strip() for line in stream.read().decode("utf-8-sig").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is not UTF-8 (byte {error.start:,}). Save it as UTF-8.") from None
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UsageError(f"{path} has the class {twice[0]!r} twice. Each label needs a name of its own.")
    return names


def _class_of(label: str, names: Sequence[str], where: str) -> str:
    if not names:
        return label
    if not label.isdecimal() or int(label) >= len(names):
        raise UsageError(f"{where} has the label {label}, and {_NAMES} has names for 0 to {len(names) - 1}.")
    return names[int(label)]
