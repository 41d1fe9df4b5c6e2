"""Datasets of the Hugging Face hub, from folders on this machine in the hub's forms, and what is said where the hub is not there."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.contract.host import discover
from flowers_bench.data import hub, sources
from flowers_bench.data.decode import decode_image
from flowers_bench.data.options import FOLDER_OPTIONS, HUB_OPTIONS
from flowers_bench.plan import planning
from flowers_bench.plan.request import Request
from flowers_bench.util.errors import UsageError

datasets = pytest.importorskip("datasets")

NAMES = ["wren", "robin"]
SHARES = {name: option.default for name, option in FOLDER_OPTIONS.items()}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test may reach the hub, nor what another one has been told by it."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    hub._newest.cache_clear()


@pytest.fixture
def make(tmp_path: Path, write_image: Callable[..., Path]) -> Callable[..., Any]:
    """Makes a dataset of so many images of each split, with a class label and whatever further columns are asked for."""

    def make(counts: dict[str, int], labels: Any = None, **further: Any) -> Any:
        seed, splits = 0, {}
        kinds = {"photo": datasets.Image(), "bird": labels or datasets.ClassLabel(names=NAMES)}
        kinds |= {name: kind for name, (kind, _) in further.items()}
        for split, count in counts.items():
            files = [write_image(tmp_path / "made" / split / f"{i}.png", seed := seed + 1) for i in range(count)]
            value = (lambda i: NAMES[i % 2]) if labels else (lambda i: i % 2)
            columns = {"photo": list(map(str, files)), "bird": [value(i) for i in range(count)]}
            columns |= {name: [of(i) for i in range(count)] for name, (_, of) in further.items()}
            splits[split] = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        return datasets.DatasetDict(splits)

    return make


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves a dataset as the hub has it: Parquet files with the images in them."""

    def save(found: Any, name: str = "birds") -> Path:
        for split, rows in found.items():
            (tmp_path / name / "data").mkdir(parents=True, exist_ok=True)
            rows.to_parquet(tmp_path / name / "data" / f"{split}-00000-of-00001.parquet")
        return tmp_path / name

    return save


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Dataset]:
    def load(folder: Path, **options: Any) -> Dataset:
        values = {**{name: option.default for name, option in HUB_OPTIONS.items()}, **hub.named(str(folder)), **options}
        return hub.load(DataRequest(tmp_path / "cache", None, 8, values))

    return load


ALL = {"train": 8, "validation": 4, "test": 6}


def test_images_splits_and_classes_are_those_of_the_dataset(make: Any, save: Any, load: Any, tmp_path: Path) -> None:
    found = load(save(make(ALL)))
    assert found.name == "hf:birds"
    assert found.class_names == sorted(NAMES)
    for split, theirs in (("train", "train"), ("val", "validation"), ("test", "test")):
        part = getattr(found, split)
        assert len(part) == ALL[theirs]
        for index, key in enumerate(part.keys):
            number = int(key.rpartition("/")[2].partition(".")[0])
            expected = decode_image(tmp_path / "made" / theirs / f"{number}.png", 8)
            assert np.array_equal(part.images[index].permute(1, 2, 0).numpy(), expected)
            assert found.class_names[part.labels[index]] == NAMES[number % 2]


def test_the_revision_is_pinned_and_follows_the_content(make: Any, save: Any, load: Any) -> None:
    folder = save(make(ALL))
    revision = hub.named(str(folder))["revision"]
    first = load(folder)
    assert first.notes[0] == f"Hugging Face dataset {folder}, revision {revision}"
    save(make({**ALL, "train": 10}))
    with pytest.raises(UsageError, match="the folder's content has revision"):
        hub.named(f"{folder}@{revision}")
    assert load(folder).fingerprint != first.fingerprint
    # What was exported is read without the folder, by its revision.
    values = {**SHARES, "name": str(folder), "revision": revision}
    (folder / "data" / "train-00000-of-00001.parquet").unlink()
    assert load(folder, **values).fingerprint == first.fingerprint


