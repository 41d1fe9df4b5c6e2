"""Folders of images: splits as given or by rule, and whatever can be wrong with them."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded import FORMATS, photo, saved
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers_bench.contract.dataset import DataRequest, Dataset, split_checksum
from flowers_bench.data import cache, files, folder, labelled, listing, splitting
from flowers_bench.data.files import files_below
from flowers_bench.data.splitting import split_by_rule
from flowers_bench.util.errors import UsageError

DEFAULTS = {"val": 0.2, "test": 0.2, "split_seed": 0}
SPLITS = ("train", "val", "test")
PASSED_OVER = "were passed over that are no JPEG, PNG, WebP, BMP, GIF, TIFF or PPM images"


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def load(root: Path, **options: Any) -> Dataset:
        return folder.load(DataRequest(tmp_path / "cache", root, 8, {**DEFAULTS, **options}))

    return load


@pytest.fixture
def three(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """train, val and test with 3, 2 and 2 images of each of two classes."""
    seed = 0
    for split, count in (("train", 3), ("val", 2), ("test", 2)):
        for name in ("rose", "tulip"):
            for number in range(count):
                write_image(tmp_path / "set" / split / name / f"{number}.png", seed := seed + 1)
    return tmp_path / "set"


@pytest.fixture
def one(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """Two classes of 12 images."""
    for number in range(24):
        write_image(tmp_path / "all" / ("rose", "tulip")[number % 2] / f"{number}.png", number)
    return tmp_path / "all"


def sides(found: Dataset) -> dict[str, str]:
    return {key: split for split in SPLITS for key in getattr(found, split).keys}


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Train", "valid", "TEST"), ("training", "Validation", "testing")]
)
def test_split_folders_go_by_many_names(three: Path, load: Callable[..., Dataset], names: tuple[str, ...]) -> None:
    for old, new in zip(SPLITS, names, strict=True):
        (three / old).rename(three / new)
    found = load(three)
    assert (len(found.train), len(found.val), len(found.test)) == (6, 4, 4)
    assert found.val.keys[0] == f"{names[1]}/rose/0.png"
    assert found.name == "set"


def test_two_folders_for_one_split_are_refused(three: Path, load: Callable[..., Dataset]) -> None:
    shutil.copytree(three / "val", three / "valid")
    with pytest.raises(UsageError, match=r"has val/ and valid/\. Keep one of them as the val split"):
        load(three)


def test_pixels_belong_to_their_keys(three: Path, load: Callable[..., Dataset]) -> None:
    found = load(three)
    for split in SPLITS:
        part = getattr(found, split)
        for index, key in enumerate(part.keys):
            with Image.open(three / key) as image:
                expected = np.asarray(image)
            pixels = part.images[index].permute(1, 2, 0).numpy()
            assert pixels.shape == (10, 8, 3)
            assert abs(pixels.mean() - expected.mean()) < 3
            assert found.class_names[part.labels[index]] in key


def test_only_the_first_start_reads_and_decodes(
    three: Path, load: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowers_bench.data.hashes.SETTLED", 0)
    first = load(three)
    monkeypatch.setattr(labelled, "decode_images", lambda *_: pytest.fail("decoded again"))
    monkeypatch.setattr("flowers_bench.data.hashes._row", lambda *_: pytest.fail("read again"))
    assert load(three).fingerprint == first.fingerprint


def test_another_split_reads_the_same_cache(
    one: Path, load: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(one)
    monkeypatch.setattr(labelled, "decode_images", lambda *_: pytest.fail("decoded again"))
    second = load(one, split_seed=1)
    assert second.split_checksum != first.split_checksum
    assert second.fingerprint != first.fingerprint


def test_the_cache_of_changed_images_is_removed(
    three: Path, load: Callable[..., Dataset], tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    load(three)
    write_image(three / "train/rose/0.png", 999)
    load(three)
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_nothing_is_written_into_the_folder(three: Path, load: Callable[..., Dataset]) -> None:
    before = sorted(os.walk(three))
    load(three)
    assert sorted(os.walk(three)) == before


def test_what_is_hidden_or_no_image_is_passed_over(three: Path, load: Callable[..., Dataset]) -> None:
    before = load(three)
    for name in (".DS_Store", "train/.hidden.png", "train/rose/._0.png", "train/rose/Thumbs.db"):
        (three / name).write_bytes(b"x")
    (three / "train/.git").mkdir()
    assert load(three).notes == before.notes == ()
    (three / "train/readme.txt").write_text("x")
    (three / "test/rose/labels.csv").write_text("x")
    (three / "test/rose/more.csv").write_text("x")
    (three / "test/rose/README").write_text("BM, or P5: not the beginning of an image")
    (three / "test/rose/empty").mkdir()
    found = load(three)
    assert found.notes == (f"4 files {PASSED_OVER} (2 .csv, 1 .txt, 1 without extension)",)
    assert found.fingerprint == before.fingerprint


@pytest.mark.parametrize("where", ["", "train", "train/rose"])
def test_what_programs_leave_behind_is_no_class(
    three: Path, load: Callable[..., Dataset], write_image: Callable[..., Path], where: str
) -> None:
    before = load(three)
    names = (
        *("@eaDir", "__MACOSX", ".thumbnails", "lost+found", "#recycle", "@Recycle", "$RECYCLE.BIN", ".Trash-1000"),
        *(".ipynb_checkpoints", "System Volume Information", "__pycache__", "#snapshot", "THUMBS.DB"),
    )
    for name in names:
        write_image(three / where / name / "0.png", 99)
    assert load(three).facts() == before.facts()


def test_a_folder_that_is_hidden_need_not_be_readable(
    one: Path, load: Callable[..., Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    (one / "lost+found").mkdir(mode=0)
    opened: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(os.fspath(path)) or scandir(path))
    assert list(load(one).class_names) == ["rose", "tulip"]
    assert not any("lost+found" in path for path in opened)


def test_images_in_subfolders_belong_to_their_class_and_are_said(
    three: Path, load: Callable[..., Dataset], write_image: Callable[..., Path]
) -> None:
    """As torchvision's ImageFolder takes them."""
    from torchvision.datasets import ImageFolder

    write_image(three / "train/rose/garden/2019/7.png", 70)
    write_image(three / "train/rose/garden/.hidden/8.png", 71)
    write_image(three / "train/rose/a.png", 72)
    found = load(three)
    assert found.notes == ("1 images in subfolders of class folders are used as images of the class",)
    assert "train/rose/garden/2019/7.png" in found.train.keys
    theirs = {os.path.relpath(path, three) for path, _ in ImageFolder(str(three / "train")).samples}
    assert {*found.train.keys} == {path for path in theirs if "/." not in path}


