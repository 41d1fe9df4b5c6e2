"""Any folder of images: `train/ val/ test/` with class folders in each, or class folders alone and a split rule.

The rule: the SHA-256 of (split_seed, content) puts each image on a scale from 0 to 1, and the shares asked for are cut
off its lower end: test first, then validation. So an added image leaves the others where they are, renaming changes
nothing, and byte-identical copies stay on one side. Only where a class would have no image in some split are its
nearest ones moved over the border.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path
from typing import Any

import numpy as np

from flowers_bench.data.cache import CachedImages, Selection, cached_images
from flowers_bench.data.dataset import DataRequest, Dataset, Split, split_checksum
from flowers_bench.data.decode import DECODER, EXTENSIONS, decode_images
from flowers_bench.data.hashes import content_hashes, copies_note
from flowers_bench.errors import UsageError

_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
#: Left by file managers and archivers; hidden files (a leading dot) are ignored as well.
_IGNORED = frozenset({"Thumbs.db", "desktop.ini", "__MACOSX"})

#: Relative paths by class name, in order.
Classes = dict[str, list[str]]


@dataclass(frozen=True)
class _Listing:
    """Relative paths by class name, in order, and how many other files were passed over."""

    classes: Classes
    passed_over: int

    def paths(self) -> list[str]:
        return [path for paths in self.classes.values() for path in paths]


def load(request: DataRequest) -> Dataset:
    """From `request.path`. Raises `UsageError` for whatever is missing, empty or unreadable, by name."""
    root = request.path
    if root is None:
        raise UsageError("--data folder: name the folder itself, such as --data ../my/images.")
    options = _parse(request.options)
    try:
        given = _split_folders(root)
        listings = {split: _list(root / folder, root) for split, folder in (given or {"": "."}).items()}
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or root}: {error.strerror}.") from error
    found = [path for listing in listings.values() for path in listing.paths()]
    hashes = content_hashes(root, found, request.cache_dir, request.progress, "images", read_only=request.read_only)
    notes = _passed_over(sum(listing.passed_over for listing in listings.values()))
    if given:
        splits = {split: listing.classes for split, listing in listings.items()}
    else:
        splits = split_by_rule(listings[""].classes, hashes, options["val"], options["test"], options["split_seed"])
        notes.append(f"split by rule: val {options['val']}, test {options['test']}, split_seed {options['split_seed']}")
    _check_classes(root, splits)
    notes += copies_note({s: {hashes[p] for p in _listed(splits[s])} for s in splits}) + _uneven(splits)
    return _dataset(request, root, splits, hashes, notes)


def split_by_rule(
    classes: Classes, hashes: Mapping[str, str], val: float, test: float, seed: int
) -> dict[str, Classes]:
    """Train, validation and test part of each class; see the module's docstring.

    A class of 3 or more different images has at least one in each split; one of 2 has none in validation, and the
    only image of a class is trained on. Images that stand in several classes follow the first of these.

    Args:
        classes: image paths by class.
        hashes: SHA-256 of the content by path.
        val, test: shares, each between 0 and 1, less than 1 together.
        seed: another one gives another split.
    """
    splits: dict[str, Classes] = {"train": {}, "val": {}, "test": {}}
    side: dict[str, str] = {}  # by content, over all classes
    for name, paths in classes.items():
        place = {hashes[path]: _place(hashes[path], seed) for path in paths}
        contents = sorted(place, key=lambda content: place[content])
        in_test = sum(value < test for value in place.values())
        in_val = sum(test <= value < test + val for value in place.values())
        n_test, n_val = _at_least_one(len(contents), in_test, in_val)
        for position, content in enumerate(contents):
            split = "test" if position < n_test else "val" if position < n_test + n_val else "train"
            side.setdefault(content, split)
        for path in paths:
            splits[side[hashes[path]]].setdefault(name, []).append(path)
    return splits


def _place(content: str, seed: int) -> float:
    """From 0 to 1, evenly spread."""
    return int(hashlib.sha256(f"{seed} {content}".encode()).hexdigest()[:12], 16) / 16**12


def _at_least_one(count: int, in_test: int, in_val: int) -> tuple[int, int]:
    """The sizes of a class's test and validation part, changed where a part (train too) would be empty."""
    n_test = min(max(1, in_test), max(count - 2, min(count - 1, 1)))
    n_val = min(max(1, in_val), count - 1 - n_test)
    return n_test, n_val


