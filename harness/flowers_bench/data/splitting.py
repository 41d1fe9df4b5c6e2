"""Splits by rule, for images that came without: the same on every machine, whatever the files are called.

The SHA-256 of (split_seed, content) puts each image on a scale from 0 to 1, and the shares asked for are cut
off its lower end: test first, then validation. So an added image leaves the others where they are, renaming changes
nothing, and byte-identical copies stay on one side. Only where a class would have no image in some split are its
nearest ones moved over the border.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from flowers_bench.contract.options import OptionValue, parse_options
from flowers_bench.data.listing import Classes
from flowers_bench.data.options import FOLDER_OPTIONS
from flowers_bench.util.errors import UsageError


def shares_of(options: Mapping[str, OptionValue]) -> tuple[float, float, int]:
    """Read the shares of validation and test, and the seed of the split, from `FOLDER_OPTIONS`' values.

    Raises:
        UsageError: a share is not between 0 and 1, or they leave nothing to train on.
    """
    values = parse_options(FOLDER_OPTIONS, options, "data.")
    val, test = values.number("val"), values.number("test")
    for name, share in (("val", val), ("test", test)):
        if not 0 < share < 1:
            raise UsageError(f"data.{name}={share}: expected a share above 0 and below 1.")
    if val + test >= 1:
        raise UsageError("data.val and data.test leave nothing to train on.")
    return val, test, values.integer("split_seed")


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


def validation_by_rule(
    classes: Classes, identity: Mapping[str, str], share: float, seed: int = 0
) -> tuple[Classes, Classes]:
    """Take validation images from each class's training images: those that are lowest on the rule's scale.

    Of a class of n different images, `share` * n are taken, rounded, at least one and never all; of a single image none.
    Where one thing stands in several classes, it follows the first of these.

    Args:
        classes: image paths by class.
        identity: what an image is known by, by path: the SHA-256 of its content, or a name that is its own. Images of one
            identity stay on one side.
        share: above 0 and below 1.
        seed: another one gives another split.

    Returns:
        what is left to train on, and the validation images; a class without any is not in the latter.
    """
    train: Classes = {}
    val: Classes = {}
    in_val: dict[str, bool] = {}  # by identity, over all classes
    for name, paths in classes.items():
        known = sorted({identity[path] for path in paths}, key=lambda one: _place(one, seed))
        count = min(max(1, round(share * len(known))), len(known) - 1)
        for position, one in enumerate(known):
            in_val.setdefault(one, position < count)
        for path in paths:
            side = val if in_val[identity[path]] else train
            side.setdefault(name, []).append(path)
    return train, val
