"""What lies in a folder of images: which folders are splits, which are classes, and what is in none of them."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowers_bench.data.files import FORMATS, files_below, has_image_name, is_image, visible
from flowers_bench.util.errors import UsageError

_ALIASES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
#: The splits by what they are called, in lower case.
SPLIT_NAMES = {name: split for split, names in _ALIASES.items() for name in names}
_READ = FORMATS.replace(", PPM", " or PPM")
#: So many kinds of files, or pairs of names, are listed in one note.
_LISTED = 5

#: Relative paths by class name, in order.
Classes = dict[str, list[str]]


@dataclass
class Listing:
    """The images of one folder of classes, and what else is there.

    Attributes:
        classes: relative paths by class name, in order.
        nested: how many of these lie in a subfolder of their class folder.
        recognised: how many of these have another extension than images have, by extension.
        outside: images that are in no class folder.
        others: files that are no images, by extension.
        alike: class names that are spelt differently and look alike, in pairs.
    """

    classes: Classes = field(default_factory=dict)
    nested: int = 0
    recognised: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    others: Counter[str] = field(default_factory=Counter)
    alike: list[tuple[str, str]] = field(default_factory=list)

    def paths(self) -> list[str]:
        """List the images of all classes, class by class."""
        return [path for paths in self.classes.values() for path in paths]


@dataclass(frozen=True)
class Layout:
    """The folder of each split, or of none of them where the images are split by rule.

    Attributes:
        splits: folder names by split: train, val and test; empty where there are class folders alone.
        beside: folders that are in no split.
        named_like_splits: class folders whose names are those of splits.
    """

    splits: Mapping[str, str]
    beside: Sequence[str] = ()
    named_like_splits: Sequence[str] = ()


def find_splits(root: Path) -> Layout:
    """Find the splits of a folder, in whatever case they are written.

    A folder called `train` that holds images, but no folder, is a class, where there are other classes beside it.

    Raises:
        UsageError: some splits are there and others are not, or one is there twice.
    """
    present = [entry for entry in visible(root) if entry.is_dir()]
    named = {entry.name: SPLIT_NAMES[entry.name.lower()] for entry in present if entry.name.lower() in SPLIT_NAMES}
    if named and len(named) < len(present) and all(_holds_images_alone(root / name) for name in named):
        return Layout({}, named_like_splits=tuple(named))
    found = {}
    for split in _ALIASES:
        folders = [entry for entry in present if named.get(entry.name) == split]
        if len(folders) > 1:
            both = " and ".join(f"{entry.name}/" for entry in folders)
            raise UsageError(f"{root} has {both}. Keep one of them as the {split} split.")
        for entry in folders:
            check_entry(entry, root)
        found[split] = folders[0].name if folders else ""
    if not any(found.values()):
        return Layout({})
    missing = [split for split, name in found.items() if not name]
    if missing:
        have = ", ".join(f"{name}/" for name in found.values() if name)
        raise UsageError(
            f"{root} has {have} but no {', '.join(f'{s}/' for s in missing)}. All three are needed: validation chooses the checkpoint, and "
            "the test split is read once. Move some images there, or put all class folders into one folder to be split by rule."
        )
    return Layout(found, beside=tuple(entry.name for entry in present if entry.name not in named))


def list_classes(folder: Path, root: Path) -> Listing:
    """List the images of each class folder and its subfolders, sorted by path; hidden entries are ignored.

    Raises:
        UsageError: a class without images, no class at all, a link that leaves `root`, a name that is not UTF-8, or two
            classes whose names no reader can tell apart.
    """
    listing = Listing()
    for entry in visible(folder):
        if entry.is_dir():
            check_entry(entry, root)
            listing.classes[entry.name] = _list_class(entry, root, listing)
        elif is_image(entry):
            listing.outside += 1
        else:
            listing.others[_extension(entry.name)] += 1
    if not listing.classes:
        raise UsageError(f"{folder} has no class folders with images. Expected {folder}/CLASS/IMAGE.jpg.")
    listing.alike = names_alike(folder, listing.classes)
    return listing


def check_entry(entry: os.DirEntry[str], root: Path) -> None:
    """Raise `UsageError` for a name that is not UTF-8, and for a link that leaves `root`."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the name {os.fsencode(entry.path)!r} is not UTF-8. Rename it.") from None
    if entry.is_symlink() and not Path(entry.path).resolve().is_relative_to(root.resolve()):
        raise UsageError(f"{entry.path} is a link that leaves {root}. Copy what it points to, or remove it.")