@pytest.mark.parametrize("name", ["x.jfif", "x.jpe", "x.JPE", "x.mpo"])
def test_further_extensions_are_those_of_images(three: Path, load: Callable[..., Dataset], name: str) -> None:
    shutil.copy(three / "train/rose/0.png", three / "train/rose" / name)
    found = load(three)
    assert f"train/rose/{name}" in found.train.keys
    assert found.notes == ()
    (three / "train/rose" / name).write_text("damaged")
    with pytest.raises(UsageError, match=name):
        load(three)


@pytest.mark.parametrize("format", [*FORMATS, "MPO"])
def test_images_of_any_name_are_recognised_by_their_content(
    three: Path, load: Callable[..., Dataset], format: str
) -> None:
    for name in ("0a1b2c3d", "photo.jpg?size=large"):
        (three / "train/rose" / name).write_bytes(saved(photo(), format))
    if format == "TIFF":  # as raw files of cameras begin, too
        (three / "train/rose/photo.jpg?size=large").unlink()
    found = load(three)
    assert "train/rose/0a1b2c3d" in found.train.keys
    said = "1 images" if format == "TIFF" else "2 images"
    assert found.notes[0].startswith(f"{said} were recognised by their content (1 ")


@pytest.mark.parametrize("name", ["a.heic", "a.avif", "a.jxl"])
def test_images_of_formats_that_are_not_read_are_not_called_something_else(
    three: Path, load: Callable[..., Dataset], name: str
) -> None:
    (three / "train/rose" / name).write_bytes(b"\0\0\0\x18ftypheic")
    assert load(three).notes == (f"1 files {PASSED_OVER} (1 {Path(name).suffix})",)


