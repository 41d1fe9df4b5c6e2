"""Published datasets with their authors' splits: what each is, where it comes from, and how its lists are read.

`OFFICIAL_SETS` describes them in one form; `official_loading` makes datasets of them. They are recognised on disk in the layout of the authors' archives, which is
torchvision's too, and downloaded where a public source has a checksum. Checksums: of `pets` and `food101` torchvision's, of
`aircraft` mlverse/torchvision's, of `cub200` CaltechDATA's, of `dogs` those of TensorFlow Datasets.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowers_bench.contract.dataset import NameLevel
from flowers_bench.data.files import open_named
from flowers_bench.data.listing import Classes
from flowers_bench.data.remote_file import RemoteFile

#: More bytes than any list has.
_LIST_BYTES = 1 << 26


@dataclass(frozen=True)
class Lists:
    """What the authors' lists say.

    Attributes:
        class_names: C names, index = label.
        splits: image paths by class name, by split, relative to the dataset's folder.
        name_levels: coarser names of the classes.
    """

    class_names: Sequence[str]
    splits: Mapping[str, Classes]
    name_levels: Sequence[NameLevel] = ()


@dataclass(frozen=True)
class OfficialSet:
    """A published dataset.

    Attributes:
        name: what `--data` takes.
        title: what its authors call it.
        summary: one line for `flowers-bench list`.
        folder: the folder that holds it, as the archive or torchvision has it.
        lists: files that tell its layout, relative to that folder.
        classes: how many it has.
        images: how many images each official split has.
        read: reads the lists in a folder.
        files: what is downloaded; empty: it cannot be.
        where: what to do by hand where it cannot be downloaded.
    """

    name: str
    title: str
    summary: str
    folder: str
    lists: Sequence[str]
    classes: int
    images: Mapping[str, int]
    read: Callable[[Path], Lists]
    files: Sequence[RemoteFile] = ()
    where: str = ""

    def find(self, path: Path) -> Path | None:
        """Find the dataset's folder: `path` itself, or the folder in it that the archive unpacks to; None if it is neither."""
        return next((f for f in (path / self.folder, path) if all((f / one).is_file() for one in self.lists)), None)

    def recognises(self, path: Path) -> bool:
        """Say whether the folder is in the dataset's layout, or holds the one that is."""
        return self.find(path) is not None


# How each set's lists are read


def _list(root: Path, name: str) -> bytes:
    with open_named(root / name, "list") as stream:
        return stream.read(_LIST_BYTES)


def _lines(root: Path, name: str) -> list[str]:
    return [line for line in _list(root, name).decode().splitlines() if line.strip()]


def _pairs(root: Path, name: str) -> list[tuple[str, str]]:
    """Read lines of a first word and the rest."""
    return [(first, rest) for first, rest in (line.strip().split(" ", 1) for line in _lines(root, name))]


def _matlab(root: Path, name: str) -> dict[str, Any]:
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    try:
        found: dict[str, Any] = loadmat(io.BytesIO(_list(root, name)), squeeze_me=True)
    except (MatReadError, NotImplementedError, OSError, EOFError) as error:
        raise ValueError(f"{name}: {error}") from error
    return found


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _by_class(images: Sequence[tuple[str, str]]) -> Classes:
    """Group (path, class name) by class, paths sorted."""
    found: Classes = {}
    for path, name in sorted(images):
        found.setdefault(name, []).append(path)
    return found


def _read_aircraft(root: Path) -> Lists:
    """Read "IMAGE NAME" lines, one list for each split and level."""
    names = [line.strip() for line in _lines(root, "data/variants.txt")]
    variants = {split: _pairs(root, f"data/images_variant_{split}.txt") for split in ("train", "val", "test")}
    variant_of = dict(variants["train"])
    levels = []
    for level in ("family", "manufacturer"):
        coarse = {variant_of[image]: name for image, name in _pairs(root, f"data/images_{level}_train.txt")}
        levels.append(NameLevel.of(level, [coarse[name] for name in names]))
    splits = {
        split: _by_class([(f"data/images/{image}.jpg", name) for image, name in pairs])
        for split, pairs in variants.items()
    }
    return Lists(names, splits, levels)


