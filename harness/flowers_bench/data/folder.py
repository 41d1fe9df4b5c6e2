"""Any folder of images: `train/ val/ test/` with class folders in each, or class folders alone and a split rule.

The rule: within each class, images are ordered by the SHA-256 of (split_seed, content), and the first shares go to
test and validation. Adding an image does not reshuffle the others, and byte-identical copies stay on one side.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowers_bench.data.cache import Slice, cached_images
from flowers_bench.data.dataset import DataRequest, Dataset, Split, split_checksum
from flowers_bench.data.decode import EXTENSIONS, decode_image
from flowers_bench.errors import UsageError

_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test",)}


@dataclass(frozen=True)
class _Listing:
    """Relative paths by class name, in order, and how many other files were passed over."""

    classes: dict[str, list[str]]
    passed_over: int


def load(request: DataRequest) -> Dataset:
    """From `request.path`. Raises `UsageError` for whatever is missing, empty or unreadable, by name."""
    root = request.path
    if root is None:
        raise UsageError("--data folder: name the folder itself, such as --data ../my/images.")
    options = _parse(request.options)
    given = _split_folders(root)
    notes: list[str] = []
    if given:
        listings = {split: _list(root / folder, root) for split, folder in given.items()}
        notes += _passed_over(sum(listing.passed_over for listing in listings.values()))
        paths = {split: listing.classes for split, listing in listings.items()}
        _check_classes(root, paths)
        hashes = _hashes(root, request.cache_dir, [p for split in paths.values() for c in split.values() for p in c])
    else:
        listing = _list(root, root)
        notes += _passed_over(listing.passed_over)
        hashes = _hashes(root, request.cache_dir, [p for c in listing.classes.values() for p in c])
        paths = _split_by_rule(root, listing.classes, hashes, options)
        notes.append(f"split by rule: val {options['val']}, test {options['test']}, split_seed {options['split_seed']}")
    notes += _duplicates(paths, hashes)
    return _dataset(request, root, paths, hashes, notes)


def _dataset(
    request: DataRequest,
    root: Path,
    paths: dict[str, dict[str, list[str]]],
    hashes: Mapping[str, str],
    notes: list[str],
) -> Dataset:
    names = sorted(paths["train"])
    ordered = {
        split: [(p, names.index(c)) for c in sorted(paths[split]) for p in paths[split][c]]
        for split in ("train", "val", "test")
    }
    files = [p for split in ordered.values() for p, _ in split]
    digest = hashlib.sha256(f"folder {request.stored_side}".encode())
    for split, items in ordered.items():
        for path, label in items:
            digest.update(json.dumps([split, path, label, hashes[path]]).encode())
    key = digest.hexdigest()
    cache_name = "folder-" + hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    images = cached_images(
        request.cache_dir,
        cache_name,
        key,
        lambda: _decoded(root, files, request.stored_side),
        len(files),
        request.progress,
    )
    splits, start = {}, 0
    for split, items in ordered.items():
        labels = np.array([label for _, label in items], np.int64)
        splits[split] = Split(Slice(images, start, start + len(items)), labels, [p for p, _ in items])
        start += len(items)
    return Dataset(
        name=root.resolve().name,
        class_names=names,
        fingerprint=key,
        split_checksum=split_checksum({s: ([p for p, _ in i], [label for _, label in i]) for s, i in ordered.items()}),
        resolution=f"shortest side at most {request.stored_side}",
        notes=tuple(notes),
        **splits,
    )


def _parse(options: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        try:
            found[name] = (int if name == "split_seed" else float)(str(value))
        except ValueError:
            raise UsageError(f"data.{name}={value}: expected a number.") from None
    for name in ("val", "test"):
        if not 0 < found[name] < 1:
            raise UsageError(f"data.{name}={found[name]}: expected a share between 0 and 1.")
    if found["val"] + found["test"] >= 1:
        raise UsageError("data.val and data.test leave nothing to train on.")
    return found


def _split_folders(root: Path) -> dict[str, str]:
    """The folder of each split, or nothing if there is none of them."""
    try:
        present = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    except OSError as error:
        raise UsageError(f"cannot read {root}: {error.strerror}.") from error
    found = {split: next((name for name in names if name in present), "") for split, names in _ALIASES.items()}
    if not any(found.values()):
        return {}
    missing = [split for split, name in found.items() if not name]
    if missing:
        have = ", ".join(f"{name}/" for name in found.values() if name)
        raise UsageError(
            f"{root} has {have} but no {', '.join(f'{s}/' for s in missing)}. All three are needed: validation chooses the checkpoint, and "
            "the test split is read once. Move some images there, or put all class folders into one folder to be split by rule."
        )
    return found


def _list(folder: Path, root: Path) -> _Listing:
    """Images by class folder, sorted; hidden entries are ignored, links that leave `root` are refused."""
    classes: dict[str, list[str]] = {}
    passed_over = 0
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            passed_over += 1
            continue
        _refuse_outside(entry, root)
        prefix = os.path.relpath(entry.path, root).replace(os.sep, "/")
        files = sorted((f for f in os.scandir(entry.path) if not f.name.startswith(".")), key=lambda e: e.name)
        images = [f for f in files if f.is_file() and os.path.splitext(f.name)[1].lower() in EXTENSIONS]
        for file in images:
            _refuse_outside(file, root)
        passed_over += len(files) - len(images)
        if not images:
            raise UsageError(
                f"class folder {entry.path} has no images ({', '.join(sorted(EXTENSIONS))}). Fill it or remove it."
            )
        classes[entry.name] = [f"{prefix}/{file.name}" for file in images]
    if not classes:
        raise UsageError(f"{folder} has no class folders with images. Expected {folder}/CLASS/IMAGE.jpg.")
    return _Listing(classes, passed_over)


def _refuse_outside(entry: os.DirEntry[str], root: Path) -> None:
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{entry.path} is a link that leaves {root}. Copy what it points to, or remove it.")


def _passed_over(count: int) -> list[str]:
    return [f"{count} files that are not images in class folders were passed over"] if count else []


def _check_classes(root: Path, paths: dict[str, dict[str, list[str]]]) -> None:
    train = set(paths["train"])
    if len(train) < 2:
        raise UsageError(f"{root} has {len(train)} class; at least 2 are needed.")
    for split in ("val", "test"):
        unseen = sorted(set(paths[split]) - train)
        if unseen:
            raise UsageError(
                f"class {unseen[0]!r} is in {split}/ but not in train/ ({len(unseen)} such classes): it cannot be learned."
            )


def _hashes(root: Path, cache_dir: Path, paths: list[str]) -> dict[str, str]:
    """SHA-256 of each file; kept in the cache by size and time of change, so that the next start need not read them."""
    from flowers_bench.store import write_json

    memory = cache_dir / f"hashes-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    found = {}
    for path in paths:
        try:
            status = os.stat(root / path)
            stamp = [status.st_size, status.st_mtime_ns]
            if known.get(path, [None])[0] != stamp:
                known[path] = [stamp, hashlib.sha256((root / path).read_bytes()).hexdigest()]
        except OSError as error:
            raise UsageError(f"image {root / path} cannot be read: {error.strerror}.") from error
        found[path] = known[path][1]
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        write_json(memory, {path: known[path] for path in paths})
    except OSError as error:
        raise UsageError(
            f"cannot write to {cache_dir}: {error.strerror}. Choose another place with --data-dir."
        ) from error
    return found


def _split_by_rule(
    root: Path, classes: dict[str, list[str]], hashes: Mapping[str, str], options: Mapping[str, Any]
) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {"train": {}, "val": {}, "test": {}}
    if len(classes) < 2:
        raise UsageError(f"{root} has {len(classes)} class; at least 2 are needed.")
    for name, paths in classes.items():
        place = {
            p: int(hashlib.sha256(f"{options['split_seed']} {hashes[p]}".encode()).hexdigest()[:12], 16) / 16**12
            for p in paths
        }
        sides: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for path in paths:
            split = (
                "test"
                if place[path] < options["test"]
                else "val"
                if place[path] < options["test"] + options["val"]
                else "train"
            )
            sides[split].append(path)
        for split, chosen in sides.items():
            if not chosen and split == "train":
                raise UsageError(
                    f"class {name!r} has only {len(paths)} images: none is left to train on. Add images or lower data.test."
                )
            if chosen:
                found[split][name] = chosen
    for split in ("val", "test"):
        if not found[split]:
            raise UsageError(f"{root} has too few images for a {split} split. Raise data.{split}.")
    return found


def _duplicates(paths: dict[str, dict[str, list[str]]], hashes: Mapping[str, str]) -> list[str]:
    sides: dict[str, set[str]] = {}
    for split, classes in paths.items():
        for files in classes.values():
            for path in files:
                sides.setdefault(hashes[path], set()).add(split)
    leaks = sum("test" in found and len(found) > 1 for found in sides.values())
    return (
        [f"{leaks} test images also stand in another split, byte for byte: accuracy on them is not honest"]
        if leaks
        else []
    )


def _decoded(root: Path, files: list[str], shortest_side: int) -> Iterator[np.ndarray]:
    return (decode_image(root / file, shortest_side) for file in files)
