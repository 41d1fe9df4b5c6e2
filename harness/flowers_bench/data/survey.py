"""A look at a folder of photographs before anything is trained: what is in it, how it splits, and what is wrong with it.

It reads every file once, and decodes a few to see how long that takes.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flowers_bench.contract.dataset import Progress, silent
from flowers_bench.data.decode import decode_image, image_size
from flowers_bench.data.files import is_image, visible
from flowers_bench.data.hashes import Looked, copies_note
from flowers_bench.data.labelled import SPLITS, check_classes, uneven_note
from flowers_bench.data.listing import Classes, list_splits, notes_on_files, reading
from flowers_bench.data.splitting import shares_of, split_by_rule
from flowers_bench.data.threads import in_order
from flowers_bench.util.errors import UsageError
from flowers_bench.util.text import counted

#: So many photographs are decoded to see how long it takes.
_DECODED = 16
#: So many files that cannot be read are named at once.
_NAMED = 10


@dataclass(frozen=True)
class ClassSize:
    """How many images a class has."""

    name: str
    images: int


@dataclass(frozen=True)
class Survey:
    """What a folder holds; all images can be read.

    Attributes:
        by_rule: whether the split follows the rule of docs/data.md, or the folder's own train/ val/ test/.
        images: how many images each split has, by split.
        smallest, largest: the classes with the fewest and the most images.
        fewest_to_train: how many training images the class with the fewest has.
        sizes: width and height in pixels of each image, as stored.
        bytes: of all files together.
        copies: how many images have the content of another one.
        seconds_to_decode: of one photograph, on one core, at `stored_side`; the median of a few.
        notes: what else is to be said: copies over splits, files passed over, classes without test images.
        looked: what `hashes.remember_contents` takes, so that nothing is read again to be hashed.
    """

    root: Path
    by_rule: bool
    classes: int
    images: Mapping[str, int]
    smallest: ClassSize
    largest: ClassSize
    fewest_to_train: int
    sizes: tuple[tuple[int, int], ...]
    bytes: int
    copies: int
    seconds_to_decode: float
    notes: tuple[str, ...]
    looked: Mapping[str, Looked]

    @property
    def total(self) -> int:
        """How many images there are."""
        return sum(self.images.values())

    def decoded_bytes(self, stored_side: int) -> int:
        """Compute how much the decoded images take in the cache, their shortest side being at most `stored_side`."""
        scales = (min(1.0, stored_side / min(size)) for size in self.sizes)
        return sum(
            3 * round(width * scale) * round(height * scale)
            for (width, height), scale in zip(self.sizes, scales, strict=True)
        )

    def sentences(self) -> list[str]:
        """Say what was found."""
        how = "your train/, val/ and test/ folders"
        if self.by_rule:
            val, test, _ = shares_of({})
            how = (
                f"by a rule, {100 * val:.0f} % for validation and {100 * test:.0f} % for "
                "the test, the same on every machine (docs/data.md)"
            )
        parts = " / ".join(f"{self.images[split]} {split}" for split in SPLITS)
        return [
            f"{counted(self.total, 'photograph')} of {self.classes} classes, {self.bytes / 1e6:.1f} MB: {self._sizes()}",
            self._balance(),
            f"split: {parts}; {how}",
            *([f"{self.copies} of them are copies of another one, byte for byte"] if self.copies else []),
            *self.notes,
        ]

    def _sizes(self) -> str:
        area = sorted(self.sizes, key=lambda size: size[0] * size[1])
        low, middle, high = (f"{w} x {h}" for w, h in (area[0], area[len(area) // 2], area[-1]))
        return f"all {low} pixels" if area[0] == area[-1] else f"{low} to {high} pixels, half of them {middle} or less"

    def _balance(self) -> str:
        low, high = self.smallest, self.largest
        if low.images == high.images:
            return f"each class has {low.images}"
        words = f"the smallest class, {low.name}, has {low.images}, the largest, {high.name}, {high.images}"
        uneven = high.images >= 3 * low.images
        return words + ("; that is uneven: look at the mean per class beside top-1" if uneven else "")


@dataclass(frozen=True)
class _Seen:
    """What one file is: its content and size in pixels; or why it cannot be read."""

    looked: Looked | None
    size: tuple[int, int]
    error: str | None = None


def survey(root: Path, stored_side: int, progress: Progress = silent) -> Survey:
    """Look at every image of a folder.

    Args:
        stored_side: the shortest side at which images would be decoded.

    Raises:
        UsageError: there is no such folder, or there are no classes or too few, or no images; files cannot be read (all are
            named at once).
    """
    if not root.is_dir():
        raise UsageError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}.")
    _refuse_loose(root)
    layout, listings = list_splits(root)
    paths = [path for listing in listings.values() for path in listing.paths()]
    seen = dict(
        zip(paths, progress(in_order(lambda path: _look(root, path), paths), "reading", len(paths)), strict=True)
    )
    _refuse_unreadable(root, seen)
    looked = {path: one.looked for path, one in seen.items() if one.looked}
    digests = {path: one.sha256 for path, one in looked.items()}
    splits = {split: listing.classes for split, listing in listings.items()}
    if not layout.splits:
        splits = split_by_rule(listings[""].classes, digests, *shares_of({}))
    check_classes(root, splits)
    notes = [*notes_on_files(layout, listings.values()), *_across(splits, digests), *uneven_note(splits)]
    sizes = _class_sizes(splits)
    return Survey(
        root=root,
        by_rule=not layout.splits,
        classes=len(splits["train"]),
        images={split: sum(map(len, splits[split].values())) for split in SPLITS},
        smallest=min(sizes, key=lambda one: one.images),
        largest=max(sizes, key=lambda one: one.images),
        fewest_to_train=min(map(len, splits["train"].values())),
        sizes=tuple(one.size for one in seen.values()),
        bytes=sum(one.stamp[0] for one in looked.values()),
        copies=len(digests) - len(set(digests.values())),
        seconds_to_decode=_decode_some(root, paths, stored_side),
        notes=tuple(notes),
        looked=looked,
    )


def _refuse_loose(root: Path) -> None:
    """Raise `UsageError` for a folder that has images and no folder."""
    with reading(root):
        entries = visible(root)
    loose = sum(map(is_image, entries))
    if loose and not any(entry.is_dir() for entry in entries):
        raise UsageError(
            f"{root} has {counted(loose, 'photograph')} and no class folders. Make a folder for each class and move them "
            f"there: {root}/CLASS/IMAGE.jpg."
        )


def _look(root: Path, path: str) -> _Seen:
    try:
        return _Seen(Looked.at(root, path), image_size(root / path))
    except (UsageError, OSError) as error:
        return _Seen(None, (1, 1), str(error))


def _refuse_unreadable(root: Path, seen: Mapping[str, _Seen]) -> None:
    errors = [one.error for one in seen.values() if one.error]
    if not errors:
        return
    rest = len(errors) - _NAMED
    lines = [f"  {error}" for error in errors[:_NAMED]] + ([f"  and {rest} more"] if rest > 0 else [])
    raise UsageError(
        "\n".join(
            [f"{counted(len(errors), 'file')} of {len(seen)} in {root} cannot be read; nothing was started:", *lines]
        )
    )


def _across(splits: Mapping[str, Classes], digests: Mapping[str, str]) -> list[str]:
    found = {split: {digests[path] for paths in splits[split].values() for path in paths} for split in SPLITS}
    return copies_note(found)


def _class_sizes(splits: Mapping[str, Classes]) -> list[ClassSize]:
    counts: dict[str, int] = {}
    for classes in splits.values():
        for name, paths in classes.items():
            counts[name] = counts.get(name, 0) + len(paths)
    return [ClassSize(name, count) for name, count in sorted(counts.items())]


def _decode_some(root: Path, paths: Sequence[str], stored_side: int) -> float:
    """Decode a few images, evenly chosen, and give the median of their times, in seconds."""
    times = []
    for place in np.linspace(0, len(paths) - 1, min(_DECODED, len(paths))).astype(int):
        started = time.perf_counter()
        decode_image(Path(os.path.join(root, paths[place])), stored_side)
        times.append(time.perf_counter() - started)
    return float(np.median(times))
