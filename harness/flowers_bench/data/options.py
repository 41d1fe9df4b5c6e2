"""The options of the built-in datasets, for plugins whose own datasets are made of these."""

from __future__ import annotations

from collections.abc import Mapping

from flowers_bench.contract.options import Option

#: What `load_petals` takes.
PETALS_OPTIONS: Mapping[str, Option] = {
    "size": Option(64, "side of an image, in pixels", minimum=16, maximum=1024),
    "species": Option(102, "how many classes", minimum=2, maximum=10000),
    "train": Option(10, "training images of each class", minimum=1, maximum=10000),
    "val": Option(10, "validation images of each class", minimum=1, maximum=10000),
    "test": Option(20, "test images of each class", minimum=1, maximum=10000),
    "grammar_seed": Option(0, "another number gives other species", minimum=0, maximum=2**31),
}
#: What `load_folder` takes where the folder is not split into train/ val/ test/.
FOLDER_OPTIONS: Mapping[str, Option] = {
    "val": Option(0.2, "share of the images for validation, above 0 and below 1", minimum=0, maximum=1),
    "test": Option(0.2, "share of the images for the test, above 0 and below 1", minimum=0, maximum=1),
    "split_seed": Option(0, "another number gives another split"),
}
#: What `load_shards` takes. `--data wds:FOLDER` sets the first.
SHARD_OPTIONS: Mapping[str, Option] = {
    "folder": Option("", "the folder that holds the shards"),
    "image": Option("", "what the names of images end with, such as jpg, where samples have several"),
    "label": Option("", "where the label stands: cls, txt or json.KEY, where that does not tell"),
    **FOLDER_OPTIONS,
}
#: What `load_hub` takes. `--data hf:NAME@REVISION` sets the first two.
HUB_OPTIONS: Mapping[str, Option] = {
    "name": Option("", "the dataset's name on the hub, or the folder that holds it"),
    "revision": Option("", "the commit of the hub's repository; without it, the newest"),
    "config": Option("", "which of the dataset's configurations, where it has several"),
    "image": Option("", "the column of images, where its type does not tell"),
    "label": Option("", "the column of labels, where its type does not tell"),
    **FOLDER_OPTIONS,
}
