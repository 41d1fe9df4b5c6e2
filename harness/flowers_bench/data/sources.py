"""The built-in datasets as functions that a plugin can call, too; what they read with is imported on the first call."""

from __future__ import annotations

from flowers_bench.contract.dataset import DataRequest, Dataset


def load_petals(request: DataRequest) -> Dataset:
    """Draw the flowers of `petals`, or take them from the cache. Raises `UsageError` for an option out of range."""
    from flowers_bench.data import petals

    return petals.load(request)


def load_flowers102(request: DataRequest) -> Dataset:
    """Read Oxford Flowers102 from `request.path`, or download it into `request.cache_dir`. Raises `UsageError` for a file
    that is missing or has a wrong checksum, and for a failed download."""
    from flowers_bench.data import flowers102

    return flowers102.load(request)


def load_folder(request: DataRequest) -> Dataset:
    """Read a folder of images, `request.path`: train/ val/ test/ with class folders, or class folders that are split by
    rule. A plugin may hand over a folder that it has filled itself. Raises `UsageError` for what is missing, empty or
    unreadable, by name."""
    from flowers_bench.data import folder

    return folder.load(request)
