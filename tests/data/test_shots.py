"""Fewer training images: nested, the same for every technique, so many of each class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lives import live
from toy import load

from flowers_bench.contract.dataset import DataRequest
from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.data.shots import few_shot
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.identity import Trial, trial_from_config
from flowers_bench.util.errors import UsageError

TOY = Path(__file__).parents[1] / "toy.py"
DATASET = load(DataRequest(Path("nowhere"), None, 16))


def trials(tmp_path: Path, shots: int | None, *names: str) -> list[Trial]:
    request = Request(names or ["toy/plain"], "toy", tmp_path / "cache", seeds=1, shots=shots)
    return [item.trial for item in plan(discover([TOY]), request, [TOY])]


def test_subsets_are_nested_and_stratified_and_of_the_seed() -> None:
    previous: set[str] = set()
    for shots in (1, 2, 5, 12):
        train = few_shot(DATASET, shots, seed=3).train
        assert np.bincount(train.labels).tolist() == [shots] * 4
        assert previous < set(train.keys)
        previous = set(train.keys)
        place = DATASET.train.keys.index(train.keys[-1])
        assert np.array_equal(train.images[len(train) - 1], DATASET.train.images[place])
    assert few_shot(DATASET, 2, 0).train.keys != few_shot(DATASET, 2, 1).train.keys
    assert few_shot(DATASET, None, 0) is DATASET
    assert few_shot(DATASET, 1, 0).test is DATASET.test


def test_more_than_a_class_has_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"13 shots: class 'class 0' of toy has 12 training images"):
        trials(tmp_path, 13)


def test_shots_are_part_of_the_trial(tmp_path: Path) -> None:
    (whole,), (few,) = trials(tmp_path, None), trials(tmp_path, 5)
    assert whole.id != few.id
    assert "shots" not in whole.facts()["protocol"], "older trials keep their ids"
    assert few.facts()["protocol"]["shots"] == 5
    assert few.dataset["n_train"] == 20
    assert trial_from_config({**few.facts(), "id": few.id}) == few


def test_a_trial_sees_its_images_alone(tmp_path: Path) -> None:
    folder = live(tmp_path, "toy/short", shots=2)
    assert folder.history()[0].images == 8
    trial = folder.trial()
    dataset = load_dataset(discover([TOY]), trial, DataPlace.of(folder.run()))
    assert list(dataset.train.keys) == list(few_shot(DATASET, 2, 0).train.keys)
    assert folder.result().test.n == 40
