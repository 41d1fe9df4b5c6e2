"""SHA-256 of many files, remembered between runs, and what byte-identical copies mean for a split."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from flowers_bench.data.dataset import Progress, silent
from flowers_bench.data.threads import in_order
from flowers_bench.errors import UsageError
from flowers_bench.files import read_regular
from flowers_bench.store import write_atomically

#: Bytes of what is remembered: millions of files.
_LARGEST = 1 << 30
#: Size, time of the last write and of the last change of the entry (which, unlike the former, nobody can set).
Stamp = list[int]


def content_hashes(
    root: Path,
    paths: Sequence[str],
    cache_dir: Path,
    progress: Progress = silent,
    name: str = "files",
    *,
    read_only: bool = False,
) -> dict[str, str]:
    """SHA-256 (hexadecimal) by path, in the order given.

    A file is read again only when its size or times differ from what `cache_dir` remembers.

    Args:
        root: the folder that `paths` are relative to.
        paths: with `/` as separator.
        cache_dir: where hashes are remembered; created.
        progress: shown while files are read.
        name: what the files are, for people.
        read_only: write nothing, and read no file: `UsageError` where one is not remembered as it is.

    Raises:
        UsageError: a file is missing or cannot be read, by name; or `cache_dir` cannot be written.
    """
    memory = cache_dir / f"hashes-{hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]}.json"
    remembered = _recall(memory)
    base = os.fspath(root)
    stamps = {path: _stamp(base, path) for path in paths}
    known = {path: remembered[path] for path in paths if remembered.get(path, (None,))[0] == stamps[path]}
    unknown = [path for path in paths if path not in known]
    if read_only and unknown:
        raise UsageError(f"{len(unknown)} {name} in {root}, such as {unknown[0]}, are new or changed.")
    if unknown:
        fresh = in_order(lambda path: _sha256(base, path), unknown)
        for path, digest in zip(unknown, progress(fresh, f"reading {name}", len(unknown)), strict=True):
            known[path] = (stamps[path], digest)
    if known != remembered and not read_only:
        _remember(memory, known)
    return {path: known[path][1] for path in paths}


def copies_note(splits: Mapping[str, Iterable[str]]) -> list[str]:
    """What to say about byte-identical images that stand in several splits; empty if there are none.

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


def _recall(memory: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        entries = json.loads(read_regular(memory, _LARGEST))
        return {path: (stamp, str(digest)) for path, (stamp, digest) in entries.items()}
    except (OSError, ValueError, TypeError, AttributeError):  # none yet, or damaged: read the files again
        return {}


def _remember(memory: Path, known: Mapping[str, tuple[Stamp, str]]) -> None:
    text = json.dumps(known, separators=(",", ":"))
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memory, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=False)
    except OSError as error:
        raise UsageError(
            f"cannot write to {memory.parent}: {error.strerror}. Choose another place with --data-dir."
        ) from error


def _stamp(root: str, path: str) -> Stamp:
    file = f"{root}/{path}"  # plain text: there may be hundreds of thousands
    try:
        status = os.stat(file)
    except OSError as error:
        raise UsageError(f"image {file} is missing or cannot be read: {error.strerror}.") from error
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _sha256(root: str, path: str) -> str:
    file = f"{root}/{path}"
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UsageError(f"image {file} is missing or cannot be read: {error.strerror}.") from error
    return digest.hexdigest()
