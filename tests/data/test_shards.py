"""WebDataset shards: images, labels and splits are those of the samples; what is damaged or unsafe is refused, by name."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.host import discover
from flowers_bench.data import shards
from flowers_bench.data.options import SHARD_OPTIONS
from flowers_bench.plan.planning import find_source, plan
from flowers_bench.plan.request import Request
from flowers_bench.util.errors import UsageError

NAMES = ("wren", "robin")


def picture(seed: int, format: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format=format)
    return stream.getvalue()


def packed(files: Sequence[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], None] = lambda info: None) -> bytes:
    """A tar file of these names and contents."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            change(info)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def birds(first: int, count: int, label: Callable[[int], Mapping[str, bytes]] | None = None) -> list[tuple[str, bytes]]:
    """Files of so many samples, by turns of both classes."""
    found = []
    for i in range(first, first + count):
        more = label(i) if label else {"cls": NAMES[i % 2].encode()}
        found += [(f"{i:05d}.png", picture(i)), *((f"{i:05d}.{ending}", content) for ending, content in more.items())]
    return found


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(**files: bytes | Sequence[tuple[str, bytes]]) -> Path:
        for name, content in files.items():
            path = tmp_path / "birds" / name.replace("__", "/").replace("_", "-")
            path = path if path.suffix else path.with_suffix(".tar")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else packed(content))
        return tmp_path / "birds"

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def load(folder: Path, read_only: bool = False, **options: Any) -> Dataset:
        values = {**{name: option.default for name, option in SHARD_OPTIONS.items()}, **options}
        return shards.load(DataRequest(tmp_path / "cache", folder, 12, values, read_only=read_only))

    return load


def test_images_labels_and_splits_are_those_of_the_samples(write: Any, load: Any) -> None:
    found = load(write(train_0=birds(0, 4), train_1=birds(4, 4), val_0=birds(8, 2), test_0=birds(10, 4)))
    assert found.name == "wds:birds"
    assert list(found.class_names) == ["robin", "wren"]
    for split, numbers in (("train", range(8)), ("val", (8, 9)), ("test", range(10, 14))):
        images = getattr(found, split)
        label_of = {np.asarray(Image.open(io.BytesIO(picture(i)))).tobytes(): NAMES[i % 2] for i in numbers}
        seen = {
            images.images[i].permute(1, 2, 0).numpy().tobytes(): found.class_names[images.labels[i]]
            for i in range(len(images))
        }
        assert seen == label_of


@pytest.mark.parametrize("folder", ["train__0", "birds_train_000", "Training_0"])
def test_a_split_is_told_by_name_or_folder(write: Any, load: Any, folder: str) -> None:
    found = load(write(**{folder: birds(0, 6), "val__0": birds(8, 2), "test_0": birds(10, 2)}))
    assert len(found.train) == 6


def test_without_a_test_shard_validation_is_the_test(write: Any, load: Any) -> None:
    found = load(write(train_0=birds(0, 20), val_0=birds(20, 4)))
    assert len(found.test) == 4
    assert len(found.train) + len(found.val) == 20
    assert "those of validation are the test here" in " ".join(found.notes)


@pytest.mark.parametrize("name", ["train_0", "pack_0"])
def test_one_split_or_none_is_split_by_rule(write: Any, load: Any, name: str) -> None:
    found = load(write(**{name: birds(0, 40)}))
    assert "split by rule" in " ".join(found.notes)
    assert sum(len(getattr(found, split)) for split in ("train", "val", "test")) == 40


@pytest.mark.parametrize(
    ("label", "asked"),
    [
        (lambda i: {"json": json.dumps({"caption": "a bird", "label": NAMES[i % 2]}).encode()}, ""),
        (lambda i: {"json": json.dumps({"kind": NAMES[i % 2], "label": "bird"}).encode()}, "json.kind"),
        (lambda i: {"json": json.dumps(NAMES[i % 2]).encode(), "txt": b"a bird"}, ""),
        (lambda i: {"txt": NAMES[i % 2].encode(), "cls": b"0"}, "txt"),
        (lambda i: {"cls": f"\ufeff {NAMES[i % 2]}\n".encode(), "json": b"{}"}, ""),
        (lambda i: {"CLS": NAMES[i % 2].encode()}, ""),
    ],
)
def test_labels_stand_where_they_are_found_or_asked_for(write: Any, load: Any, label: Any, asked: str) -> None:
    found = load(write(train_0=birds(0, 8, label), test_0=birds(8, 2, label)), label=asked)
    assert list(found.class_names) == ["robin", "wren"]
    assert found.test.labels.tolist() == [0, 1]