def _read_pets(root: Path) -> Lists:
    """Read "IMAGE CLASS SPECIES BREED" lines: an image is called after its class, and species 1 are cats."""
    rows = {
        split: [line.split() for line in _lines(root, f"annotations/{name}.txt")]
        for split, name in (("train", "trainval"), ("test", "test"))
    }
    facts = {int(row[1]): (_breed(row[0]), ("cat", "dog")[int(row[2]) - 1]) for found in rows.values() for row in found}
    names = [facts[number][0] for number in sorted(facts)]
    species = NameLevel.of("species", [facts[number][1] for number in sorted(facts)])
    splits = {
        split: _by_class([(f"images/{row[0]}.jpg", facts[int(row[1])][0]) for row in found])
        for split, found in rows.items()
    }
    return Lists(names, splits, [species])


def _breed(image: str) -> str:
    return _plain(image.rpartition("_")[0])


def _read_food101(root: Path) -> Lists:
    """Read lists of "CLASS/IMAGE" by class."""
    found = {split: json.loads(_list(root, f"meta/{split}.json")) for split in ("train", "test")}
    splits = {
        split: _by_class([(f"images/{image}.jpg", _plain(name)) for name, images in of.items() for image in images])
        for split, of in found.items()
    }
    return Lists(sorted(splits["train"]), splits)


def _read_cub200(root: Path) -> Lists:
    """Read "IMAGE_ID VALUE" lines: paths, classes, and whether an image is trained on; classes are called "001.Some_Bird"."""
    paths, labels, trained = (
        dict(_pairs(root, f"{name}.txt")) for name in ("images", "image_class_labels", "train_test_split")
    )
    names = {number: _plain(name.partition(".")[2]) for number, name in _pairs(root, "classes.txt")}
    splits = {
        split: _by_class([(f"images/{paths[i]}", names[labels[i]]) for i in paths if trained[i].strip() == flag])
        for split, flag in (("train", "1"), ("test", "0"))
    }
    return Lists(list(names.values()), splits)


def _read_cars(root: Path) -> Lists:
    """Read MATLAB structures with `fname` and `class`, from 1."""
    names = [str(name) for name in _matlab(root, "devkit/cars_meta.mat")["class_names"].tolist()]
    found = {
        "train": ("cars_train", _matlab(root, "devkit/cars_train_annos.mat")),
        "test": ("cars_test", _matlab(root, "cars_test_annos_withlabels.mat")),
    }
    splits = {
        split: _by_class([(f"{folder}/{row['fname']}", names[int(row["class"]) - 1]) for row in content["annotations"]])
        for split, (folder, content) in found.items()
    }
    return Lists(names, splits)


def _read_dogs(root: Path) -> Lists:
    """Read paths, "n02085620-Some_Dog/IMAGE.jpg", and labels, from 1."""
    names: dict[int, str] = {}
    splits = {}
    for split in ("train", "test"):
        content = _matlab(root, f"{split}_list.mat")
        images = []
        for path, label in zip(content["file_list"].tolist(), content["labels"].tolist(), strict=True):
            name = names.setdefault(int(label), _plain(path.partition("/")[0].partition("-")[2]))
            images.append((f"Images/{path}", name))
        splits[split] = _by_class(images)
    return Lists([names[label] for label in sorted(names)], splits)


# The sets


