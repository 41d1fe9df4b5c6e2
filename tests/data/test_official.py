"""Published datasets: their layouts on disk, their lists, their downloads, and whatever can be wrong with them.

The sets here are small ones in the authors' layouts; the official counts are checked against torchvision's documentation
and the papers in `test_the_official_numbers`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from flowers_bench import OFFICIAL_SETS
from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.host import discover
from flowers_bench.data import official_loading
from flowers_bench.data.installing import by_hand
from flowers_bench.data.official import OfficialSet
from flowers_bench.plan.planning import find_source
from flowers_bench.util.errors import UsageError

SPLITS = ("train", "val", "test")
#: Images of each class in the small sets' official splits.
SMALL = {"train": 10, "test": 3}

Written = dict[str, str]


def _text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def _cells(values: list[str]) -> np.ndarray:
    cells = np.empty((len(values), 1), object)
    cells[:, 0] = values
    return cells


def aircraft(root: Path) -> Written:
    """Variants 707-320, 737-200, 737-300 and A300B4."""
    variants = {
        "707-320": ("Boeing 707", "Boeing"),
        "737-200": ("Boeing 737", "Boeing"),
        "737-300": ("Boeing 737", "Boeing"),
        "A300B4": ("A300", "Airbus"),
    }
    _text(root / "data/variants.txt", *variants)
    number, written = 34309, {}
    for split, count in (("train", 10), ("val", 2), ("test", 3)):
        rows = [(f"{(number := number + 1):07d}", name) for name in variants for _ in range(count)]
        written |= {f"data/images/{image}.jpg": f"{split} {name}" for image, name in rows}
        _text(root / f"data/images_variant_{split}.txt", *(f"{image} {name}" for image, name in rows))
        for place, level in enumerate(("family", "manufacturer")):
            _text(root / f"data/images_{level}_{split}.txt", *(f"{i} {variants[n][place]}" for i, n in rows))
    return written


def pets(root: Path) -> Written:
    """The breeds Abyssinian (cats), american bulldog and beagle (dogs)."""
    breeds = {"Abyssinian": (1, 1), "american_bulldog": (2, 1), "beagle": (2, 2)}
    written = {}
    for split, name in (("train", "trainval"), ("test", "test")):
        lines = []
        for number, (breed, (species, within)) in enumerate(breeds.items(), 1):
            for image in range(SMALL[split]):
                key = f"{breed}_{image + 100 * (split == 'test')}"
                lines.append(f"{key} {number} {species} {within}")
                written[f"images/{key}.jpg"] = f"{split} {breed.replace('_', ' ')}"
        _text(root / f"annotations/{name}.txt", *lines)
    return written


def food101(root: Path) -> Written:
    """The dishes apple pie and waffles."""
    written = {}
    for split, count in SMALL.items():
        of = {
            name: [f"{name}/{1000 * (split == 'test') + image}" for image in range(count)]
            for name in ("waffles", "apple_pie")
        }
        _text(root / f"meta/{split}.json", json.dumps(of))
        written |= {f"images/{i}.jpg": f"{split} {n.replace('_', ' ')}" for n, images in of.items() for i in images}
    return written


def cub200(root: Path) -> Written:
    """An albatross and an auklet."""
    names = ("001.Black_footed_Albatross", "005.Crested_Auklet")
    rows = [
        (name, number, f"{name}/Bird_{place:04d}.jpg", split)
        for number, name in enumerate(names, 1)
        for place, split in enumerate(["train"] * 10 + ["test"] * 3)
    ]
    _text(root / "classes.txt", *(f"{n} {name}" for n, name in enumerate(names, 1)))
    _text(root / "images.txt", *(f"{i} {row[2]}" for i, row in enumerate(rows, 1)))
    _text(root / "image_class_labels.txt", *(f"{i} {row[1]}" for i, row in enumerate(rows, 1)))
    _text(root / "train_test_split.txt", *(f"{i} {int(row[3] == 'train')}" for i, row in enumerate(rows, 1)))
    return {f"images/{row[2]}": f"{row[3]} {row[0][4:].replace('_', ' ')}" for row in rows}


def cars(root: Path) -> Written:
    """Two cars."""
    names = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012"]
    (root / "devkit").mkdir(parents=True)
    savemat(root / "devkit/cars_meta.mat", {"class_names": np.array(names, object)[None]})
    written = {}
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        kind = np.dtype([("bbox_x1", "O"), ("class", "O"), ("fname", "O")])
        rows = np.empty((1, 2 * SMALL[split]), kind)
        for place in range(rows.size):
            rows[0, place] = (39, place % 2 + 1, f"{place + 1:05d}.jpg")
            written[f"cars_{split}/{place + 1:05d}.jpg"] = f"{split} {names[place % 2]}"
        savemat(root / file, {"annotations": rows})
    return written


def dogs(root: Path) -> Written:
    """A Chihuahua and a Shih-Tzu."""
    folders = ("n02085620-Chihuahua", "n02086240-Shih-Tzu")
    written = {}
    for split, count in SMALL.items():
        files = [f"{f}/{f[:9]}_{i + 50 * (split == 'test')}.jpg" for f in folders for i in range(count)]
        labels = np.repeat([1, 2], count)[:, None].astype(np.uint8)
        root.mkdir(parents=True, exist_ok=True)
        savemat(root / f"{split}_list.mat", {"file_list": _cells(files), "labels": labels})
        written |= {f"Images/{file}": f"{split} {file.partition('/')[0][10:]}" for file in files}
    return written


MAKERS: Mapping[str, Callable[[Path], Written]] = {
    "aircraft": aircraft,
    "pets": pets,
    "food101": food101,
    "cub200": cub200,
    "cars": cars,
    "dogs": dogs,
}


@pytest.fixture(params=sorted(OFFICIAL_SETS))
def official(request: pytest.FixtureRequest) -> OfficialSet:
    """Each set in turn, with the counts of its small stand-in."""
    return small(request.param)


def small(name: str) -> OfficialSet:
    classes = {"aircraft": 4, "pets": 3}.get(name, 2)
    each = {"train": 10, "val": 2, "test": 3} if name == "aircraft" else SMALL
    return replace(OFFICIAL_SETS[name], classes=classes, images={s: classes * n for s, n in each.items()})


@pytest.fixture
def make(write_image: Callable[..., Path]) -> Callable[[OfficialSet, Path], Written]:
    """Writes a small stand-in, with images, and says in what split and class each image is."""

    def make(official: OfficialSet, root: Path) -> Written:
        written = MAKERS[official.name](root)
        for number, path in enumerate(written):
            write_image(root / path, number)
        return written

    return make


def load(official: OfficialSet, path: Path | None, cache: Path, **more: Any) -> Dataset:
    return official_loading.load(official, DataRequest(cache, path, 8, **more))


def labels(found: Dataset) -> Written:
    return {
        key: f"{split} {found.class_names[label]}"
        for split in SPLITS
        for key, label in zip(getattr(found, split).keys, getattr(found, split).labels, strict=True)
    }


def test_images_are_in_the_official_split_and_class(official: OfficialSet, make: Any, tmp_path: Path) -> None:
    written = make(official, tmp_path / official.folder)
    found = load(official, tmp_path, tmp_path / "cache")
    assert found.name == official.name
    if "val" in official.images:
        assert labels(found) == written
        assert found.notes == ()
    else:
        assert {k: v.replace("val ", "train ", 1) for k, v in labels(found).items()} == written
        assert np.bincount(found.val.labels).tolist() == [2] * official.classes  # a fifth of 10, of each class
        assert found.notes == (
            "validation: 20% of the official training images of each class, by a hash of their names",
        )


def test_validation_is_the_same_wherever_and_whatever_the_pixels(
    make: Any, tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    one = small("pets")
    for place in ("a", "b"):
        written = make(one, tmp_path / place / one.folder)
    for number, path in enumerate(written):
        write_image(tmp_path / "b" / one.folder / path, 1000 + number)
    first, second = (load(one, tmp_path / place, tmp_path / "cache") for place in ("a", "b"))
    assert first.split_checksum == second.split_checksum
    assert first.fingerprint != second.fingerprint


def test_the_rule_takes_the_lowest_hashes(make: Any, tmp_path: Path) -> None:
    one = small("food101")
    written = make(one, tmp_path / one.folder)
    expected = []
    for name in ("apple pie", "waffles"):
        paths = [path for path, place in written.items() if place == f"train {name}"]
        expected += sorted(sorted(paths, key=lambda path: hashlib.sha256(f"0 {path}".encode()).hexdigest())[:2])
    assert load(one, tmp_path, tmp_path / "cache").val.keys == expected


def test_a_set_is_recognised_from_above_and_from_within(official: OfficialSet, make: Any, tmp_path: Path) -> None:
    make(official, tmp_path / official.folder)
    host = discover([])
    for path in (tmp_path, tmp_path / official.folder):
        source, found = find_source(host, str(path))
        assert (source.name, found) == (official.name, path)
    first, second = (load(official, p, tmp_path / "cache") for p in (tmp_path, tmp_path / official.folder))
    assert first.fingerprint == second.fingerprint


def test_the_host_has_every_set_and_a_folder_is_none(tmp_path: Path) -> None:
    host = discover([])
    assert set(OFFICIAL_SETS) < set(host.datasets)
    assert not any(one.recognises(tmp_path) for one in OFFICIAL_SETS.values())


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        (
            "aircraft",
            {
                "family": ["Boeing 707", "Boeing 737", "Boeing 737", "A300"],
                "manufacturer": ["Boeing", "Boeing", "Boeing", "Airbus"],
            },
        ),
        ("pets", {"species": ["cat", "dog", "dog"]}),
    ],
)
def test_coarser_names_are_those_of_the_lists(
    make: Any, tmp_path: Path, name: str, levels: Mapping[str, list[str]]
) -> None:
    one = small(name)
    make(one, tmp_path / one.folder)
    found = load(one, tmp_path, tmp_path / "cache").name_levels
    assert {level.name: [level.names[place] for place in level.of_class] for level in found} == levels


@pytest.mark.parametrize("name", ["aircraft", "pets", "food101", "cars"])
def test_torchvision_reads_the_same_from_the_same_files(make: Any, tmp_path: Path, name: str) -> None:
    one = small(name)
    make(one, tmp_path / one.folder)
    kinds = {"aircraft": "FGVCAircraft", "pets": "OxfordIIITPet", "food101": "Food101", "cars": "StanfordCars"}
    theirs = getattr(torchvision.datasets, kinds[name])
    found = load(one, tmp_path, tmp_path / "cache")
    ours = labels(found)
    trained = {"aircraft": ("train", "val"), "pets": ("trainval",)}.get(name, ("train",))
    for split in (*trained, "test"):
        read = theirs(tmp_path, split=split)
        files = [Path(row[0]) for row in read._samples] if name == "cars" else getattr(read, "_image_files", None)
        files = read._images if files is None else files
        classes = [row[1] for row in read._samples] if name == "cars" else read._labels
        for file, label in zip(files, classes, strict=True):
            key = Path(file).relative_to(tmp_path / one.folder).as_posix()
            assert found.class_names.index(ours[key].split(" ", 1)[1]) == label


def test_the_addresses_and_checksums_are_torchvisions() -> None:
    files = {name: [(f.url, f.checksum) for f in one.files] for name, one in OFFICIAL_SETS.items()}
    assert files["pets"] == list(torchvision.datasets.OxfordIIITPet._RESOURCES)
    assert files["food101"] == [(torchvision.datasets.Food101._URL, torchvision.datasets.Food101._MD5)]
    assert [url for url, _ in files["aircraft"]] == [torchvision.datasets.FGVCAircraft._URL]
    assert files["cars"] == []


def test_the_official_numbers() -> None:
    numbers = {name: (one.classes, sum(one.images.values())) for name, one in OFFICIAL_SETS.items()}
    assert numbers == {
        "aircraft": (100, 10_000),  # Maji et al. 2013
        "pets": (37, 7_349),  # Parkhi et al. 2012
        "food101": (101, 101_000),  # Bossard et al. 2014
        "cub200": (200, 11_788),  # Wah et al. 2011
        "cars": (196, 16_185),  # Krause et al. 2013
        "dogs": (120, 20_580),  # Khosla et al. 2011
    }


# Downloads


def _archives(official: OfficialSet, folder: Path) -> dict[str, bytes]:
    """Pack the small set as the authors do."""
    packed = {}
    for file in official.files:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for member in file.members:
                tar.add(folder / member, f"{file.top}/{member}" if file.top else member)
        packed[file.name] = stream.getvalue()
    return packed


def _offered(official: OfficialSet, server: Any, folder: Path) -> OfficialSet:
    """Let the server have the set's archives, half of them with a SHA-256."""
    server.files = _archives(official, folder)
    kinds = {32: hashlib.md5, 64: hashlib.sha256}
    files = [
        replace(
            file, url=server.url + file.name, checksum=kinds[len(file.checksum)](server.files[file.name]).hexdigest()
        )
        for file in official.files
    ]
    return replace(official, files=files)


