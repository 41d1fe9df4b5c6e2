"""Flowers102 installed from a server or from files put there by hand, and read from torchvision's layout."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers_bench.contract.dataset import DataRequest
from flowers_bench.data import flowers102
from flowers_bench.util.errors import UsageError

FOLDER = "flowers-102"


def _tar(names: list[str]) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(0)
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in names:
            content = noise.bytes(700_000)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def offered(server: Any) -> Any:
    """A server with stand-ins for the three files; `server.listing` says where they are, and their MD5 sums."""
    server.files = {
        "imagelabels.mat": b"labels",
        "setid.mat": b"split",
        "102flowers.tgz": _tar(["jpg/image_00001.jpg", "jpg/image_00002.jpg", "jpg/image_00003.jpg"]),
    }
    server.listing = {
        name: (server.url + name, hashlib.md5(content).hexdigest()) for name, content in server.files.items()
    }
    return server


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def installed(root: Path) -> bool:
    return (
        names(root) == [FOLDER]
        and names(root / FOLDER) == ["imagelabels.mat", "jpg", "setid.mat"]
        and len(names(root / FOLDER / "jpg")) == 3
    )


def test_everything_is_fetched_once(offered: Any, tmp_path: Path) -> None:
    for _ in range(2):
        flowers102.install(tmp_path, offered.listing)
    assert installed(tmp_path)
    assert len(offered.ranges) == 3


def test_an_interrupted_download_is_continued_by_the_next_call(offered: Any, tmp_path: Path) -> None:
    offered.breaks_after, offered.stalls = 1_500_000, True
    offered.resumable = False
    with pytest.raises(UsageError, match="could not be installed"):
        flowers102.install(tmp_path, offered.listing, stall_seconds=0.3)
    assert FOLDER not in names(tmp_path)
    offered.breaks_after, offered.resumable = None, True
    flowers102.install(tmp_path, offered.listing)
    assert installed(tmp_path)
    assert offered.ranges[-1] == "bytes=1500000-"


def test_interrupted_by_the_user_nothing_is_installed_and_the_next_call_continues(offered: Any, tmp_path: Path) -> None:
    def interrupts(items: Any, description: str, total: int) -> Any:
        for number, item in enumerate(items):
            if number and description.startswith("unpacking"):
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        flowers102.install(tmp_path, offered.listing, interrupts)
    assert names(tmp_path) == [f".{FOLDER}.partial"]
    flowers102.install(tmp_path, offered.listing)
    assert installed(tmp_path)
    assert len(offered.ranges) == 3  # the archive was there already


def test_a_wrong_checksum_leaves_nothing(offered: Any, tmp_path: Path) -> None:
    offered.files["102flowers.tgz"] = offered.files["102flowers.tgz"][:-1] + b"x"
    with pytest.raises(UsageError, match=r"102flowers\.tgz has a wrong checksum"):
        flowers102.install(tmp_path, offered.listing)
    assert names(tmp_path) == []


def test_without_network_the_message_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    listing = {name: (f"http://127.0.0.1:9/{name}", md5) for name, (_, md5) in flowers102._urls().items()}
    with pytest.raises(UsageError) as caught:
        flowers102.install(tmp_path, listing)
    text = str(caught.value)
    for url, md5 in listing.values():
        assert f"curl -LO {url}  # MD5 {md5}" in text
    assert f"put the three files into {tmp_path / FOLDER}/" in text
    assert "--data FOLDER" in text
    assert names(tmp_path) == []


def test_the_advice_works(offered: Any, tmp_path: Path) -> None:
    (tmp_path / FOLDER).mkdir()
    for name, content in offered.files.items():
        (tmp_path / FOLDER / name).write_bytes(content)
    nowhere = {name: (f"http://127.0.0.1:9/{name}", md5) for name, (_, md5) in offered.listing.items()}
    flowers102.install(tmp_path, nowhere)
    assert len(names(tmp_path / FOLDER / "jpg")) == 3
    assert (tmp_path / FOLDER / "102flowers.tgz").exists()  # not ours to remove


def test_the_addresses_are_the_official_ones() -> None:
    urls = flowers102._urls()
    assert urls["setid.mat"] == (
        "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat",
        "a5357ecc9cb78c4bef273ce3793fc85c",
    )
    assert set(urls) == {"102flowers.tgz", "imagelabels.mat", "setid.mat"}


# The real lists


def request(path: Path, cache: Path) -> DataRequest:
    return DataRequest(cache, path, 64)


@pytest.fixture
def lists(shared: Path, tmp_path: Path) -> Path:
    """The real lists, and no images."""
    source, target = shared / "data/flowers102-64" / FOLDER, tmp_path / "set" / FOLDER
    target.mkdir(parents=True)
    for name in ("setid.mat", "imagelabels.mat"):
        (target / name).write_bytes((source / name).read_bytes())
    return tmp_path / "set"


def test_recognises_the_layout_from_above_and_from_within(shared: Path, tmp_path: Path) -> None:
    root = shared / "data/flowers102-64"
    assert flowers102.recognises(root)
    assert flowers102.recognises(root / FOLDER)
    assert not flowers102.recognises(root / FOLDER / "jpg")
    assert not flowers102.recognises(tmp_path)


def test_loads_from_within_with_the_facts_that_stand_on_results(shared: Path, tmp_path: Path) -> None:
    root = shared / "data/flowers102-64" / FOLDER
    before = sorted(os.listdir(root))
    found = flowers102.load(request(root, tmp_path))
    assert found.facts()["n_test"] == 6149
    assert found.resolution == "shortest side 64"
    assert "not comparable with published full-resolution numbers" in found.notes[0]
    # Two pairs of originals, and one more pair of crops; two other pairs lie within the test split.
    assert "3 test images also stand in another split" in found.notes[1]
    assert found.test.labels.max() == 101
    assert sorted(os.listdir(root)) == before
    again = flowers102.load(request(root.parent, tmp_path))
    assert again.fingerprint == found.fingerprint


def test_names_are_those_of_the_category_list(shared: Path) -> None:
    listed = json.loads((shared / "data/flowers102-64/cat_to_name.json").read_text())
    ours = {str(number): name for number, name in enumerate(flowers102.CLASS_NAMES, 1)}
    assert {k: (listed[k], ours[k]) for k in listed if listed[k] != ours[k]} == {"78": ("lotus lotus", "lotus")}


def test_a_missing_image_is_named(lists: Path, tmp_path: Path) -> None:
    (lists / FOLDER / "jpg").mkdir()
    with pytest.raises(UsageError, match=r"jpg/image_\d{5}\.jpg is missing"):
        flowers102.load(request(lists, tmp_path / "cache"))


def test_another_split_is_refused(lists: Path, tmp_path: Path) -> None:
    (lists / FOLDER / "setid.mat").write_bytes(b"train and test swapped")
    with pytest.raises(UsageError, match=r"setid\.mat has a wrong checksum \(MD5 a5357ecc9cb78c4bef273ce3793fc85c"):
        flowers102.load(request(lists, tmp_path / "cache"))


def test_an_archive_that_was_not_unpacked_is_said(lists: Path, tmp_path: Path) -> None:
    (lists / FOLDER / "102flowers.tgz").touch()
    with pytest.raises(UsageError, match=r"jpg is missing\.\nUnpack .*102flowers\.tgz there"):
        flowers102.load(request(lists, tmp_path / "cache"))
