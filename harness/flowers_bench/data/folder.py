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
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path

import numpy as np

from flowers_bench.contract.dataset import DataRequest, Dataset, Split, split_checksum
from flowers_bench.contract.options import OptionValue, parse_options
from flowers_bench.data.cache import CachedImages, Selection, cached_images
from flowers_bench.data.decode import DECODER, decode_images
from flowers_bench.data.hashes import Content, copies_note, image_contents
from flowers_bench.data.levels import Scales, notes_on_levels, scales_of
from flowers_bench.data.listing import Classes, find_splits, list_classes, look, notes_on_files
from flowers_bench.data.options import FOLDER_OPTIONS
from flowers_bench.util.errors import UsageError


def load(request: DataRequest) -> Dataset:
    """Load the dataset from `request.path`. Raises `UsageError` for whatever is missing, empty or unreadable, by name."""
    root = request.path
    if root is None:
        raise UsageError("--data folder: name the folder itself, such as --data ../my/images.")
    val, test, seed = _parse(request.options)
    try:
        layout = find_splits(root)
        listings = {split: list_classes(root / folder, root) for split, folder in (layout.splits or {"": "."}).items()}
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or root}: {error.strerror}.") from error
    found = [path for listing in listings.values() for path in listing.paths()]
    contents = image_contents(root, found, request.cache_dir, request.progress, read_only=request.read_only)
    hashes = {path: content.sha256 for path, content in contents.items()}
    notes = notes_on_files(layout, listings.values())
    if layout.splits:
        splits = {split: listing.classes for split, listing in listings.items()}
    else:
        splits = split_by_rule(listings[""].classes, hashes, val, test, seed)
        notes.append(f"split by rule: val {val}, test {test}, split_seed {seed}")
    check_classes(root, splits)
    notes += copies_note({s: {hashes[p] for p in _listed(splits[s])} for s in splits}) + uneven_notes(splits)
    return _dataset(request, root, splits, contents, notes)


def split_by_rule(
    classes: Classes, hashes: Mapping[str, str], val: float, test: float, seed: int
) -> dict[str, Classes]:
    """Divide each class into training, validation and test split; the module's docstring has the rule.

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
    """Place an image's content between 0 and 1; contents are spread evenly."""
    return int(hashlib.sha256(f"{seed} {content}".encode()).hexdigest()[:12], 16) / 16**12


def _at_least_one(count: int, in_test: int, in_val: int) -> tuple[int, int]:
    """Change the sizes of a class's test and validation split where one of the three splits (training too) would be
    empty."""
    n_test = min(max(1, in_test), max(count - 2, min(count - 1, 1)))
    n_val = min(max(1, in_val), count - 1 - n_test)
    return n_test, n_val


def _dataset(
    request: DataRequest, root: Path, splits: Mapping[str, Classes], contents: Mapping[str, Content], notes: list[str]
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
    levels = [content.facts.levels for content in contents.values() if content.facts.levels]
    scales = scales_of(levels)
    images = _cached(request, root, paths, contents, scales)
    position = {path: number for number, path in enumerate(paths)}
    found = {
        split: Split(
            Selection(images, np.array([position[key] for key in keys], np.int64)),
            np.array(labels, np.int64),
            keys,
            contents=[contents[key].sha256 for key in keys],
        )
        for split, (keys, labels) in listing.items()
    }
    return Dataset(
        train=found["train"],
        val=found["val"],
        test=found["test"],
        name=root.resolve().name,
        class_names=names,
        fingerprint=_fingerprint(listing, contents, scales, request.stored_side),
        split_checksum=split_checksum(listing),
        resolution=f"shortest side at most {request.stored_side}",
        notes=tuple(notes + notes_on_levels(levels, scales)),
        grey_levels={kind: (scale.black, scale.white) for kind, scale in scales.items()},
    )


def _fingerprint(
    listing: Mapping[str, tuple[list[str], list[int]]],
    contents: Mapping[str, Content],
    scales: Scales,
    stored_side: int,
) -> str:
    digest = hashlib.sha256(f"folder {stored_side}".encode())
    for split in ("train", "val", "test"):
        entries = zip(*listing[split], strict=True)
        lines = [
            f"[{quoted(split)}, {quoted(path)}, {label}, {quoted(contents[path].sha256)}]" for path, label in entries
        ]
        digest.update("".join(lines).encode())
    if scales or any(content.facts.changed for content in contents.values()):
        digest.update(f"{DECODER} {_scales_text(scales)}".encode())
    return digest.hexdigest()


def _cached(
    request: DataRequest, root: Path, paths: list[str], contents: Mapping[str, Content], scales: Scales
) -> CachedImages:
    """Open all images, in the order of `paths`. The split is no part of the cache's key: another split reads the same
    cache."""
    digest = hashlib.sha256(f"{DECODER} {request.stored_side}{_scales_text(scales)}".encode())
    hashes = [contents[path].sha256 for path in paths]
    for content in hashes:
        digest.update(bytes.fromhex(content))
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:8]
    return cached_images(
        request.cache_dir,
        f"images-{place}-{request.stored_side}",
        digest.hexdigest(),
        lambda: decode_images([os.path.join(root, path) for path in paths], request.stored_side, scales, hashes),
        len(paths),
        request.progress,
        supersedes=True,
        read_only=request.read_only,
    )


def _scales_text(scales: Scales) -> str:
    return "".join(f" {kind} {scale.black!r} {scale.white!r}" for kind, scale in sorted(scales.items()))


def _parse(options: Mapping[str, OptionValue]) -> tuple[float, float, int]:
    """Read the shares of validation and test, and the seed of the split."""
    values = parse_options(FOLDER_OPTIONS, options, "data.")
    val, test = values.number("val"), values.number("test")
    for name, share in (("val", val), ("test", test)):
        if not 0 < share < 1:
            raise UsageError(f"data.{name}={share}: expected a share above 0 and below 1.")
    if val + test >= 1:
        raise UsageError("data.val and data.test leave nothing to train on.")
    return val, test, values.integer("split_seed")


def _listed(classes: Classes) -> Iterable[str]:
    return (path for paths in classes.values() for path in paths)


def check_classes(root: Path, splits: Mapping[str, Classes]) -> None:
    """Raise `UsageError` where the splits leave nothing to learn or to measure."""
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
            near = next((name for name in train if look(name) == look(unseen[0])), None)
            hint = f" It looks like {near!a} and is spelt {unseen[0]!a}: rename one of them." if near else ""
            raise UsageError(
                f"class {unseen[0]!r} is in {split}/ but not in train/ ({len(unseen)} such classes): it cannot be learned.{hint}"
            )


def uneven_notes(splits: Mapping[str, Classes]) -> list[str]:
    """Note how many classes are trained on and not measured."""
    absent = {split: len(splits["train"]) - len(splits[split]) for split in ("val", "test")}
    return [f"{count} classes have no {split} images" for split, count in absent.items() if count]