def _sets() -> list[OfficialSet]:
    oxford = "https://www.robots.ox.ac.uk/~vgg/data"
    stanford = "http://vision.stanford.edu/aditya86/ImageNetDogs"
    return [
        OfficialSet(
            name="aircraft",
            title="FGVC-Aircraft",
            summary="FGVC-Aircraft, 100 variants in 70 families, official split of 3,334 / 3,333 / 3,333 (downloads 2.8 GB)",
            folder="fgvc-aircraft-2013b",
            lists=("data/variants.txt", "data/images_variant_train.txt"),
            classes=100,
            images={"train": 3334, "val": 3333, "test": 3333},
            read=_read_aircraft,
            files=(
                RemoteFile(
                    f"{oxford}/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz",
                    "d4acdd33327262359767eeaa97a4f732",
                    members=("data",),
                    unpacked=True,
                    top="fgvc-aircraft-2013b",
                    count=10_000,
                ),
            ),
        ),
        OfficialSet(
            name="pets",
            title="Oxford-IIIT Pet",
            summary="Oxford-IIIT Pet, 37 breeds of cats and dogs, official split of 3,680 / 3,669 (downloads 0.8 GB)",
            folder="oxford-iiit-pet",
            lists=("annotations/trainval.txt", "annotations/test.txt"),
            classes=37,
            images={"train": 3680, "test": 3669},
            read=_read_pets,
            files=(
                RemoteFile(
                    f"{oxford}/pets/data/images.tar.gz",
                    "5c4f3ee8e5d25df40f4fd59a7f44e54c",
                    members=("images",),
                    unpacked=True,
                    count=7_393,
                ),
                RemoteFile(
                    f"{oxford}/pets/data/annotations.tar.gz",
                    "95a8c909bbe2e81eed6a22bccdf3f68f",
                    members=("annotations",),
                    unpacked=True,
                    count=18_475,
                ),
            ),
        ),
        OfficialSet(
            name="food101",
            title="Food-101",
            summary="Food-101, 101 dishes, official split of 75,750 / 25,250 photographs (downloads 5 GB)",
            folder="food-101",
            lists=("meta/train.json", "meta/test.json"),
            classes=101,
            images={"train": 75_750, "test": 25_250},
            read=_read_food101,
            files=(
                RemoteFile(
                    "http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
                    "85eeb15f3717b99a5da872d97d918f87",
                    members=("images", "meta"),
                    unpacked=True,
                    top="food-101",
                    count=101_000,
                ),
            ),
        ),
        OfficialSet(
            name="cub200",
            title="CUB-200-2011",
            summary="Caltech-UCSD Birds-200-2011, official split of 5,994 / 5,794 photographs (downloads 1.2 GB)",
            folder="CUB_200_2011",
            lists=("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
            classes=200,
            images={"train": 5994, "test": 5794},
            read=_read_cub200,
            files=(
                RemoteFile(
                    "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
                    "97eceeb196236b17998738112f37df78",
                    members=(
                        "images",
                        "images.txt",
                        "image_class_labels.txt",
                        "train_test_split.txt",
                        "classes.txt",
                    ),
                    unpacked=True,
                    top="CUB_200_2011",
                    count=11_788,
                ),
            ),
        ),
        OfficialSet(
            name="cars",
            title="Stanford Cars",
            summary="Stanford Cars, 196 models, official split of 8,144 / 8,041 photographs (from disk: --data PATH)",
            folder="stanford_cars",
            lists=("devkit/cars_meta.mat", "devkit/cars_train_annos.mat", "cars_test_annos_withlabels.mat"),
            classes=196,
            images={"train": 8144, "test": 8041},
            read=_read_cars,
            where=(
                'Its authors no longer offer it; copies are on Kaggle and Hugging Face (look for "stanford cars"). Put cars_train/, cars_test/, '
                "devkit/ (with cars_meta.mat and cars_train_annos.mat) and cars_test_annos_withlabels.mat, as torchvision has them, into a folder "
                "stanford_cars/, and name the folder that holds it with --data FOLDER."
            ),
        ),
        OfficialSet(
            name="dogs",
            title="Stanford Dogs",
            summary="Stanford Dogs, 120 breeds, official split of 12,000 / 8,580 photographs (downloads 0.8 GB)",
            folder="stanford-dogs",
            lists=("train_list.mat", "test_list.mat"),
            classes=120,
            images={"train": 12_000, "test": 8_580},
            read=_read_dogs,
            files=(
                RemoteFile(
                    f"{stanford}/images.tar",
                    "a443fc2f9a851aa1a7b8e4fa4af94b8459fce2c9f5a2f4dd4669cf9673a4ec58",
                    members=("Images",),
                    unpacked=True,
                    count=20_580,
                ),
                RemoteFile(
                    f"{stanford}/lists.tar",
                    "34b47cacd9a98b5d150e084f24d29391c084c55272295ec65c85651bc35f4d6c",
                    members=("train_list.mat", "test_list.mat"),
                    unpacked=True,
                    count=3,
                ),
            ),
        ),
    ]


OFFICIAL_SETS: Mapping[str, OfficialSet] = {one.name: one for one in _sets()}