def _dataset(
    request: DataRequest, root: Path, splits: Mapping[str, Classes], hashes: Mapping[str, str], notes: list[str]
) -> Dataset:
    names = sorted(splits["train"])
    label = {name: number for number, name in enumerate(names)}
    listing = {
        split: (
            [p for c in sorted(classes) for p in classes[c]],
            [label[c] for c in sorted(classes) for _ in classes[c]],
        )
        for split, classes in splits.items()
    }
    paths = sorted(path for keys, _ in listing.values() for path in keys)
    images = _cached(request, root, paths, hashes)
    position = {path: number for number, path in enumerate(paths)}
    parts = {
        split: Split(
            Selection(images, np.array([position[key] for key in keys], np.int64)), np.array(labels, np.int64), keys
        )
        for split, (keys, labels) in listing.items()
    }
    return Dataset(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        name=root.resolve().name,
        class_names=names,
        fingerprint=_fingerprint(listing, hashes, request.stored_side),
        split_checksum=split_checksum(listing),
        resolution=f"shortest side at most {request.stored_side}",
        notes=tuple(notes),
    )


def _fingerprint(
    listing: Mapping[str, tuple[list[str], list[int]]], hashes: Mapping[str, str], stored_side: int
) -> str:
    digest = hashlib.sha256(f"folder {stored_side}".encode())
    for split in ("train", "val", "test"):
        entries = zip(*listing[split], strict=True)
        lines = [f"[{quoted(split)}, {quoted(path)}, {label}, {quoted(hashes[path])}]" for path, label in entries]
        digest.update("".join(lines).encode())
    return digest.hexdigest()


def _cached(request: DataRequest, root: Path, paths: list[str], hashes: Mapping[str, str]) -> CachedImages:
    """All images in the order of `paths`. The split is no part of the key: another one reads the same cache."""
    digest = hashlib.sha256(f"{DECODER} {request.stored_side}".encode())
    for path in paths:
        digest.update(bytes.fromhex(hashes[path]))
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
    return cached_images(
        request.cache_dir,
        f"images-{place}-{request.stored_side}",
        digest.hexdigest(),
        lambda: decode_images([os.path.join(root, path) for path in paths], request.stored_side),
        len(paths),
        request.progress,
        supersedes=True,
        read_only=request.read_only,
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
    """The folder of each split, in whatever case, or nothing if there is none of them."""
    with os.scandir(root) as entries:
        present = sorted((entry for entry in entries if entry.is_dir()), key=lambda entry: entry.name)
    found = {}
    for split, names in _ALIASES.items():
        folders = [entry for entry in present if entry.name.lower() in names]
        if len(folders) > 1:
            both = " and ".join(f"{entry.name}/" for entry in folders)
            raise UsageError(f"{root} has {both}. Keep one of them as the {split} split.")
        for entry in folders:
            _check_entry(entry, root)
        found[split] = folders[0].name if folders else ""
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
    classes: Classes = {}
    passed_over = 0
    for entry in _visible(folder):
        if not entry.is_dir():
            passed_over += 1
            continue
        _check_entry(entry, root)
        prefix = os.path.relpath(entry.path, root).replace(os.sep, "/")
        files = _visible(entry.path)
        images = [f for f in files if os.path.splitext(f.name)[1].lower() in EXTENSIONS and f.is_file()]
        for file in images:
            _check_entry(file, root)
        passed_over += len(files) - len(images)
        if not images:
            raise UsageError(
                f"class folder {entry.path} has no images ({', '.join(sorted(EXTENSIONS))}). Fill it or remove it."
            )
        classes[entry.name] = [f"{prefix}/{file.name}" for file in images]
    if not classes:
        raise UsageError(f"{folder} has no class folders with images. Expected {folder}/CLASS/IMAGE.jpg.")
    return _Listing(classes, passed_over)


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder by name, without those that nobody means."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".") and entry.name not in _IGNORED]
    return sorted(found, key=lambda entry: entry.name)


def _check_entry(entry: os.DirEntry[str], root: Path) -> None:
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name {os.fsencode(entry.path)!r} is not UTF-8. Rename it.") from None
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{entry.path} is a link that leaves {root}. Copy what it points to, or remove it.")


def _listed(classes: Classes) -> Iterable[str]:
    return (path for paths in classes.values() for path in paths)


def _passed_over(count: int) -> list[str]:
    return [f"{count} files that are not images in class folders were passed over"] if count else []


def _check_classes(root: Path, splits: Mapping[str, Classes]) -> None:
    train = set(splits["train"])
    if len(train) < 2:
        raise UsageError(
            f"{root} has {len(train)} class{'' if len(train) == 1 else 'es'} to train on; at least 2 are needed."
        )
    for split in ("val", "test"):
        if not splits[split]:
            raise UsageError(f"{root} has too few different images for a {split} split: some class needs at least 3.")
        unseen = sorted(set(splits[split]) - train)
        if unseen:
            raise UsageError(
                f"class {unseen[0]!r} is in {split}/ but not in train/ ({len(unseen)} such classes): it cannot be learned."
            )


def _uneven(splits: Mapping[str, Classes]) -> list[str]:
    """What to say about classes that are trained on but not measured."""
    absent = {split: len(splits["train"]) - len(splits[split]) for split in ("val", "test")}
    return [f"{count} classes have no {split} images" for split, count in absent.items() if count]
