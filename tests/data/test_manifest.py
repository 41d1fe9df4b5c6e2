"""Tables of images: what the columns mean, and whatever can be wrong with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.host import discover
from flowers_bench.data import folder, manifest
from flowers_bench.plan.planning import find_source
from flowers_bench.util.errors import UsageError

DEFAULTS = {"val": 0.2, "test": 0.2, "split_seed": 0}
SPLITS = ("train", "val", "test")


@pytest.fixture
def images(tmp_path: Path, write_image: Callable[..., Path]) -> Path:
    """A folder with images 0.png to 23.png."""
    for number in range(24):
        write_image(tmp_path / "set" / f"{number}.png", number)
    return tmp_path / "set"


@pytest.fixture
def load(images: Path, tmp_path: Path) -> Callable[..., Dataset]:
    """Loads a table of the given text from beside the images."""

    def load(text: str | bytes, name: str = "t.csv", **options: Any) -> Dataset:
        table = images / name
        table.write_bytes(text.encode() if isinstance(text, str) else text)
        return manifest.load(DataRequest(tmp_path / "cache", table, 8, {**DEFAULTS, **options}))

    return load


def rows(
    columns: str = "path,label", line: str = "{n}.png,{label}", labels: tuple[str, ...] = ("rose", "tulip")
) -> str:
    """24 lines; `{split}` is train, train, val, val, test, test over and over."""
    lines = [
        line.format(n=n, label=labels[n % len(labels)], split=SPLITS[n // 2 % 3], side=("train", "test")[n // 2 % 2])
        for n in range(24)
    ]
    return "\n".join([columns, *lines]) + "\n"


def sides(found: Dataset) -> dict[str, str]:
    return {key: split for split in SPLITS for key in getattr(found, split).keys}


def test_the_table_says_which_image_is_what_and_where(load: Callable[..., Dataset]) -> None:
    found = load(rows("path,label,split", "{n}.png,{label},{split}"))
    assert found.name == "t"
    assert found.class_names == ["rose", "tulip"]
    assert found.train.keys == ["0.png", "12.png", "18.png", "6.png", "1.png", "13.png", "19.png", "7.png"]
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4
    assert (len(found.val), len(found.test)) == (8, 8)
    assert found.notes == ()


def test_images_are_those_of_their_paths(load: Callable[..., Dataset], images: Path) -> None:
    import numpy as np

    from flowers_bench.data.decode import decode_image

    found = load(rows())
    for split in SPLITS:
        part = getattr(found, split)
        for index, key in enumerate(part.keys):
            expected = decode_image(images / key, 8)
            assert np.array_equal(part.images[index].permute(1, 2, 0).numpy(), expected)
            assert part.labels[index] == int(key.removesuffix(".png")) % 2


def test_without_splits_the_folder_rule_holds(
    load: Callable[..., Dataset], images: Path, tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    found = load(rows(), val=0.25, split_seed=3)
    for number in range(24):
        write_image(tmp_path / "f" / ("rose", "tulip")[number % 2] / f"{number}.png", number)
    options = {"val": 0.25, "test": 0.2, "split_seed": 3}
    same = folder.load(DataRequest(tmp_path / "cache", tmp_path / "f", 8, options))
    assert sides(found) == {key.rpartition("/")[2]: side for key, side in sides(same).items()}
    assert found.notes == ("split by rule: val 0.25, test 0.2, split_seed 3",)


def test_validation_is_taken_from_training_where_only_a_test_is_given(load: Callable[..., Dataset]) -> None:
    text = rows("path,label,split", "{n}.png,{label},{side}")
    found = load(text, val=0.34)
    assert len(found.test) == 12
    assert found.val.labels.tolist() == [0, 0, 1, 1]  # a third of six of each class
    assert found.notes == ("validation taken from the training images by rule: val 0.34, split_seed 0",)
    assert sides(load(text, val=0.34, split_seed=1)) != sides(found)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separators_quotes_marks_and_line_ends_of_other_programs(load: Callable[..., Dataset], separator: str) -> None:
    name = "t.tsv" if separator == "\t" else "t.csv"
    plain = load(rows("path,label", "{n}.png,{label}", ("lily, white", "rose")).replace("lily, white", "lily"))
    text = rows("Path,LABEL ", '{n}.png,"{label}"', ("lily", "rose")).replace(",", separator)
    found = load(b"\xef\xbb\xbf" + text.replace("\n", "\r\n\r\n").encode(), name)
    assert found.class_names == plain.class_names
    assert sides(found) == sides(plain)


def test_quoted_commas_and_quotes_belong_to_the_label(load: Callable[..., Dataset]) -> None:
    found = load(rows(line='{n}.png,"{label}"', labels=('lily, ""white""', "rose")))
    assert found.class_names == ['lily, "white"', "rose"]


def test_labels_that_are_numbers_are_in_their_order_and_keep_their_zeros(load: Callable[..., Dataset]) -> None:
    assert load(rows(labels=("10", "9", "02"))).class_names == ["02", "9", "10"]
    assert load(rows(labels=("10", "9", "b"))).class_names == ["10", "9", "b"]


def test_parquet_is_read_as_the_same_text_is(load: Callable[..., Dataset], images: Path, tmp_path: Path) -> None:
    plain = load(rows("path,label,split", "{n}.png,{label},{split}", ("3", "20")))
    table = images / "t.parquet"
    columns = {
        "path": [f"{n}.png" for n in range(24)],
        "label": pa.array([(3, 20)[n % 2] for n in range(24)], pa.int16()),
        "split": [SPLITS[n // 2 % 3] for n in range(24)],
    }
    pq.write_table(pa.table(columns), table)
    found = manifest.load(DataRequest(tmp_path / "cache", table, 8, DEFAULTS))
    assert found.fingerprint == plain.fingerprint
    pq.write_table(pa.table({**columns, "label": [1.0, 2.0] * 12}), table)
    with pytest.raises(UsageError, match="'label' holds floating-point numbers"):
        manifest.load(DataRequest(tmp_path / "cache", table, 8, DEFAULTS))
    table.write_bytes(b"PAR1 no more")
    with pytest.raises(UsageError, match=r"t\.parquet cannot be read as Parquet"):
        manifest.load(DataRequest(tmp_path / "cache", table, 8, DEFAULTS))


def test_the_identity_is_of_images_splits_and_names(
    load: Callable[..., Dataset], write_image: Any, images: Path
) -> None:
    text = rows("path,label,split", "{n}.png,{label},{split}")
    one = load(text)
    lines = text.splitlines()
    assert load("\n".join([lines[0], *reversed(lines[1:])])).fingerprint == one.fingerprint
    assert load(text, split_seed=9).fingerprint == one.fingerprint
    renamed = load(text.replace("tulip", "tulips"))
    assert renamed.fingerprint != one.fingerprint
    assert renamed.split_checksum == one.split_checksum
    moved = load(text.replace("0.png,rose,train", "0.png,rose,val", 1))
    assert moved.split_checksum != one.split_checksum
    write_image(images / "0.png", 99)
    assert load(text).fingerprint != one.fingerprint


def test_further_columns_are_coarser_names_or_are_said(load: Callable[..., Dataset]) -> None:
    families = {"rose": "rosaceae", "apple": "rosaceae", "lily": "liliaceae", "tulip": "liliaceae"}
    labels = tuple(families)
    body = [f"{n}.png,{labels[n % 4]},{families[labels[n % 4]]},plant,{n},{labels[n % 4]}" for n in range(24)]
    found = load("\n".join(["path,label,Family,kingdom,photographer,name", *body]))
    (level,) = found.name_levels
    assert (level.name, level.names) == ("family", ["rosaceae", "liliaceae"])
    assert found.class_names == ["apple", "lily", "rose", "tulip"]
    assert level.of_class == [0, 1, 0, 1]
    assert [note for note in found.notes if "passed over" in note] == [
        "column 'kingdom' was passed over: with 1 values, it is no coarser name of 4 labels",
        "column 'photographer' was passed over: label 'rose' has 6 values in it",
        "column 'name' was passed over: with 4 values, it is no coarser name of 4 labels",
    ]


def test_absolute_paths_stand_for_themselves_and_are_said(
    load: Callable[..., Dataset], tmp_path: Path, write_image: Callable[..., Path]
) -> None:
    far = write_image(tmp_path / "elsewhere" / "x.png", 77)
    found = load(rows() + f"{far},rose\n")
    assert str(far) in sides(found)
    assert any("1 images have absolute paths" in note for note in found.notes)


def test_links_that_stay_are_followed(load: Callable[..., Dataset], images: Path) -> None:
    (images / "24.png").symlink_to(images / "0.png")
    found = load(rows() + "24.png,rose\n")
    assert sides(found)["24.png"] == sides(found)["0.png"]  # copies stay on one side


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column 'path' and no column 'label'; its columns are none"),
        ("file,label\n", r"has no column 'path'; its columns are 'file', 'label'. The first line names them"),
        ("path,label,path\n", "has the column 'path' twice"),
        ("path,label\n", "has no rows below its first line"),
        ("path,label\n0.png\n", r"line 2: 1 cells, where the first line has 2 columns. Put quotes"),
        ("path,label\n0.png,lily, white\n", r"line 2: 3 cells"),
        ('path,label\n0.png,"rose\n', r"line 2: unexpected end of data"),
        ("path,label\n,rose\n", "line 2: it has no path"),
        ("path,label\n0.png, \n", "line 2: 0.png has no label"),
        ("path,label,split\n0.png,rose,dev\n", "line 2: split 'dev' is none of train, val, test"),
        ("path,label\n0.png,rose\n./0.png,rose\n", r"line 3: 0.png stands in line 2 already"),
        ("path,label\n0.png,rose\n0.png,lily\n", "line 3: 0.png is 'lily' here and 'rose' in line 2"),
        (
            "path,label,split\n0.png,rose,train\n0.png,rose,Testing\n",
            "line 3: 0.png is in split 'Testing' here and in 'train' in line 2",
        ),
        ("path,label\nno.png,rose\n", r"line 2: there is no file no.png$"),
        ("path,label\na\\no.png,rose\n", r"there is no file a\\no.png. Separate folders by /"),
        ("path,label\n.,rose\n", "line 2: . is no file"),
        ("path,label\n../x.png,rose\n", r"line 2: ../x.png leaves the table's folder"),
        ("path,label\na/../../x.png,rose\n", r"line 2: ../x.png leaves the table's folder"),
        ("path,label\nout.png,rose\n", r"line 2: out.png is a link that leaves"),
        ("path,label\nout/x.png,rose\n", r"line 2: out/x.png is a link that leaves"),
        ("path,label,split\n0.png,rose,train\n1.png,rose,\n", "line 3: no split, while other images have one"),
        ("path,label,split\n0.png,rose,train\n1.png,rose,val\n", "has no test images. Needed are train and test"),
        ("path,label,split\n0.png,rose,test\n", "has no train and no val images"),
        (rows(labels=("rose",)), "has 1 class to train on; at least 2 are needed"),
        (b"path,label\n0.png,ros\xe9\n", "is not UTF-8 .byte 20.. Save it as UTF-8"),
    ],
)
def test_what_is_wrong_is_said_by_line(
    load: Callable[..., Dataset], images: Path, tmp_path: Path, write_image: Any, text: str | bytes, message: str
) -> None:
    write_image(tmp_path / "x.png", 5)
    (images / "out.png").symlink_to(tmp_path / "x.png")
    (images / "out").symlink_to(tmp_path)
    with pytest.raises(UsageError, match=message):
        load(text)


def test_the_first_ten_mistakes_are_named_and_the_others_counted(load: Callable[..., Dataset]) -> None:
    with pytest.raises(UsageError) as caught:
        load(rows(line="x{n}.png,{label}"))
    lines = str(caught.value).splitlines()
    assert lines[1] == "line 2: there is no file x0.png"
    assert (len(lines), lines[-1]) == (12, "... and 14 more")


def test_one_label_in_two_encodings_is_refused_and_look_alikes_are_said(load: Callable[..., Dataset]) -> None:
    with pytest.raises(UsageError, match="in two encodings that look the same"):
        load(rows(labels=("ros\u00e9", "rose\u0301")))
    assert "the classes 'Rose' and 'rose' look alike, and count as two" in load(rows(labels=("rose", "Rose"))).notes


def test_a_damaged_image_is_named(load: Callable[..., Dataset], images: Path) -> None:
    (images / "5.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match=r"5\.png is not an image"):
        load(rows())


def test_nothing_is_written_beside_the_table(load: Callable[..., Dataset], images: Path) -> None:
    load(rows())
    before = sorted(images.iterdir())
    load(rows())
    assert sorted(images.iterdir()) == before


def test_a_table_is_known_by_its_extension_and_other_files_are_refused(images: Path) -> None:
    host = discover([])
    for name in ("t.csv", "T.TSV", "t.parquet"):
        (images / name).touch()
        source, path = find_source(host, str(images / name))
        assert (source.name, path) == ("manifest", images / name)
    with pytest.raises(UsageError, match=r"0\.png: not a folder, and no file of \.csv or \.parquet or \.tsv\."):
        find_source(host, str(images / "0.png"))
    with pytest.raises(UsageError, match=r"no\.csv: no such folder or file"):
        find_source(host, str(images / "no.csv"))
