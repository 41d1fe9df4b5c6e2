"""The built-in datasets as functions that a plugin can call, too; what they read with is imported on the first call."""

from __future__ import annotations

from pathlib import Path

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.data.official import OfficialSet


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


def load_manifest(request: DataRequest) -> Dataset:
    """Read the table `request.path` (CSV, TSV or Parquet; columns path, label and, if there are splits, split) and the images
    that it names. Raises `UsageError` for what is missing, twice or unreadable, by line."""
    from flowers_bench.data import manifest

    return manifest.load(request)


def load_official(official: OfficialSet, request: DataRequest) -> Dataset:
    """Read a published dataset, one of `OFFICIAL_SETS` or a plugin's, from `request.path`, or download it into
    `request.cache_dir`. Raises `UsageError` for what is missing or not as its authors made it, and for a failed download."""
    from flowers_bench.data import official_loading

    return official_loading.load(official, request)


def load_hub(request: DataRequest) -> Dataset:
    """Read a dataset of the Hugging Face hub, which `request.options` name, from its export in `request.cache_dir`, or download it.
    Raises `UsageError` where the package `datasets` or the network is missing, and for columns or splits that do not tell."""
    from flowers_bench.data import hub

    return hub.load(request)


def hub_options(text: str) -> dict[str, str]:
    """Read what stands behind `hf:` as options: NAME or NAME@REVISION. Without a revision the hub is asked for the newest.
    Raises `UsageError` where it cannot be."""
    from flowers_bench.data import hub

    return hub.named(text)


def load_shards(request: DataRequest) -> Dataset:
    """Read the WebDataset shards of `request.path`, or of the folder that `request.options` name, or what was read of them before.
    Raises `UsageError` for a shard that is damaged, and for samples or splits that do not tell what to train on."""
    from flowers_bench.data import shards

    return shards.load(request)


def holds_shards(folder: Path) -> bool:
    """Tell whether a folder holds WebDataset shards, itself or in train/ val/ test/, and no folders of anything else."""
    from flowers_bench.data import shards

    return shards.holds_shards(folder)


def shard_options(text: str) -> dict[str, str]:
    """Read what stands behind `wds:`, a folder, as options. Raises `UsageError` if it holds no shards."""
    from flowers_bench.data import shards

    return shards.named(text)