@pytest.mark.parametrize(("name", "format"), [("0.nef", "TIFF"), ("0.jpg.part", "JPEG"), ("0.bak", "PNG")])
def test_raw_files_of_cameras_and_spare_ones_are_passed_over(
    three: Path, load: Callable[..., Dataset], name: str, format: str
) -> None:
    (three / "train/rose" / name).write_bytes(saved(photo(), format))
    assert load(three).notes == (f"1 files {PASSED_OVER} (1 {Path(name).suffix})",)


def test_images_beside_the_classes_and_folders_beside_the_splits_are_said(
    three: Path, load: Callable[..., Dataset], write_image: Callable[..., Path]
) -> None:
    write_image(three / "train/loose.png", 80)
    write_image(three / "unlabelled/rose/1.png", 81)
    assert load(three).notes == (
        "1 folders beside the splits were left out: unlabelled/",
        "1 images that are in no class folder were left out",
    )


@pytest.mark.parametrize("name", ["train", "test", "Val", "training"])
def test_a_class_may_be_called_like_a_split(one: Path, load: Callable[..., Dataset], name: str) -> None:
    before = load(one)
    (one / "rose").rename(one / name)
    found = load(one)
    assert sorted(found.class_names) == sorted([name, "tulip"])
    assert found.notes == (
        f"{name}/ holds images and no class folders: taken as a class, not as a split",
        *before.notes,
    )


def test_splits_may_have_classes_called_like_splits(three: Path, load: Callable[..., Dataset]) -> None:
    for split in SPLITS:
        (three / split / "rose").rename(three / split / "test")
    assert list(load(three).class_names) == ["test", "tulip"]


def test_splits_without_classes_are_refused(
    tmp_path: Path, load: Callable[..., Dataset], write_image: Callable[..., Path]
) -> None:
    for split in SPLITS:
        write_image(tmp_path / "flat" / split / "1.png")
    with pytest.raises(UsageError, match=r"flat/train has no class folders with images"):
        load(tmp_path / "flat")


def test_one_name_in_two_encodings_is_refused(one: Path, load: Callable[..., Dataset]) -> None:
    (one / "rose").rename(one / "ros\u00e9")
    (one / "tulip").rename(one / "rose\u0301")
    with pytest.raises(UsageError, match=r"twice, in two encodings .*'ros(e\\u0301|\\xe9)' and 'ros(e\\u0301|\\xe9)'"):
        load(one)


@pytest.mark.parametrize("names", [("Rose", "rose"), ("rose", "\uff52\uff4f\uff53\uff45"), ("a rose", "a  rose")])
def test_names_that_look_alike_are_said(one: Path, load: Callable[..., Dataset], names: tuple[str, str]) -> None:
    for old in ("tulip", "rose"):
        (one / old).rename(one / f"old {old}")
    for old, new in zip(("old tulip", "old rose"), names, strict=True):
        (one / old).rename(one / new)
    found = load(one)
    assert sorted(found.class_names) == sorted(names)
    assert any("look alike, and count as two" in note for note in found.notes)


def test_a_class_spelt_otherwise_in_another_split_is_shown(three: Path, load: Callable[..., Dataset]) -> None:
    for split in SPLITS:
        (three / split / "rose").rename(three / split / ("rose\u0301" if split == "val" else "ros\u00e9"))
    with pytest.raises(
        UsageError, match=r"in val/ but not in train/.*looks like 'ros\\xe9' and is spelt 'rose\\u0301'"
    ):
        load(three)


def test_a_link_that_goes_round_is_refused(three: Path, load: Callable[..., Dataset]) -> None:
    (three / "train/rose/deeper").mkdir()
    (three / "train/rose/deeper/again").symlink_to("../deeper")
    with pytest.raises(UsageError, match=r"deeper/again is a link to a folder that it lies in"):
        load(three)


def test_folders_may_lie_deeper_than_functions_may_call(tmp_path: Path) -> None:
    depths = [str(tmp_path) + "/d" * depth for depth in range(1, 301)]
    limit = sys.getrecursionlimit()
    for path in depths:
        os.mkdir(path)
    try:
        sys.setrecursionlimit(len(inspect.stack()) + 100)
        assert list(files_below(tmp_path)) == []
    finally:
        sys.setrecursionlimit(limit)


def test_a_file_that_became_a_pipe_is_named(three: Path, load: Callable[..., Dataset], tmp_path: Path) -> None:
    load(three)
    (three / "train/rose/0.png").unlink()
    os.mkfifo(three / "train/rose/0.png")
    with pytest.raises(UsageError, match=r"rose/0\.png is missing or cannot be read: it is a pipe, not a file"):
        load(three)