@pytest.mark.parametrize("name", sorted(name for name, one in OFFICIAL_SETS.items() if one.files))
def test_a_set_is_downloaded_once(make: Any, server: Any, tmp_path: Path, name: str) -> None:
    one = small(name)
    make(one, tmp_path / "there" / one.folder)
    one = _offered(one, server, tmp_path / "there" / one.folder)
    found = load(one, None, tmp_path / "cache")
    assert found.fingerprint == load(one, tmp_path / "there", tmp_path / "other").fingerprint
    assert load(one, None, tmp_path / "cache").fingerprint == found.fingerprint
    assert len(server.ranges) == len(one.files)
    members = {member for file in one.files for member in file.members}
    assert {path.name for path in (tmp_path / "cache" / one.folder).iterdir()} == members
    assert not list((tmp_path / "cache").glob(".*.partial"))


def test_an_interrupted_download_is_continued(make: Any, server: Any, tmp_path: Path) -> None:
    one = small("pets")
    make(one, tmp_path / "there" / one.folder)
    one = _offered(one, server, tmp_path / "there" / one.folder)
    server.breaks_after, server.faults = 1000, 2
    assert len(load(one, None, tmp_path / "cache").test) == 9
    assert server.ranges[:3] == [None, "bytes=1000-", "bytes=2000-"]


