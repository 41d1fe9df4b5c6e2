"""What is said about a folder of photographs before anything is trained."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowers_bench.contract.dataset import DataRequest
from flowers_bench.data import folder, hashes
from flowers_bench.data.hashes import image_contents, remember_contents
from flowers_bench.data.pixels import stored_side
from flowers_bench.data.survey import survey
from flowers_bench.util.errors import UsageError


def photographs(root: Path, count: int, size: tuple[int, int] = (40, 30), seed: int = 0) -> None:
    """Save so many different photographs, `size` wide and high."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, sum(map(ord, root.name))])
    for number in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{seed}-{number}.png")


def test_it_counts_what_the_loader_loads(tmp_path: Path) -> None:
    for name, count in (("rose", 20), ("tulip", 12), ("daisy", 5)):
        photographs(tmp_path / "photos" / name, count)
    found = survey(tmp_path / "photos", stored_side(64))
    loaded = folder.load(DataRequest(tmp_path / "cache", tmp_path / "photos", stored_side(64), {}))
    assert found.by_rule
    assert found.classes == loaded.num_classes == 3
    assert found.images == {name: len(getattr(loaded, name).labels) for name in ("train", "val", "test")}
    assert found.total == 37
    assert found.fewest_to_train == min(np.bincount(loaded.train.labels))
    assert (found.smallest.name, found.smallest.images) == ("daisy", 5)
    assert (found.largest.name, found.largest.images) == ("rose", 20)
    assert found.bytes == sum(path.stat().st_size for path in (tmp_path / "photos").rglob("*.png"))
    text = "\n".join(found.sentences())
    assert "37 photographs of 3 classes" in text
    assert "all 40 x 30 pixels" in text
    assert "that is uneven" in text
    assert "by a rule, 20 % for validation and 20 % for the test" in text


def test_decoded_images_take_what_it_says(tmp_path: Path) -> None:
    photographs(tmp_path / "a", 3, (100, 50))
    photographs(tmp_path / "b", 3, (20, 30))
    assert survey(tmp_path, 25).decoded_bytes(25) == 3 * 3 * 50 * 25 + 3 * 3 * 20 * 30


def test_copies_over_splits_are_said(tmp_path: Path) -> None:
    for split, seed in (("train", 0), ("val", 1), ("test", 2)):
        for name in ("rose", "tulip"):
            photographs(tmp_path / split / name, 4, seed=seed)
    shutil.copy(tmp_path / "train" / "rose" / "0-0.png", tmp_path / "test" / "rose" / "again.png")
    found = survey(tmp_path, 32)
    assert not found.by_rule
    assert found.copies == 1
    text = "\n".join(found.sentences())
    assert "your train/, val/ and test/ folders" in text
    assert "1 test images also stand in another split, byte for byte" in text


def test_all_files_that_cannot_be_read_are_named_at_once(tmp_path: Path) -> None:
    photographs(tmp_path / "rose", 5)
    photographs(tmp_path / "tulip", 5)
    for number in range(12):
        (tmp_path / "rose" / f"broken{number}.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (tmp_path / "tulip" / "empty.jpg").touch()
    with pytest.raises(UsageError) as told:
        survey(tmp_path, 32)
    text = str(told.value)
    assert text.startswith(f"13 files of 23 in {tmp_path} cannot be read; nothing was started:")
    assert text.count("Remove or replace it.") == 10
    assert text.endswith("and 3 more")


def test_three_photographs_of_each_class_are_enough(tmp_path: Path) -> None:
    for name in ("rose", "tulip"):
        photographs(tmp_path / name, 3)
    found = survey(tmp_path, 32)
    assert found.images == {"train": 2, "val": 2, "test": 2}
    assert found.fewest_to_train == 1


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "has no class folders with images"),
        ({"rose": 5}, "has 1 class to train on; at least 2 are needed"),
        ({"rose": 5, "tulip": 0}, "class folder .*tulip has no images"),
        ({"rose": 1, "tulip": 1}, "too few different images for a val split"),
        ({".": 34}, "has 34 photographs and no class folders. Make a folder for each class"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(tmp_path: Path, classes: dict[str, int], words: str) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    for name, count in classes.items():
        photographs(root / name, count)
    with pytest.raises(UsageError, match=words):
        survey(root, 32)


def test_what_is_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        survey(tmp_path / "absent", 32)
    (tmp_path / "photos.zip").touch()
    with pytest.raises(UsageError, match="not a folder"):
        survey(tmp_path / "photos.zip", 32)


def test_a_huge_photograph_is_refused_in_words(tmp_path: Path) -> None:
    """A picture of 100 million pixels, as a file of 200 MB may be, is no reason for a traceback or for its memory."""
    photographs(tmp_path / "rose", 4)
    photographs(tmp_path / "tulip", 4)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "rose" / "huge.png")
    with pytest.raises(UsageError, match=r"huge.png is 10000 x 10000: more than [\d,]+ pixels"):
        survey(tmp_path, 32)


def test_what_it_read_is_not_read_again_to_be_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 0)
    for name in ("rose", "tulip"):
        photographs(tmp_path / "photos" / name, 5)
    found = survey(tmp_path / "photos", 36)
    paths = list(found.looked)
    expected = image_contents(tmp_path / "photos", paths, tmp_path / "elsewhere")
    remember_contents(tmp_path / "photos", tmp_path / "cache", found.looked)
    changed = tmp_path / "photos" / paths[2]
    time.sleep(0.02)
    changed.write_bytes(changed.read_bytes() + b" ")
    read: list[str] = []
    original = hashes.read_image
    monkeypatch.setattr(hashes, "read_image", lambda file: [read.append(file), original(file)][1])
    again = image_contents(tmp_path / "photos", paths, tmp_path / "cache")
    assert read == [str(changed)]
    assert {path: one for path, one in again.items() if path != paths[2]} == {
        path: one for path, one in expected.items() if path != paths[2]
    }
    assert again[paths[2]] != expected[paths[2]]