def test_what_was_exported_needs_no_package(make: Any, save: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(make(ALL))
    first = load(folder)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load(folder).fingerprint == first.fingerprint
    with pytest.raises(UsageError, match=r"needs the package datasets.*pip install 'flowers-bench\[hf\]'"):
        load(folder, config="other")


def test_saved_to_disk_is_read_too(make: Any, load: Any, save: Any, tmp_path: Path) -> None:
    made = make(ALL)
    made.save_to_disk(tmp_path / "saved")
    assert load(tmp_path / "saved").split_checksum == load(save(made)).split_checksum


def test_a_single_split_is_divided_by_rule_and_a_lone_validation_is_the_test(make: Any, save: Any, load: Any) -> None:
    found = load(save(make({"train": 20}), "one"), val=0.2, test=0.3)
    assert sum(map(len, (found.train, found.val, found.test))) == 20
    assert any(note.startswith("split by rule: val 0.2, test 0.3") for note in found.notes)
    found = load(save(make({"train": 10, "validation": 6, "extra": 2}), "two"))
    assert (len(found.train), len(found.val), len(found.test)) == (8, 2, 6)
    assert "it has no test split: its validation split is the test here" in found.notes
    assert "splits extra were left out" in found.notes


def test_further_class_columns_are_coarser_names(make: Any, save: Any, load: Any) -> None:
    names = ["a", "b", "c", "d"]
    made = make(
        {"train": 12, "validation": 8, "test": 8},
        species=(datasets.ClassLabel(names=names), lambda i: i % 4),
        caption=(datasets.Value("string"), lambda i: f"image {i}"),
    )
    found = load(save(made), label="species")
    (level,) = found.name_levels
    assert [level.names[place] for place in level.of_class] == ["wren", "robin", "wren", "robin"]
    assert level.name == "bird"


def test_labels_may_be_words(make: Any, save: Any, load: Any) -> None:
    made = make(ALL, labels=datasets.Value("string"))
    with pytest.raises(UsageError, match=r"no one column that must be the label. Name it with --set data.label=COLUMN"):
        load(save(made))
    assert load(save(made), label="bird").class_names == sorted(NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "foto"}, r"has no column 'foto'.*there are: photo \(Image\), bird \(ClassLabel\), size \(float64\)"),
        ({"image": "bird"}, "column 'bird' of .* holds no images; photo does"),
        ({"label": "photo"}, "column 'photo' of .* holds no labels, but Image"),
        ({"label": "size"}, "column 'size' of .* holds no labels, but float64"),
    ],
)
def test_columns_that_do_not_fit_are_said(
    make: Any, save: Any, load: Any, options: dict[str, str], message: str
) -> None:
    folder = save(make(ALL, size=(datasets.Value("float64"), float)))
    with pytest.raises(UsageError, match=message):
        load(folder, **options)


def test_rows_without_label_and_splits_without_test_are_refused(
    make: Any, save: Any, load: Any, tmp_path: Path
) -> None:
    made = make(ALL, size=(datasets.ClassLabel(names=["s", "m"]), lambda i: -1))
    with pytest.raises(UsageError, match=r"row 0 of split 'train' has no label \(-1\)"):
        load(save(made, "a"), label="size")
    with pytest.raises(UsageError, match=r"has the splits test\. Needed are train and test, or train alone"):
        load(save(make({"test": 4}), "b"))
    assert not [path for path in (tmp_path / "cache" / "hf").iterdir() if "partial" in path.name]


def test_without_network_the_message_says_what_to_do() -> None:
    with pytest.raises(
        UsageError, match=r"the hub could not be asked.*hf:someone/birds@REVISION, or a folder.*hf:./FOLDER"
    ):
        hub.named("someone/birds")
    assert hub.named("someone/birds@abc123") == {"name": "someone/birds", "revision": "abc123"}
    with pytest.raises(UsageError, match="names no dataset"):
        hub.named("@abc")


def test_a_dataset_that_cannot_be_opened_is_said(load: Any, tmp_path: Path) -> None:
    request = DataRequest(tmp_path / "cache", None, 8, {**SHARES, "name": "someone/birds", "revision": "abc123"})
    with pytest.raises(
        UsageError, match=r"dataset someone/birds, revision abc123, cannot be opened.*--data hf:./FOLDER"
    ):
        hub.load(request)


def test_the_newest_revision_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Info:
        sha = "c0ffee"

    def info(name: str, timeout: float) -> Info:
        asked.append(name)
        return Info()

    monkeypatch.setattr("huggingface_hub.dataset_info", info)
    assert [hub.named("someone/birds")["revision"] for _ in range(2)] == ["c0ffee", "c0ffee"]
    assert asked == ["someone/birds"]


def test_the_command_line_names_it_and_the_plan_has_its_revision(make: Any, save: Any, tmp_path: Path) -> None:
    folder = save(make(ALL))
    request = Request(["knn"], f"hf:{folder}", tmp_path / "cache", 1, settings={"data.label": "bird"})
    found = planning._with_named_data(discover([]), request)
    assert found.data == "hf"
    assert found.settings == {"data.label": "bird", **{f"data.{k}": v for k, v in hub.named(str(folder)).items()}}
    assert planning._with_named_data(discover([]), Request(["knn"], "a:b", tmp_path, 1)).data == "a:b"


def test_naming_a_source_imports_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def guarded(name: str, *arguments: Any, **more: Any) -> Any:
        assert not name.startswith(("datasets", "huggingface_hub")), name
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", guarded)
    assert sources.hub_options("someone/birds@abc") == {"name": "someone/birds", "revision": "abc"}
