"""What files hold, remembered between runs: their SHA-256, and of images what must be known before they are decoded."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, TypeVar

from flowers_bench.contract.dataset import Progress, silent
from flowers_bench.data.decode import ORDINARY, ImageFacts, image_facts
from flowers_bench.data.files import check_regular, open_named, read_image, unreadable
from flowers_bench.data.levels import Levels
from flowers_bench.data.threads import in_order
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import read_regular, write_atomically

T = TypeVar("T")

#: Bytes of what is remembered: millions of files.
_LARGEST = 1 << 30
#: Size, time of the last write and of the last change of the entry (which, unlike the former, nobody can set).
Stamp = list[int]
#: Nanoseconds. What was written more recently may be written again without its times changing, and is not remembered.
SETTLED = 2_000_000_000


@dataclass(frozen=True)
class Content:
    """What an image file holds: its SHA-256 (hexadecimal), and what must be known before it is decoded."""

    sha256: str
    facts: ImageFacts = ORDINARY


def content_hashes(
    root: Path,
    paths: Sequence[str],
    cache_dir: Path,
    progress: Progress = silent,
    name: str = "files",
    *,
    read_only: bool = False,
) -> dict[str, str]:
    """Compute the SHA-256 (hexadecimal) of each file, by path, in the order given.

    A file is read again only when its size or times differ from what `cache_dir` remembers.

    Args:
        root: the folder that `paths` are relative to.
        paths: with `/` as separator; absolute ones stand for themselves.
        cache_dir: where hashes are remembered; created.
        progress: shown while files are read.
        name: what the files are, for people.
        read_only: write nothing, and read no file: `UsageError` where one is not remembered as it is.

    Raises:
        UsageError: a file is missing, cannot be read or is no regular file, by name; or `cache_dir` cannot be written.
    """
    return _remembered(
        _memory(cache_dir, "hashes", root), root, paths, _sha256, _digest, progress, name, read_only=read_only
    )


def image_contents(
    root: Path,
    paths: Sequence[str],
    cache_dir: Path,
    progress: Progress = silent,
    name: str = "images",
    *,
    read_only: bool = False,
) -> dict[str, Content]:
    """Hash images as `content_hashes` does, and read what must be known of all of them before one is decoded."""
    return _remembered(
        _memory(cache_dir, "contents", root), root, paths, _row, _content, progress, name, read_only=read_only
    )


@dataclass(frozen=True)
class Looked:
    """What was seen of an image: the stamp of its file before it was read, and what `image_contents` remembers of it."""

    stamp: Stamp
    row: list[Any]

    @classmethod
    def at(cls, root: Path, path: str) -> Looked:
        """Read a file once. Raises `UsageError` where it cannot be read."""
        stamp = _stamp(os.fspath(root), path)
        return cls(stamp, _row(os.path.join(root, path)))

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file, hexadecimal."""
        return _content(self.row).sha256


def remember_contents(root: Path, cache_dir: Path, looked: Mapping[str, Looked]) -> None:
    """Write down what was seen of files, by path, so that `image_contents` does not read them again; changed ones it reads anyway.

    Raises:
        UsageError: `cache_dir` cannot be written.
    """
    memory, settled = _memory(cache_dir, "contents", root), time.time_ns() - SETTLED
    lasting = {path: (one.stamp, one.row) for path, one in looked.items() if one.stamp[2] < settled}
    _remember(memory, {**_recall(memory, _content), **lasting})


def copies_note(splits: Mapping[str, Iterable[str]]) -> list[str]:
    """Note how many byte-identical images stand in several splits; empty if there are none.

    Args:
        splits: the images' SHA-256 by split: train, val and test.
    """
    train, val = set(splits["train"]), set(splits["val"])
    in_test = sum(digest in train or digest in val for digest in splits["test"])
    in_val = sum(digest in train for digest in splits["val"])
    notes = []
    if in_test:
        notes.append(
            f"{in_test} test images also stand in another split, byte for byte: accuracy on them is not honest"
        )
    if in_val:
        notes.append(f"{in_val} validation images also stand in train/, byte for byte")
    return notes


def _memory(cache_dir: Path, kind: str, root: Path) -> Path:
    return cache_dir / f"{kind}-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]}.json"


def _remembered(
    memory: Path,
    root: Path,
    paths: Sequence[str],
    read: Callable[[str], Any],
    parse: Callable[[Any], T],
    progress: Progress,
    name: str,
    *,
    read_only: bool,
) -> dict[str, T]:
    """Compute `parse(read(file))` by path; `read`, whose JSON values `memory` holds, is called only for files that
    changed since."""
    remembered = _recall(memory, parse)
    base = os.fspath(root)
    settled = time.time_ns() - SETTLED
    stamps = {path: _stamp(base, path) for path in paths}
    known = {path: remembered[path] for path in paths if remembered.get(path, (None,))[0] == stamps[path]}
    unknown = [path for path in paths if path not in known]
    if read_only and unknown:
        raise UsageError(f"{len(unknown)} {name} in {root}, such as {unknown[0]}, are new or changed.")
    if unknown:
        fresh = in_order(lambda path: read(os.path.join(base, path)), unknown)
        for path, value in zip(unknown, progress(fresh, f"reading {name}", len(unknown)), strict=True):
            known[path] = (stamps[path], value)
    lasting = {path: entry for path, entry in known.items() if entry[0][2] < settled}
    if lasting != remembered and not read_only:
        _remember(memory, lasting)
    return {path: parse(known[path][1]) for path in paths}


def _recall(memory: Path, parse: Callable[[Any], object]) -> dict[str, tuple[Stamp, Any]]:
    try:
        entries = json.loads(read_regular(memory, _LARGEST))
        found = {path: (stamp, value) for path, (stamp, value) in entries.items()}
        for _, value in found.values():
            parse(value)
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: read the files again
        return {}
    return found


def _remember(memory: Path, known: Mapping[str, tuple[Stamp, Any]]) -> None:
    text = json.dumps(known, separators=(",", ":"))
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=False)
    except OSError as error:
        raise UsageError(
            f"cannot write to {memory.parent}: {error.strerror}. Choose another place with --data-dir."
        ) from error


def _stamp(root: str, path: str) -> Stamp:
    file = os.path.join(root, path)  # plain text: there may be hundreds of thousands
    try:
        status = os.stat(file)
    except OSError as error:
        raise unreadable(file, error) from error
    check_regular(status, file)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _sha256(file: str) -> str:
    digest = hashlib.sha256()
    with open_named(file) as stream:
        try:
            while block := stream.read(1 << 20):
                digest.update(block)
        except OSError as error:
            raise unreadable(file, error) from error
    return digest.hexdigest()


def _digest(value: Any) -> str:
    """Check that the value is a SHA-256, and give it. Raises `TypeError` or `ValueError` for anything else."""
    if len(bytes.fromhex(value)) != 32:
        raise ValueError(value)
    return str(value)


def _row(file: str) -> list[Any]:
    """Turn a `Content` into JSON; short for ordinary images, which are most."""
    content = read_image(file)
    facts = image_facts(content)
    digest = hashlib.sha256(content).hexdigest()
    if facts == ORDINARY:
        return [digest]
    return [digest, facts.turned, *(astuple(facts.levels) if facts.levels else ())]


def _content(row: Any) -> Content:
    """Turn what `_row` made into a `Content` again. Raises `TypeError` or `ValueError` for anything else."""
    if len(row) == 1:
        return Content(_digest(row[0]))
    digest, turned, *levels = row
    return Content(_digest(digest), ImageFacts(Levels(*levels) if levels else None, turned))