def test_images_that_change_while_they_are_read_do_not_poison_the_cache(
    three: Path,
    load: Callable[..., Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_image: Callable[..., Path],
) -> None:
    contents = folder.image_contents

    def changed_after(*arguments: Any, **more: Any) -> Any:
        found = contents(*arguments, **more)
        write_image(three / "train/rose/0.png", 1234)
        return found

    monkeypatch.setattr(folder, "image_contents", changed_after)
    with pytest.raises(UsageError, match=r"train/rose/0\.png changed while the dataset was read"):
        load(three)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    monkeypatch.undo()
    found = load(three)
    index = list(found.train.keys).index("train/rose/0.png")
    with Image.open(three / "train/rose/0.png") as image:
        assert abs(found.train.images[index].numpy().mean() - np.asarray(image).mean()) < 3


def test_well_formed_folders_keep_the_fingerprints_of_earlier_versions(
    tmp_path: Path, load: Callable[..., Dataset]
) -> None:
    """Stored at 9bcd100, of images that no library's version changes; and so does the split."""
    for number in range(24):
        path = tmp_path / "fixed" / ("rose", "tulip")[number % 2] / f"{number}.ppm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"P6\n2 2\n255\n" + bytes(range(number, number + 12)))
    found = load(tmp_path / "fixed")
    assert found.fingerprint == "328784bc6c57bb9d5b1b7f397314142cc0b886d3631f208d6d1ae2f559c90e3a"
    assert found.split_checksum == "880f84da14a5216e84395c53846630ed5af0434e5f145f9f84e05cafc6e84649"


def test_every_broken_image_is_named(three: Path, load: Callable[..., Dataset]) -> None:
    for name in ("train/rose/1.png", "test/tulip/0.png"):
        (three / name).write_bytes((three / name).read_bytes()[:60])
    with pytest.raises(UsageError, match=r"test/tulip/0\.png(?s:.*)train/rose/1\.png"):
        load(three)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda root: shutil.rmtree(root / "train"), r"has val/, test/ but no train/"),
        (lambda root: (root / "test/rose/0.png").rename(root / "test/rose/0.txt"), None),
        (lambda root: [path.unlink() for path in (root / "test/rose").iterdir()], r"test/rose has no images"),
        (lambda root: shutil.rmtree(root / "train/tulip"), r"has 1 class to train on"),
        (lambda root: shutil.copytree(root / "val/rose", root / "val/lily"), r"'lily' is in val/ but not in train/"),
        (lambda root: [shutil.rmtree(path) for path in root.iterdir()], r"has no class folders with images"),
        (lambda root: os.symlink("/usr", root / "train/usr"), r"train/usr is a link that leaves"),
        (lambda root: os.symlink(root / "../outside", root / "train/rose/x.png"), r"rose/x.png is a link that leaves"),
        (lambda root: os.symlink("nothing.png", root / "train/rose/x.png"), r"rose/x.png is missing or cannot be read"),
        (lambda root: os.symlink("/dev/zero", root / "train/rose/x"), None),
        (lambda root: os.symlink("/", root / "test/root"), r"test/root is a link that leaves"),
        (lambda root: os.mkdir(os.fsencode(root) + b"/train/caf\xe9"), r"not UTF-8. Rename it"),
    ],
)
def test_what_is_wrong_is_said_by_name(
    three: Path, load: Callable[..., Dataset], change: Callable[[Path], object], words: str | None
) -> None:
    change(three)
    if words is None:
        load(three)
    else:
        with pytest.raises(UsageError, match=words):
            load(three)


def test_a_split_that_lies_elsewhere_is_refused(three: Path, load: Callable[..., Dataset], tmp_path: Path) -> None:
    (three / "test").rename(tmp_path / "elsewhere")
    (three / "test").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="set/test is a link that leaves"):
        load(three)


def test_links_within_the_folder_are_followed_and_copies_are_said(three: Path, load: Callable[..., Dataset]) -> None:
    os.symlink("../../train/rose/0.png", three / "test/rose/same.png")
    os.symlink("../../train/rose/1.png", three / "val/rose/same.png")
    assert load(three).notes == (
        "1 test images also stand in another split, byte for byte: accuracy on them is not honest",
        "1 validation images also stand in train/, byte for byte",
    )