def test_files_put_there_by_hand_are_used(make: Any, server: Any, tmp_path: Path) -> None:
    one = small("dogs")
    make(one, tmp_path / "there" / one.folder)
    one = _offered(one, server, tmp_path / "there" / one.folder)
    place = tmp_path / "cache" / one.folder
    place.mkdir(parents=True)
    for name, content in server.files.items():
        (place / name).write_bytes(content)
    assert len(load(one, None, tmp_path / "cache").test) == 6
    assert server.ranges == []


def test_a_wrong_checksum_leaves_nothing(make: Any, server: Any, tmp_path: Path) -> None:
    one = small("cub200")
    make(one, tmp_path / "there" / one.folder)
    one = _offered(one, server, tmp_path / "there" / one.folder)
    server.files["CUB_200_2011.tgz"] += b"x"
    with pytest.raises(UsageError, match=r"CUB_200_2011\.tgz has a wrong checksum: MD5"):
        load(one, None, tmp_path / "cache")
    assert not (tmp_path / "cache" / one.folder).exists()


def test_without_network_the_message_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    one = OFFICIAL_SETS["dogs"]
    one = replace(one, files=[replace(f, url=f"http://127.0.0.1:9/{f.name}") for f in one.files])
    with pytest.raises(UsageError) as caught:
        load(one, None, tmp_path)
    text = str(caught.value)
    assert "Stanford Dogs could not be installed" in text
    assert f"curl -LO http://127.0.0.1:9/images.tar  # SHA-256 {one.files[0].checksum}" in text
    assert f"put both files into {tmp_path / 'stanford-dogs'}/" in text
    assert "name a folder that holds stanford-dogs/ with --data FOLDER" in text
    assert by_hand(tmp_path, one.folder, one.files) in text


