"""The built-in datasets: drawn flowers, Oxford Flowers102, and any folder of images."""

from __future__ import annotations

from flowers_bench import DatasetSource, hookimpl
from flowers_bench.data import petals


@hookimpl
def register_datasets() -> list[DatasetSource]:
    return [petals.SOURCE]