def list_splits(root: Path) -> tuple[Layout, dict[str, Listing]]:
    """Find a folder's splits and list the classes of each; of a folder without splits, those of the whole under "".

    Raises:
        UsageError: as `find_splits` and `list_classes`; or something cannot be read.
    """
    with reading(root):
        layout = find_splits(root)
        folders = (layout.splits or {"": "."}).items()
        return layout, {split: list_classes(root / folder, root) for split, folder in folders}


@contextlib.contextmanager
def reading(root: Path) -> Iterator[None]:
    """Turn an error of the file system in the block into a `UsageError` that names the place."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot read {error.filename or root}: {error.strerror}.") from error


def look(name: str) -> str:
    """Reduce a name to what a reader sees of it: without the accents' encoding, case, width and runs of spaces."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def names_alike(where: Path, names: Iterable[str]) -> list[tuple[str, str]]:
    """Find pairs of class names that look alike. Raises `UsageError` for two that are one name, in two encodings; `where` is
    the folder or file that has them."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        other = seen.setdefault(look(name), name)
        if other == name:
            continue
        if unicodedata.normalize("NFC", other) == unicodedata.normalize("NFC", name):
            raise UsageError(
                f"{where} has the class {name!r} twice, in two encodings that look the same: {other!a} and "
                f"{name!a}. Make one class of them."
            )
        pairs.append((other, name))
    return pairs


def notes_on_files(layout: Layout, listings: Iterable[Listing]) -> list[str]:
    """Note images and files that are not where they are expected."""
    found = list(listings)
    recognised = sum((listing.recognised for listing in found), Counter())
    others = sum((listing.others for listing in found), Counter())
    nested, outside = (sum(getattr(listing, name) for listing in found) for name in ("nested", "outside"))
    alike = sorted({pair for listing in found for pair in listing.alike})
    notes = []
    if layout.named_like_splits:
        names = ", ".join(f"{name}/" for name in layout.named_like_splits)
        notes.append(f"{names} holds images and no class folders: taken as a class, not as a split")
    if layout.beside:
        names = ", ".join(f"{name}/" for name in layout.beside[:_LISTED])
        notes.append(f"{len(layout.beside)} folders beside the splits were left out: {names}")
    if nested:
        notes.append(f"{nested} images in subfolders of class folders are used as images of the class")
    if recognised:
        notes.append(f"{recognised.total()} images were recognised by their content ({_counts(recognised)})")
    if outside:
        notes.append(f"{outside} images that are in no class folder were left out")
    if others:
        notes.append(f"{others.total()} files were passed over that are no {_READ} images ({_counts(others)})")
    for one, other in alike[:_LISTED]:
        notes.append(f"the classes {one!r} and {other!r} look alike, and count as two")
    return notes


def _holds_images_alone(folder: Path) -> bool:
    entries = visible(folder)
    return any(map(is_image, entries)) and not any(entry.is_dir() for entry in entries)


def _list_class(folder: os.DirEntry[str], root: Path, listing: Listing) -> list[str]:
    """List the paths of a class's images, relative to `root`; add to `listing` what else is to be said."""
    prefix = os.path.relpath(folder.path, root).replace(os.sep, "/")
    found = []
    for file in files_below(folder.path, lambda below: check_entry(below, root)):
        if not is_image(file):
            listing.others[_extension(file.name)] += 1
            continue
        check_entry(file, root)
        below = file.path[len(folder.path) + 1 :].replace(os.sep, "/")
        listing.nested += "/" in below
        if not has_image_name(file.name):
            listing.recognised[_extension(file.name)] += 1
        found.append(f"{prefix}/{below}")
    if not found:
        raise UsageError(f"class folder {folder.path} has no images ({FORMATS}). Fill it or remove it.")
    return sorted(found)


def _extension(name: str) -> str:
    found = os.path.splitext(name)[1].lower()
    return found if re.fullmatch(r"\.[a-z0-9_]{1,12}", found) else "others" if found else "without extension"


def _counts(found: Counter[str]) -> str:
    """Put counts into words, such as "4 .csv, 1 .txt"."""
    listed = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in listed[_LISTED:])
    return ", ".join(
        [f"{count} {extension}" for extension, count in listed[:_LISTED]] + ([f"{rest} more"] if rest else [])
    )
