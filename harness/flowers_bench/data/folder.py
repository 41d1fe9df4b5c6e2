"""Any folder of images: `train/ val/ test/` with class folders in each, or class folders alone, which are split by rule."""

from __future__ import annotations

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.data.hashes import copies_note, image_contents
from flowers_bench.data.labelled import LabelledFiles, assemble, check_classes, numbered, uneven_note
from flowers_bench.data.listing import list_splits, notes_on_files
from flowers_bench.data.splitting import shares_of, split_by_rule
from flowers_bench.util.errors import UsageError


def load(request: DataRequest) -> Dataset:
    """Load the dataset from `request.path`. Raises `UsageError` for whatever is missing, empty or unreadable, by name."""
    root = request.path
    if root is None:
        raise UsageError("--data folder: name the folder itself, such as --data ../my/images.")
    val, test, seed = shares_of(request.options)
    layout, listings = list_splits(root)
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
    names = sorted(splits["train"])
    listing = numbered(splits, names)
    notes += copies_note({s: {hashes[p] for p in paths} for s, (paths, _) in listing.items()}) + uneven_note(splits)
    files = LabelledFiles(root.resolve().name, root, "folder", names, listing, names_in_paths=True, notes=notes)
    return assemble(request, files, contents)
