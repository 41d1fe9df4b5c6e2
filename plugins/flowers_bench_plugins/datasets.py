"""The built-in datasets: drawn flowers, published sets with their official splits, and any folder or table of images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from flowers_bench import (
    FOLDER_OPTIONS,
    HUB_OPTIONS,
    OFFICIAL_SETS,
    PETALS_OPTIONS,
    SHARD_OPTIONS,
    DatasetSource,
    holds_shards,
    hookimpl,
    hub_options,
    load_flowers102,
    load_folder,
    load_hub,
    load_manifest,
    load_official,
    load_petals,
    load_shards,
    shard_options,
)


def is_flowers102(path: Path) -> bool:
    """Tell whether `path` has torchvision's layout: it is the folder `flowers-102`, or the one that holds it."""
    return any((folder / "setid.mat").is_file() for folder in (path / "flowers-102", path))


@hookimpl
def register_datasets() -> list[DatasetSource]:
    return [
        DatasetSource(
            name="petals",
            summary="102 species of flowers drawn by rule, families of near twins; no download",
            load=load_petals,
            options=PETALS_OPTIONS,
            # Sized so that the first command of a newcomer ends in minutes on two cores.
            backbones={"resnet18": "test_resnet", "vgg16": "test_resnet", "vit_base_patch16_224": "petals_vit"},
            # Rates of a network with hundred times the parameters, in a few steps: chosen on `grammar_seed=2`.
            lr_factors={"petals_vit": 5.0},
            recipe={"image_size": 64},
            # Species differ in colour, and each image is drawn with its own size and light: whole images, flipped, are enough.
            settings={"min_scale": 1.0, "jitter": 0.0},
            weights="petals",
            max_epochs=5,
            max_epochs_from_probe=2,
            floor="knn/untrained",
        ),
        DatasetSource(
            name="flowers102",
            summary="Oxford Flowers102, official split of 1,020 / 1,020 / 6,149 photographs (downloads 330 MB)",
            load=load_flowers102,
            recognises=is_flowers102,
        ),
        *(
            DatasetSource(one.name, one.summary, load=partial(load_official, one), recognises=one.recognises)
            for one in OFFICIAL_SETS.values()
        ),
        DatasetSource(
            name="folder",
            summary="your own images: train/ val/ test/ with class folders, or class folders alone (--data PATH)",
            load=load_folder,
            options=FOLDER_OPTIONS,
            recognises=Path.is_dir,
        ),
        DatasetSource(
            name="hf",
            summary="a dataset of the Hugging Face hub, at a revision (--data hf:NAME@REVISION; needs flowers-bench[hf])",
            load=load_hub,
            options=HUB_OPTIONS,
            named=hub_options,
        ),
        DatasetSource(
            name="wds",
            summary="WebDataset shards: .tar files with images and labels (--data wds:FOLDER, or the folder itself)",
            load=load_shards,
            options=SHARD_OPTIONS,
            recognises=holds_shards,
            named=shard_options,
        ),
        DatasetSource(
            name="manifest",
            summary="your own table of images: path, label and, if there are splits, split (--data FILE.csv, .tsv or .parquet)",
            load=load_manifest,
            options=FOLDER_OPTIONS,
            files=(".csv", ".tsv", ".parquet"),
        ),
    ]
