"""The check of a dataset that a plugin registers: what it loads is what a dataset is, and the same each time."""

from __future__ import annotations

import re
import tempfile
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench.contract.dataset import DataRequest, Dataset, DatasetSource, Split, split_checksum
from flowers_bench.testing.subject import Nonconformance, require
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    pass

#: pytest leaves this module's functions out of tracebacks: the plugin is to be looked at.
__tracebackhide__ = True

#: The shortest side that is asked for, in pixels; and of how many images of each split are looked at.
SIDE, LOOKED_AT = 64, 8


def loads_what_a_dataset_is(source: DatasetSource) -> None:
    """Check images, labels and keys of each split, the facts that identify them, and that a second load has the same ones.

    A source that reads folders, and is given none here, may refuse by `UsageError`.
    """
    with tempfile.TemporaryDirectory() as folder:
        first = _loaded(source, Path(folder))
        if first is None:
            return
        splits = {name: getattr(first, name) for name in ("train", "val", "test")}
        for name, split in splits.items():
            _require_split(name, split, first)
        keys = list(chain.from_iterable(split.keys for split in splits.values()))
        require(
            len(set(keys)) == len(keys),
            "keys are not unique within the dataset: they pair predictions of two techniques.",
        )
        for name in ("fingerprint", "split_checksum"):
            text = getattr(first, name)
            require(
                re.fullmatch("[0-9a-f]{64}", text), f"{name} is {text!r:.80}: give a SHA-256 as 64 hexadecimal digits."
            )
        expected = split_checksum({name: (split.keys, split.labels.tolist()) for name, split in splits.items()})
        require(
            first.split_checksum == expected,
            "split_checksum is not that of the splits: compute it by flowers_bench.split_checksum({split: (keys, labels)}).",
        )
        again = _loaded(source, Path(folder))
        assert again is not None
        for name in ("fingerprint", "split_checksum"):
            require(
                getattr(again, name) == getattr(first, name),
                f"a second load has another {name}: it must follow from the content alone, or no trial is ever found again.",
            )
        for one, other in ((first.train, again.train), (first.test, again.test)):
            require(
                bool((one.images[0] == other.images[0]).all()),
                "a second load has other pixels under the same fingerprint: seed what it draws.",
            )


def _loaded(source: DatasetSource, cache: Path) -> Dataset | None:
    try:
        return source.load(DataRequest(cache, None, SIDE, source.option_values({})))
    except UsageError as error:
        if source.recognises is not None:
            return None
        raise Nonconformance(f"it cannot be loaded: {error}") from error
    except Exception as error:
        raise Nonconformance(
            f"load raised {type(error).__name__}: {error}. Raise flowers_bench.UsageError for what the user can mend."
        ) from error


def _require_split(name: str, split: Split, dataset: Dataset) -> None:
    import numpy as np
    import torch

    count, labels = len(split.keys), split.labels
    require(count > 0, f"its {name} split is empty.")
    require(
        len(split.images) == count == len(labels),
        f"{name} has {len(split.images)} images, {len(labels)} labels and {count} keys: give as many of each.",
    )
    require(
        isinstance(labels, np.ndarray) and labels.dtype == np.int64,
        f"labels of {name} are {_kind(labels)}: give an int64 array (N,).",
    )
    require(
        labels.min() >= 0 and labels.max() < dataset.num_classes,
        f"labels of {name} go from {labels.min()} to {labels.max()}: they are indices of the {dataset.num_classes} class names.",
    )
    require(all(isinstance(key, str) for key in split.keys), f"keys of {name} are not all text.")
    for index in np.linspace(0, count - 1, min(count, LOOKED_AT)).astype(int).tolist():
        image = split.images[index]
        require(
            isinstance(image, torch.Tensor)
            and image.dtype == torch.uint8
            and image.ndim == 3
            and image.shape[0] == 3
            and min(image.shape) > 0,
            f"image {index} of {name} is {_kind(image)}: give a uint8 tensor (3, H, W).",
        )


def _kind(value: object) -> str:
    shape = getattr(value, "shape", None)
    return f"{type(value).__name__} {getattr(value, 'dtype', '')} {tuple(shape) if shape is not None else ''}".strip()