def test_numbers_have_the_names_of_a_list(write: Any, load: Any) -> None:
    def numbered(i: int) -> dict[str, bytes]:
        return {"cls": str(i % 2).encode()}

    folder = write(train_0=birds(0, 8, numbered), test_0=birds(8, 2, numbered))
    assert list(load(folder).class_names) == ["0", "1"]
    (folder / "classnames.txt").write_text("wren\nrobin\n")
    assert list(load(folder).class_names) == ["robin", "wren"]
    for names, words in (
        ("wren\n", "label 1, and classnames.txt has names for 0 to 0"),
        ("wren\nwren\n", "'wren' twice"),
    ):
        (folder / "classnames.txt").write_text(names)
        with pytest.raises(UsageError, match=words):
            load(folder)


def test_a_sample_with_several_images_has_the_one_that_is_asked_for(write: Any, load: Any) -> None:
    def two(i: int) -> dict[str, bytes]:
        return {"mask.png": picture(1000), "cls": NAMES[i % 2].encode()}

    folder = write(train_0=birds(0, 8, two), test_0=birds(8, 2, two))
    with pytest.raises(UsageError, match=r"sample '00008' has several images.*--set data.image=png or mask.png"):
        load(folder)
    assert len(load(folder, image="png").train) > 4
    with pytest.raises(UsageError, match=r"has no \.webp image"):
        load(folder, image="webp")


def test_the_second_time_no_shard_is_opened(write: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(train_0=birds(0, 8), test_0=birds(8, 2))
    first = load(folder)
    monkeypatch.setattr(shards, "samples", lambda shard: pytest.fail("a shard is read again"))
    again = load(folder)
    assert again.fingerprint == first.fingerprint
    assert again.split_checksum == first.split_checksum


def test_other_bytes_are_another_dataset(write: Any, load: Any) -> None:
    one = load(write(train_0=birds(0, 8), test_0=birds(8, 2)))
    other = load(write(train_0=birds(1, 8), test_0=birds(8, 2)))
    assert one.fingerprint != other.fingerprint


def test_read_only_writes_nothing(write: Any, load: Any, tmp_path: Path) -> None:
    folder = write(train_0=birds(0, 8), test_0=birds(8, 2))
    with pytest.raises(UsageError):
        load(folder, read_only=True)
    assert not (tmp_path / "cache" / "wds").exists()


def test_names_in_a_shard_are_no_paths(write: Any, load: Any, tmp_path: Path) -> None:
    files = [(f"../../../{name}", content) for name, content in birds(0, 8)]
    absolute = [(f"{tmp_path}/out/{name}", content) for name, content in birds(8, 2)]
    before = set(tmp_path.iterdir())
    found = load(write(train_0=files, test_0=absolute))
    assert len(found.test) == 2
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"birds", "cache"}


class Planted:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a file of a shard was executed",)


def test_nothing_in_a_shard_is_executed(write: Any, load: Any) -> None:
    def planted(i: int) -> dict[str, bytes]:
        return {"cls": NAMES[i % 2].encode(), "pyd": pickle.dumps(Planted()), "pth": pickle.dumps(Planted())}

    assert len(load(write(train_0=birds(0, 8, planted), test_0=birds(8, 2, planted))).test) == 2


WHOLE = packed(birds(0, 4))


