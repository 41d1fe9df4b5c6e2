"""The corners of what a trial can measure: whatever it leaves out, or adds, the readers know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lives import live, planned
from PIL import Image

from flowers_bench import load_results
from flowers_bench.cli.compare import compare
from flowers_bench.cli.leaderboard import print_leaderboard
from flowers_bench.cli.predict import predict
from flowers_bench.cli.report import report
from flowers_bench.cli.show import show
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import Protocol
from flowers_bench.store.records import Epoch
from flowers_bench.store.schema import ByName, Each, Fields, Form, OrNull, form_of
from flowers_bench.training.robustness import stress_trial
from flowers_bench.training.trial import run_trial

WHOLE_LABELS = """
from flowers_bench import Augmentation, hookimpl

@hookimpl
def register_augmentations():
    return [Augmentation(
        "whole", "mirrors a batch, and leaves each image its label",
        image=lambda context: lambda image, generator=None: image,
        batch=lambda context: lambda images, labels: (images.flip(-1), labels),
    )]
"""


def photographs(root: Path, counts: dict[str, int]) -> Path:
    """A folder of images, so many in each of its subfolders."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def one_test_image_of_each_class(tmp_path: Path) -> TrialFolder:
    counts = {f"{split}/{name}": n for split, n in (("train", 6), ("val", 1), ("test", 1)) for name in "abc"}
    data = photographs(tmp_path / "photographs", counts)
    return live(tmp_path, "transfer/scratch", data=str(data), epochs="1", warmup_epochs="0")


def one_test_image(tmp_path: Path) -> TrialFolder:
    counts = {"train/a": 3, "train/b": 3, "val/a": 1, "val/b": 1, "test/a": 1}
    data = photographs(tmp_path / "photographs", counts)
    return live(tmp_path, "transfer/scratch", data=str(data), epochs="1", warmup_epochs="0")


def whole_labels_of_a_batch(tmp_path: Path) -> TrialFolder:
    (tmp_path / "whole.py").write_text(WHOLE_LABELS)
    return live(tmp_path, "toy/short", augmentation="whole", files=[tmp_path / "whole.py"])


def mixed_labels_of_a_batch(tmp_path: Path) -> TrialFolder:
    return live(tmp_path, "mixing/both", epochs="1", warmup_epochs="0")


def neighbours(tmp_path: Path) -> TrialFolder:
    return live(tmp_path, "knn/k5")


def episodes(tmp_path: Path) -> TrialFolder:
    """None of which is possible on the classes that were held out: there are too few."""
    few = {"n_way": "2", "episodes_per_epoch": "2", "eval_way": "3", "held_out": "0.5"}
    return live(tmp_path, "prototypical/held-out", epochs="1", warmup_epochs="0", **few)


def all_validation_images_right(tmp_path: Path) -> TrialFolder:
    return live(tmp_path, "knn/k5", **{"data.noise": "1"})


def few_shots(tmp_path: Path) -> TrialFolder:
    return live(tmp_path, "toy/short", shots=1)


def under_stress(tmp_path: Path) -> TrialFolder:
    folder = live(tmp_path, "toy/short")
    stress_trial(folder, lambda event: None)
    return folder


def searched(tmp_path: Path) -> TrialFolder:
    item = planned(tmp_path, "toy/short")
    trial = replace(item.trial, protocol=Protocol(report="none"))
    folder = Store(tmp_path / "runs").of_searches().prepare(trial, replace(item.run, threads=1, command=[]))
    run_trial(folder, lambda event: None)
    return folder


#: What each of them leaves out of its result, or has empty there.
CORNERS: dict[Callable[[Path], TrialFolder], dict[str, object]] = {
    one_test_image_of_each_class: {"retrieval": None},
    one_test_image: {"retrieval": None},
    whole_labels_of_a_batch: {"mixed": {}},
    mixed_labels_of_a_batch: {},
    neighbours: {},
    episodes: {},
    all_validation_images_right: {"temperature": None},
    few_shots: {},
    under_stress: {},
    searched: {"test": None, "temperature": None},
}


def unnamed(value: Any, form: Form, name: str = "") -> Iterator[str]:
    """What stands in a value and is named by no schema."""
    if isinstance(form, OrNull):
        yield from unnamed(value, form.form, name)
    elif isinstance(form, Each):
        for item in value or ():
            yield from unnamed(item, form.form, f"{name}[]")
    elif isinstance(form, ByName):
        for item in (value or {}).values():
            yield from unnamed(item, form.form, f"{name}.*")
    elif isinstance(form, Fields):
        known = {key.removesuffix("?"): inner for key, inner in form.fields.items()}
        for key, item in (value or {}).items():
            if key not in known:
                yield f"{name}.{key}"
            else:
                yield from unnamed(item, known[key], f"{name}.{key}")


@pytest.mark.parametrize("corner", CORNERS, ids=lambda corner: corner.__name__)
def test_what_is_measured_can_be_read_and_is_in_the_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], corner: Callable[[Path], TrialFolder]
) -> None:
    folder = corner(tmp_path)
    folder.check()
    result = folder.any_result().json()
    assert {name: result.get(name) for name in CORNERS[corner]} == CORNERS[corner]
    if corner is episodes:
        assert result["episodic"].keys() == {"test"}
    records = [folder.config(), folder.run(), folder.any_result(), *folder.history()]
    if not folder.config().searched:
        records.append(folder.environment())
    for record in records:
        assert not list(unnamed(record.json(), form_of(type(record))))
    show(folder.id, folder.path.parent, "text")
    if not folder.config().searched:
        runs = folder.path.parent
        assert print_leaderboard(runs, "text", trials=False) == 0
        assert report(runs, tmp_path / "report.html") == 0
        assert len(load_results(runs)) == 1
        assert folder.id in capsys.readouterr().out or folder.id in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(("count", "pairs"), [(8, True), (3, False)])
def test_three_classes_of_a_few_photographs_end_in_a_store_that_every_command_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], count: int, pairs: bool
) -> None:
    """With the default split, as a newcomer has them: where each class has a single test image, there is no pair of them."""
    data = photographs(tmp_path / "photographs", dict.fromkeys(("daisy", "rose", "tulip"), count))
    once = {"epochs": "1", "warmup_epochs": "0"}
    first = live(tmp_path, "transfer/scratch", data=str(data), **once)
    second = live(tmp_path, "knn/k5", data=str(data))
    runs = first.path.parent
    for folder in (first, second):
        folder.check()
        assert (folder.result().retrieval is not None) is pairs
        show(folder.id, runs, "text")
    assert print_leaderboard(runs, "text", trials=False) == 0
    assert report(runs, tmp_path / "report.html") == 0
    assert compare(["transfer/scratch", "knn/k5"], runs, "text") == 0
    images = sorted((data / "rose").iterdir())[:2]
    for folder in (first, second):
        assert predict(folder.id, images, 3, "json", runs) == 0
    assert len(load_results(runs)) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_loss_without_end_on_validation_images_is_null_in_the_history(tmp_path: Path) -> None:
    given = {"epoch": 1, "val_nll": float("nan"), "train_loss": 1.5, "images": 3}
    TrialFolder(tmp_path).write_history([Epoch.read(given)])
    (record,) = TrialFolder(tmp_path).history()
    assert record.json() == {**given, "val_nll": None}