def test_a_class_that_is_not_measured_is_said(three: Path, load: Callable[..., Dataset]) -> None:
    shutil.rmtree(three / "test/rose")
    assert load(three).notes == ("1 classes have no test images",)


def test_images_without_classes_are_refused(
    tmp_path: Path, load: Callable[..., Dataset], write_image: Callable[..., Path]
) -> None:
    write_image(tmp_path / "flat/1.png")
    with pytest.raises(UsageError, match=r"has no class folders with images. Expected .*/flat/CLASS/IMAGE\.jpg"):
        load(tmp_path / "flat")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path, load: Callable[..., Dataset]) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*/gone: No such file"):
        load(tmp_path / "gone")
    with pytest.raises(UsageError, match="name the folder itself"):
        folder.load(DataRequest(tmp_path, None, 8, DEFAULTS))


@pytest.mark.parametrize(
    "options", [{"val": "x"}, {"val": 0}, {"test": 1}, {"val": 0.5, "test": 0.5}, {"split_seed": 1.5}, {"val": "nan"}]
)
def test_shares_out_of_range_are_refused(one: Path, load: Callable[..., Dataset], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"data\.(val|test|split_seed)"):
        load(one, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=60).filter(
            lambda name: not files.is_ignored(name) and len(name.encode()) <= 200
        ),
        min_size=2,
        max_size=4,
        unique_by=listing.look,
    )
)
@example(["-rf", "two  spaces ", " ", "=1+1", "Rosa \u2018Peace\u2019", "日本の桜"])
def test_any_name_is_accepted(
    tmp_path: Path, load: Callable[..., Dataset], write_image: Callable[..., Path], names: list[str]
) -> None:
    assume(not {name.lower() for name in names} & {alias for aliases in listing._ALIASES.values() for alias in aliases})
    root = tmp_path / "odd"
    shutil.rmtree(root, ignore_errors=True)
    for seed, name in enumerate(names):
        for number in range(3):
            write_image(root / name / f"{name} {number}.png", 10 * seed + number)
    found = load(root)
    assert list(found.class_names) == sorted(names)
    assert sorted(sides(found)) == sorted(f"{name}/{name} {number}.png" for name in names for number in range(3))


def test_names_as_long_as_the_file_system_takes(
    tmp_path: Path, load: Callable[..., Dataset], write_image: Callable[..., Path]
) -> None:
    for number in range(6):
        write_image(tmp_path / "long" / ("ab"[number % 2] * 255) / f"{number:0251}.png", number)
    assert len(load(tmp_path / "long").train.keys[0]) == 255 + 1 + 255


# The split rule, on made-up contents

CONTENTS = st.lists(st.integers(0, 30), min_size=1, max_size=40)
CLASSES = st.dictionaries(st.sampled_from("abcd"), CONTENTS, min_size=1)
SHARES = st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.9)).filter(lambda shares: sum(shares) < 0.99)


def ruled(
    contents: dict[str, list[int]], shares: tuple[float, float] = (0.2, 0.2), seed: int = 0
) -> dict[str, dict[str, list[str]]]:
    """The split of images whose content is a number; each class has numbers of its own."""
    hashes = {
        f"{name}/{number}": f"{name}{value:064x}"
        for name, values in contents.items()
        for number, value in enumerate(values)
    }
    classes = {name: [path for path in hashes if path.startswith(f"{name}/")] for name in contents}
    return split_by_rule(classes, hashes, *shares, seed)


def where(splits: dict[str, dict[str, list[str]]]) -> dict[str, str]:
    return {path: split for split, classes in splits.items() for paths in classes.values() for path in paths}


@given(CLASSES, SHARES, st.integers())
def test_rule_every_image_is_used_once_and_every_class_is_everywhere(
    contents: dict[str, list[int]], shares: tuple[float, float], seed: int
) -> None:
    splits = ruled(contents, shares, seed)
    used = sorted(path for classes in splits.values() for paths in classes.values() for path in paths)
    assert used == sorted(f"{name}/{i}" for name, values in contents.items() for i in range(len(values)))
    for name, values in contents.items():
        present = [split for split in SPLITS if splits[split].get(name)]
        assert present == {1: ["train"], 2: ["train", "test"]}.get(len(set(values)), list(SPLITS))


