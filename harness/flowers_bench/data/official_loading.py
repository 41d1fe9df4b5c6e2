"""Published datasets, as `official` describes them: found on disk or downloaded, checked against their authors' counts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.data.hashes import copies_note, image_contents
from flowers_bench.data.installing import by_hand, install
from flowers_bench.data.labelled import LabelledFiles, assemble, numbered
from flowers_bench.data.official import Lists, OfficialSet
from flowers_bench.data.splitting import validation_by_rule
from flowers_bench.util.errors import UsageError

#: Share of the official training images that validates where there is no official validation.
VALIDATION = 0.2
#: So many missing images are named.
_NAMED = 5


def load(official: OfficialSet, request: DataRequest) -> Dataset:
    """Load the dataset from `request.path` (never written to), or download it into `request.cache_dir`.

    Raises:
        UsageError: it cannot be downloaded, has another split than the official one, or a list or image is missing or
            unreadable; says what to do.
    """
    root = _root(official, request)
    lists = _checked(official, root)
    splits, notes = dict(lists.splits), []
    if "val" not in splits:
        identity = {path: path for paths in splits["train"].values() for path in paths}
        splits["train"], splits["val"] = validation_by_rule(splits["train"], identity, VALIDATION)
        notes.append(
            f"validation: {VALIDATION:.0%} of the official training images of each class, by a hash of their names"
        )
    listing = numbered(splits, lists.class_names)
    paths = [path for split_paths, _ in listing.values() for path in split_paths]
    _check_images(official, root, paths)
    contents = image_contents(
        root, paths, request.cache_dir, request.progress, official.title, read_only=request.read_only
    )
    notes += copies_note({split: {contents[path].sha256 for path in found} for split, (found, _) in listing.items()})
    files = LabelledFiles(
        official.name,
        root,
        f"official {official.name}",
        lists.class_names,
        listing,
        notes=notes,
        name_levels=lists.name_levels,
    )
    return assemble(request, files, contents)


def _root(official: OfficialSet, request: DataRequest) -> Path:
    """Find the dataset's folder, and fill it if it is ours."""
    if request.path is not None:
        found = official.find(request.path)
        if found is None:
            raise UsageError(f"{request.path} has no {' and '.join(official.lists)} of {official.title}.")
        return found
    if official.files:
        if not request.read_only:
            install(official.title, request.cache_dir, official.folder, official.files, request.progress)
    elif not official.recognises(request.cache_dir):
        raise UsageError(f"{official.title} cannot be downloaded. {official.where}")
    return request.cache_dir / official.folder


def _checked(official: OfficialSet, root: Path) -> Lists:
    """Read the lists, and check that classes and images are as many as the authors' are."""
    try:
        lists = official.read(root)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise UsageError(
            f"the lists of {official.title} in {root} cannot be read ({type(error).__name__}: {error}). Unpack them again."
        ) from error
    found = {split: sum(map(len, classes.values())) for split, classes in lists.splits.items()}
    if len(lists.class_names) != official.classes or found != dict(official.images):
        raise UsageError(
            f"{root} is not {official.title} with its official split: it lists {len(lists.class_names)} classes and "
            f"{_counts(found)} images; officially there are {official.classes} and {_counts(official.images)}. Unpack the "
            "authors' files again; images of your own go into a folder or a table (docs/data.md)."
        )
    return lists


def _check_images(official: OfficialSet, root: Path, paths: list[str]) -> None:
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        where = by_hand(root.parent, official.folder, official.files) if official.files else official.where
        raise UsageError(
            f"{len(missing):,} of {len(paths):,} images of {official.title} are not in {root}, such as "
            f"{', '.join(missing[:_NAMED])}.\n{where}"
        )


def _counts(images: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {split}" for split, count in images.items())
