"""What a dataset brings along: settings that suit it, a floor beside a bare technique; and how many trials run at once."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from flowers_bench.contract.host import Host, discover
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request, TrialPlan
from flowers_bench.plan.threads import side_by_side

SMALL = {"data.species": "3", "data.train": "5", "data.val": "2", "data.test": "2"}


@pytest.fixture(scope="module")
def host() -> Host:
    return discover(only_built_in=True)


def planned(host: Host, tmp_path: Path, name: str, **changes: object) -> list[TrialPlan]:
    settings = {**SMALL, **changes.pop("settings", {})}  # type: ignore[dict-item]
    request = Request([name], "petals", tmp_path, 1, settings=settings, store=tmp_path / "runs", floor=True)
    return plan(host, replace(request, **changes), [])  # type: ignore[arg-type]


def names(found: list[TrialPlan]) -> list[str]:
    return [item.label for item in found]


def test_a_bare_technique_has_its_twin_and_the_floor_beside_it(host: Host, tmp_path: Path) -> None:
    found = planned(host, tmp_path, "deformable")
    assert names(found) == ["deformable/stages2-4", "deformable/plain-pretrained", "knn/untrained"]
    assert [item.trial.weights["name"] for item in found] == [
        "petals/test_resnet.deformable",
        "petals/test_resnet",
        "none",
    ]
    assert [item.trains for item in found] == [True, True, False]


@pytest.mark.parametrize(
    ("changes", "lr"),
    [
        ({}, 5 * 5e-4),
        ({"settings": {"lr": "1e-3"}}, 1e-3),
        ({"recipe": {"lr": 1e-4}}, 1e-4),
        ({"recipe": {"batch_size": 16}}, 5 * 5e-4),
        ({"backbone": "test_vit", "weights": "none"}, 5e-4),
    ],
)
def test_a_rate_of_a_far_larger_network_is_raised_unless_it_was_chosen(
    host: Host, tmp_path: Path, changes: dict[str, object], lr: float
) -> None:
    (item,) = planned(host, tmp_path, "lora/qv", **changes)
    assert item.trial.recipe.lr == pytest.approx(lr)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("deformable/stage3", {}),
        ("knn/untrained", {}),
        ("transfer", {"loss": "cross-entropy"}),
        ("transfer", {"augmentation": "none"}),
        ("transfer", {"predictor": "classifier"}),
        ("transfer", {"weights": "none"}),
        ("transfer", {"settings": {"freeze": "1"}}),
        ("transfer", {"floor": False}),
    ],
)
def test_the_floor_comes_only_where_it_can_follow(
    host: Host, tmp_path: Path, name: str, changes: dict[str, object]
) -> None:
    found = names(planned(host, tmp_path, name, **changes))
    assert [label for label in found if label.startswith("knn/")] == ["knn/untrained"] * (name == "knn/untrained")


def test_a_recipe_or_data_setting_keeps_the_floor(host: Host, tmp_path: Path) -> None:
    assert "knn/untrained" in names(planned(host, tmp_path, "transfer", settings={"epochs": "2"}))


def test_settings_of_the_data_give_way_to_what_is_said(host: Host, tmp_path: Path) -> None:
    (own,) = planned(host, tmp_path, "transfer/scratch")
    (said,) = planned(host, tmp_path, "transfer/scratch", settings={"jitter": "0.2"})
    assert (own.trial.options["min_scale"], own.trial.options["jitter"]) == (1.0, 0.0)
    assert (said.trial.options["min_scale"], said.trial.options["jitter"]) == (1.0, 0.2)


def test_small_networks_run_side_by_side_with_a_share_of_the_threads(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(2)))
    found = planned(host, tmp_path, "deformable")
    jobs, shared = side_by_side(found)
    assert jobs == 2
    assert {item.run.threads for item in shared} == {1}
    assert side_by_side(found[:1])[0] == 1


def test_a_large_network_runs_alone(host: Host, tmp_path: Path) -> None:
    found = planned(host, tmp_path, "transfer/scratch", backbone="resnet18")
    jobs, same = side_by_side(found)
    assert jobs == 1
    assert {item.run.threads for item in same} == {found[0].run.threads}


def test_bare_techniques_in_a_list_bring_their_twins_too(host: Host, tmp_path: Path) -> None:
    labels = [item.label for item in plan(host, Request(["transfer", "knn/k1"], "petals", tmp_path, 1), [])]
    assert labels == ["transfer/k3", "transfer/k0", "knn/k1"]