def test_cars_cannot_be_downloaded_and_where_to_get_them_is_said(make: Any, tmp_path: Path) -> None:
    one = small("cars")
    with pytest.raises(UsageError, match=r"Stanford Cars cannot be downloaded.*Kaggle.*--data FOLDER"):
        load(one, None, tmp_path / "cache")
    make(one, tmp_path / "cache" / one.folder)
    assert len(load(one, None, tmp_path / "cache").test) == 6


def test_read_only_downloads_nothing(make: Any, server: Any, tmp_path: Path) -> None:
    one = small("pets")
    make(one, tmp_path / "there" / one.folder)
    one = _offered(one, server, tmp_path / "there" / one.folder)
    with pytest.raises(UsageError):
        load(one, None, tmp_path / "cache", read_only=True)
    assert server.ranges == []


# What is wrong


def test_another_split_is_refused(official: OfficialSet, make: Any, tmp_path: Path) -> None:
    make(official, tmp_path / official.folder)
    with pytest.raises(
        UsageError, match=r"is not .* with its official split: it lists \d classes and .*officially there are"
    ):
        load(OFFICIAL_SETS[official.name], tmp_path, tmp_path / "cache")


def test_missing_images_are_counted_and_named(official: OfficialSet, make: Any, tmp_path: Path) -> None:
    written = make(official, tmp_path / official.folder)
    gone = sorted(path for path, place in written.items() if place.startswith("test"))[:2]
    for path in gone:
        (tmp_path / official.folder / path).unlink()
    with pytest.raises(UsageError) as caught:
        load(official, tmp_path, tmp_path / "cache")
    assert f"2 of {len(written)} images of {official.title} are not in" in str(caught.value)
    assert all(path in str(caught.value) for path in gone)
    assert ("curl -LO" in str(caught.value)) == bool(official.files)


def test_a_damaged_list_is_named(official: OfficialSet, make: Any, tmp_path: Path) -> None:
    make(official, tmp_path / official.folder)
    (tmp_path / official.folder / official.lists[-1]).write_bytes(b"\xff\xfe half a list")
    with pytest.raises(
        UsageError, match=rf"the lists of {official.title} in .* cannot be read|is not {official.title}"
    ):
        load(official, tmp_path, tmp_path / "cache")


def test_a_folder_that_is_none_is_refused(official: OfficialSet, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=rf"has no .* of {official.title}"):
        load(official, tmp_path, tmp_path / "cache")
