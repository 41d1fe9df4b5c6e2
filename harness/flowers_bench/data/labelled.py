"""Image files with labels and splits, as a dataset: hashed, decoded once and kept, with the facts that stand on results.

`folder` finds its files in folders, `manifest` in a table, the official sets in their authors' lists; what becomes of
them is the same, and is here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quoted
from pathlib import Path

import numpy as np

from flowers_bench.contract.dataset import DataRequest, Dataset, NameLevel, Split, split_checksum
from flowers_bench.data.cache import CachedImages, Selection, cached_images
from flowers_bench.data.decode import DECODER, decode_images
from flowers_bench.data.hashes import Content
from flowers_bench.data.levels import Scales, notes_on_levels, scales_of
from flowers_bench.data.listing import Classes, look
from flowers_bench.util.errors import UsageError

#: Paths and labels (from 0) by split.
Listing = Mapping[str, tuple[Sequence[str], Sequence[int]]]
SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class LabelledFiles:
    """Image files of a dataset, and what is said of it.

    Attributes:
        name: the dataset's name.
        root: the folder that paths are relative to.
        kind: what gave the labels, such as "folder"; part of the fingerprint.
        class_names: C names, index = label.
        names_in_paths: whether paths hold the classes' names. If not, the names are part of the fingerprint: some
            techniques read them.
        listing: paths and labels of train, val and test; no path twice.
        notes: what must be said wherever a number from this dataset is printed.
        name_levels: coarser names of the classes.
        source: what listed the files, if it is not the folder itself: a table. Caches of one source replace each other.
    """

    name: str
    root: Path
    kind: str
    class_names: Sequence[str]
    listing: Listing
    names_in_paths: bool = False
    notes: Sequence[str] = ()
    name_levels: Sequence[NameLevel] = ()
    source: Path | None = None


def numbered(splits: Mapping[str, Classes], names: Sequence[str]) -> dict[str, tuple[list[str], list[int]]]:
    """List paths and labels of each split, class by class in the order of `names`, which are all classes'."""
    return {
        split: (
            [path for name in names for path in classes.get(name, ())],
            [label for label, name in enumerate(names) for _ in classes.get(name, ())],
        )
        for split, classes in splits.items()
    }


def check_classes(where: Path, splits: Mapping[str, Classes]) -> None:
    """Raise `UsageError` where fewer than two classes are trained on, a split is empty, or a class is measured that is
    not trained on.

    Args:
        where: the folder or file, for people.
    """
    train = set(splits["train"])
    if len(train) < 2:
        raise UsageError(
            f"{where} has {len(train)} class{'' if len(train) == 1 else 'es'} to train on; at least 2 are needed."
        )
    for split in ("val", "test"):
        if not splits[split]:
            raise UsageError(f"{where} has too few different images for a {split} split: some class needs at least 3.")
        unseen = sorted(set(splits[split]) - train)
        if unseen:
            near = next((name for name in train if look(name) == look(unseen[0])), None)
            hint = f" It looks like {near!a} and is spelt {unseen[0]!a}: rename one of them." if near else ""
            raise UsageError(
                f"class {unseen[0]!r} is in {split}/ but not in train/ ({len(unseen)} such classes): it cannot be learned.{hint}"
            )


def uneven_note(splits: Mapping[str, Classes]) -> list[str]:
    """Note how many classes are trained on and not measured."""
    absent = {split: len(splits["train"]) - len(splits[split]) for split in ("val", "test")}
    return [f"{count} classes have no {split} images" for split, count in absent.items() if count]


def assemble(request: DataRequest, files: LabelledFiles, contents: Mapping[str, Content]) -> Dataset:
    """Make a dataset of image files: decode them, or open what was decoded before.

    Args:
        contents: as `image_contents` gives it, for every path of the listing.

    Raises:
        UsageError: an image cannot be read, by name; or the cache cannot be written.
    """
    paths = sorted(path for keys, _ in files.listing.values() for path in keys)
    levels = [content.facts.levels for content in contents.values() if content.facts.levels]
    scales = scales_of(levels)
    images = _cached(request, files, paths, contents, scales)
    position = {path: number for number, path in enumerate(paths)}
    found = {
        split: Split(
            Selection(images, np.array([position[key] for key in keys], np.int64)),
            np.array(labels, np.int64),
            keys,
            contents=[contents[key].sha256 for key in keys],
        )
        for split, (keys, labels) in files.listing.items()
    }
    return Dataset(
        train=found["train"],
        val=found["val"],
        test=found["test"],
        name=files.name,
        class_names=files.class_names,
        fingerprint=_fingerprint(files, contents, scales, request.stored_side),
        split_checksum=split_checksum(files.listing),
        resolution=f"shortest side at most {request.stored_side}",
        notes=(*files.notes, *notes_on_levels(levels, scales)),
        grey_levels={kind: (scale.black, scale.white) for kind, scale in scales.items()},
        name_levels=files.name_levels,
    )


def _fingerprint(files: LabelledFiles, contents: Mapping[str, Content], scales: Scales, stored_side: int) -> str:
    digest = hashlib.sha256(f"{files.kind} {stored_side}".encode())
    if not files.names_in_paths:
        digest.update(json.dumps(list(files.class_names)).encode())
    for split in SPLITS:
        entries = zip(*files.listing[split], strict=True)
        lines = [
            f"[{quoted(split)}, {quoted(path)}, {label}, {quoted(contents[path].sha256)}]" for path, label in entries
        ]
        digest.update("".join(lines).encode())
    if scales or any(content.facts.changed for content in contents.values()):
        digest.update(f"{DECODER} {_scales_text(scales)}".encode())
    return digest.hexdigest()


def _cached(
    request: DataRequest, files: LabelledFiles, paths: list[str], contents: Mapping[str, Content], scales: Scales
) -> CachedImages:
    """Open all images, in the order of `paths`. The split is no part of the cache's key: another split reads the same
    cache."""
    digest = hashlib.sha256(f"{DECODER} {request.stored_side}{_scales_text(scales)}".encode())
    hashes = [contents[path].sha256 for path in paths]
    for content in hashes:
        digest.update(bytes.fromhex(content))
    place = hashlib.sha256(os.fsencode((files.source or files.root).resolve())).hexdigest()[:8]
    return cached_images(
        request.cache_dir,
        f"images-{place}-{request.stored_side}",
        digest.hexdigest(),
        lambda: decode_images([os.path.join(files.root, path) for path in paths], request.stored_side, scales, hashes),
        len(paths),
        request.progress,
        supersedes=True,
        read_only=request.read_only,
    )


def _scales_text(scales: Scales) -> str:
    return "".join(f" {kind} {scale.black!r} {scale.white!r}" for kind, scale in sorted(scales.items()))
