"""A dataset plugin as a single file: coloured squares under the keys that `stored.store_trial` writes."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowers_bench import DataRequest, Dataset, DatasetSource, Split, hookimpl


class Squares:
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        import torch

        colour = np.random.default_rng(index).integers(0, 256, (3, 1, 1), dtype=np.uint8)
        return torch.from_numpy(np.broadcast_to(colour, (3, 40, 48)).copy())


def load(request: DataRequest) -> Dataset:
    """Four classes; the split's checksum is the one that stored trials have."""
    splits = {}
    for name, count in (("train", 40), ("val", 20), ("test", 400)):
        labels = np.arange(count, dtype=np.int64) % 4
        splits[name] = Split(Squares(count), labels, [f"{name}/{i:05}" for i in range(count)])
    return Dataset("meadow", list("abcd"), **splits, fingerprint="f" * 64, split_checksum="5" * 64, resolution="48x40")


@hookimpl
def register_datasets() -> list[DatasetSource]:
    return [DatasetSource("meadow", "squares", load)]