@pytest.mark.parametrize("length", [0, 1, 100, 512, 700, 1024, 3000, 4 * 1024, len(packed(birds(0, 4))) // 2])
def test_a_cut_shard_is_refused(write: Any, load: Any, length: int) -> None:
    with pytest.raises(UsageError, match=r"train-0.tar (is damaged or cut|holds no samples)"):
        load(write(train_0=WHOLE[:length], test_0=birds(8, 2)))


def test_a_shard_that_is_cut_anywhere_is_refused(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        last = max(member.offset_data + member.size for member in archive.getmembers())
    for length in range(0, last, 256):
        (tmp_path / "cut.tar").write_bytes(WHOLE[:length])
        with pytest.raises(UsageError, match=r"cut\.tar"):
            list(shards.samples(tmp_path / "cut.tar"))


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(WHOLE)) as archive:
        headers = [member.offset for member in archive.getmembers()]
    for offset in headers:
        changed = bytearray(WHOLE)
        changed[offset + 150] ^= 0xFF  # in the header's checksum
        (tmp_path / "bad.tar").write_bytes(changed)
        with pytest.raises(UsageError, match=r"bad.tar is damaged or cut"):
            list(shards.samples(tmp_path / "bad.tar"))


def _link(info: tarfile.TarInfo) -> None:
    if info.name.endswith("png"):
        info.type, info.linkname, info.size = tarfile.SYMTYPE, "/etc/passwd", 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (packed(birds(0, 4), _link), "'00000.png' is no regular file but a link"),
        ([("a.cls", b"0")], "sample 'a' has no image; its files are .cls"),
        ([("a.png", picture(0))], "has no .cls and no .json; its files are .png"),
        ([("a.png", picture(0)), ("a.cls", b"")], "expected one line of text"),
        ([("a.png", picture(0)), ("a.cls", b"\xff\xfe")], "a'?: .cls is no UTF-8"),
        ([("a.png", picture(0)), ("a.json", b"{")], ".json is no JSON"),
        ([("a.png", picture(0)), ("a.json", b"[" * 100000)], ".json is no JSON"),
        ([("a.png", picture(0)), ("a.json", b'{"kind": 1}')], r"no label .*data.label=json.KEY; there are: kind"),
        ([("a.png", picture(0)), ("a.json", b'{"label": 1.5}')], "the label 1.5: expected"),
        ([("a.png", picture(0)), ("a.json", b'{"label": true}')], "the label True: expected"),
        ([("a.png", picture(0)), ("a.cls", b"0"), ("b.cls", b"1"), ("b.png", picture(1)), ("a.txt", b"")], "'a' stand in two places"),
        ([("a.png", picture(0)), ("a.png", picture(1))], "'a.png' stands there twice"),
        ([*birds(0, 8), ("9/b.png", b"no image at all"), ("9/b.cls", b"wren")], r"-train-0/0000008-9-b\.png"),
        ([("a.cls", b"0" * (2 << 20)), ("a.png", picture(0))], r"'a.cls' has 2,097,152 bytes: more than 1,048,576"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_name(write: Any, load: Any, content: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(write(train_0=content, test_0=birds(8, 2)))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train_0", "more"], "more.tar is of no split by its name"),
        (["val_0", "test_0"], "has shards of test, val. Needed are train and test"),
        (["train_test_0"], "train-test-0.tar names several splits: test, train"),
    ],
)
def test_splits_that_do_not_tell_are_refused(write: Any, load: Any, names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        load(write(**{name: birds(8 * i, 8) for i, name in enumerate(names)}))


def test_a_folder_is_recognised_by_its_shards_alone(write: Any, tmp_path: Path) -> None:
    host, folder = discover(only_built_in=True), write(train__0=birds(0, 8), test__0=birds(8, 2))
    assert find_source(host, str(folder))[0].name == "wds"
    classes = tmp_path / "classes"
    for name in NAMES:
        (classes / name).mkdir(parents=True)
        (classes / name / "1.png").write_bytes(picture(0))
    (classes / "backup.tar").write_bytes(WHOLE)
    assert find_source(host, str(classes))[0].name == "folder"


def test_a_trial_is_planned_by_name_and_by_folder_alike(write: Any, tmp_path: Path) -> None:
    host, folder = discover(only_built_in=True), write(train_0=birds(0, 8), test_0=birds(8, 2))
    common = {"backbone": "test_resnet", "weights": "none", "settings": {"image_size": "16", "batch_size": "4"}}
    ids = []
    for data in (f"wds:{folder}", str(folder)):
        (item,) = plan(host, Request(["transfer/scratch"], data, tmp_path / "cache", 1, **common), [])
        ids.append(item.trial.id)
    assert ids[0] == ids[1]
    with pytest.raises(UsageError, match="there is no such folder with shards"):
        plan(host, Request(["transfer/scratch"], f"wds:{tmp_path}/none", tmp_path / "cache", 1, **common), [])


def test_samples_are_those_that_the_webdataset_package_gives(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset", reason='webdataset is not installed: pip install ".[test]"')
    with webdataset.TarWriter(str(tmp_path / "train-0.tar")) as writer:
        for i in range(5):
            writer.write({"__key__": f"some/where.d/{i:03d}", "png": picture(i), "cls": i % 2, "mask.png": picture(9)})
    theirs = list(webdataset.WebDataset(f"file:{tmp_path}/train-0.tar", shardshuffle=False))
    ours = list(shards.samples(tmp_path / "train-0.tar"))
    assert [sample.key for sample in ours] == [sample["__key__"] for sample in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.files == {name: value for name, value in other.items() if not name.startswith("__")}