@given(CLASSES, SHARES)
def test_rule_copies_stay_together(contents: dict[str, list[int]], shares: tuple[float, float]) -> None:
    side = where(ruled(contents, shares))
    for name, values in contents.items():
        for value in set(values):
            assert len({side[f"{name}/{i}"] for i, other in enumerate(values) if other == value}) == 1


def test_rule_copies_in_several_classes_stay_together() -> None:
    classes = {"a": [f"a/{i}" for i in range(20)], "b": [f"b/{i}" for i in range(20)]}
    hashes = {path: path.partition("/")[2] for paths in classes.values() for path in paths}
    hashes |= {f"b/{i}": f"own {i}" for i in range(10)}
    side = where(split_by_rule(classes, hashes, 0.3, 0.3, 0))
    assert all(side[f"a/{i}"] == side[f"b/{i}"] for i in range(10, 20))


@given(st.lists(st.integers(0, 10**9), min_size=3, max_size=60, unique=True), st.integers(10**9 + 1, 10**10))
def test_rule_an_added_image_moves_no_other_where_no_part_was_empty(values: list[int], new: int) -> None:
    place = [splitting._place(f"a{value:064x}", 0) for value in values]
    cut = [p < 0.2 for p in place], [0.2 <= p < 0.4 for p in place], [p >= 0.4 for p in place]
    assume(all(any(part) for part in cut))
    before, after = where(ruled({"a": values})), where(ruled({"a": [*values, new]}))
    assert before == {path: after[path] for path in before}


def test_rule_shares_are_about_right_and_the_seed_matters() -> None:
    splits = ruled({"a": list(range(5000))}, (0.1, 0.3))
    assert len(splits["test"]["a"]) == pytest.approx(1500, rel=0.1)
    assert len(splits["val"]["a"]) == pytest.approx(500, rel=0.15)
    assert where(splits) != where(ruled({"a": list(range(5000))}, (0.1, 0.3), seed=1))


def test_rule_renaming_moves_nothing(one: Path, load: Callable[..., Dataset]) -> None:
    before = {key.rpartition("/")[2]: side for key, side in sides(load(one)).items()}
    (one / "rose").rename(one / "zinnia")
    assert {key.rpartition("/")[2]: side for key, side in sides(load(one)).items()} == before
    assert load(one).notes[0] == "split by rule: val 0.2, test 0.2, split_seed 0"


def test_too_few_images_for_a_rule_are_refused(
    tmp_path: Path, load: Callable[..., Dataset], write_image: Callable[..., Path]
) -> None:
    for number in range(2):
        write_image(tmp_path / "few" / "ab"[number] / "1.png", number)
    with pytest.raises(UsageError, match="too few different images for a val split: some class needs at least 3"):
        load(tmp_path / "few")


def test_many_images_are_listed_in_reasonable_time(tmp_path: Path) -> None:
    """20,000 names; nothing may grow with the square."""
    for name in (f"class {number:04d}" for number in range(1000)):
        (tmp_path / name).mkdir()
        for number in range(20):
            os.close(os.open(tmp_path / name / f"{number}.jpg", os.O_CREAT))
    classes = listing.list_classes(tmp_path, tmp_path).classes
    hashes = {path: path for paths in classes.values() for path in paths}
    splits = split_by_rule(classes, hashes, 0.2, 0.2, 0)
    assert sum(len(paths) for part in splits.values() for paths in part.values()) == 20_000


def test_selection_is_what_splits_are_made_of(one: Path, load: Callable[..., Dataset]) -> None:
    found = load(one)
    assert isinstance(found.train.images, cache.Selection)


@given(
    st.dictionaries(st.text(), st.lists(st.tuples(st.text(), st.integers(0, 999)), unique=True), max_size=3),
)
def test_the_split_checksum_is_that_of_its_json_lines(splits: dict[str, list[tuple[str, int]]]) -> None:
    lines = [json.dumps([split, *pair]) + "\n" for split in sorted(splits) for pair in sorted(splits[split])]
    given = {split: ([key for key, _ in pairs], [label for _, label in pairs]) for split, pairs in splits.items()}
    assert split_checksum(given) == hashlib.sha256("".join(lines).encode()).hexdigest()
