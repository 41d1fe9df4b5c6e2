"""A warm-up that nobody sets follows the epochs that somebody does; one that is set is taken as it is, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowers_bench import Recipe, UsageError
from flowers_bench.contract.host import Host, discover
from flowers_bench.contract.optimizer import SCHEDULES
from flowers_bench.plan.planning import searchable
from flowers_bench.plan.request import Request
from flowers_bench.plan.suites import of_cell, swept
from flowers_bench.training.optimizer import schedule_factor


@pytest.fixture(scope="module")
def host() -> Host:
    return discover()


def recipe_of(host: Host, technique: str, data: str = "flowers102", **settings: str) -> Recipe:
    request = Request([technique], data, Path("unused"), seeds=1, settings=settings, search=1)
    return searchable(host, request)[0]


@pytest.mark.parametrize(
    ("technique", "epochs", "warmup"),
    [
        ("prompt-tuning/deep", 100, 10),
        ("prompt-tuning/deep", 10, 1),
        ("prompt-tuning/deep", 50, 5),
        ("prompt-tuning/deep", 300, 10),
        ("transfer/scratch", 60, 3),
        ("transfer/scratch", 20, 1),
        ("transfer/scratch", 2, 1),
        ("transfer/scratch", 1, 0),
        ("transfer/scratch", 0, 0),
        ("transfer/k3", 8, 1),
        ("knn/k5", 5, 0),
    ],
)
def test_it_follows_the_epochs(host: Host, technique: str, epochs: int, warmup: int) -> None:
    recipe = recipe_of(host, technique, epochs=str(epochs))
    assert (recipe.epochs, recipe.warmup_epochs) == (epochs, warmup)


def test_it_follows_them_on_data_that_cap_them_too(host: Host) -> None:
    assert recipe_of(host, "transfer/scratch", "petals").warmup_epochs == 1
    assert recipe_of(host, "transfer/scratch", "petals", epochs="1").warmup_epochs == 0
    assert recipe_of(host, "prompt-tuning/deep", "petals", epochs="40").warmup_epochs == 4


def test_in_a_suite_and_in_a_sweep(host: Host) -> None:
    request = Request(["transfer/scratch"], "flowers102", Path("unused"), seeds=1)
    cell = of_cell(host, request, {"technique": "transfer/scratch", "epochs": "20"})
    assert searchable(host, cell)[0].warmup_epochs == 1
    found = [searchable(host, one)[0].warmup_epochs for one in swept(host, request, {"epochs": ["1", "20", "60"]})]
    assert found == [0, 1, 3]


def test_one_that_is_set_is_taken_as_it_is_or_refused(host: Host) -> None:
    assert recipe_of(host, "transfer/scratch", epochs="10", warmup_epochs="10").warmup_epochs == 10
    assert recipe_of(host, "transfer/scratch", warmup_epochs="7").warmup_epochs == 7
    with pytest.raises(UsageError, match=r"warmup_epochs=3 must be between 0 and epochs \(1\)"):
        recipe_of(host, "transfer/scratch", epochs="1", warmup_epochs="3")
    with pytest.raises(UsageError, match="epochs=-1 must be between"):
        recipe_of(host, "transfer/scratch", epochs="-1")


@given(st.integers(1, 200), st.data())
def test_it_ends_before_the_training_does(own: int, data: st.DataObject) -> None:
    recipe = Recipe(epochs=own, warmup_epochs=data.draw(st.integers(0, own)))
    epochs = data.draw(st.integers(1, 400))
    warmup = recipe.warmup_for(epochs)
    assert warmup <= recipe.warmup_epochs
    assert warmup < epochs or epochs >= own
    assert (warmup > 0) == (recipe.warmup_epochs > 0) or epochs == 1
    assert recipe.warmup_for(own) == recipe.warmup_epochs, "ids of trials with the default epochs stay"
    shorter = Recipe(epochs=epochs, warmup_epochs=warmup)
    assert schedule_factor(shorter, warmup, SCHEDULES[0]) == 1.0
