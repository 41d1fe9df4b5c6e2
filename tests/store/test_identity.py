"""What a trial's id is a hash of, and what it is not."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lives import planned
from stored import outcomes, store_trial

from flowers_bench import UsageError, load_results
from flowers_bench.contract.host import discover
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request, TrialPlan
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import Trial, config_id
from flowers_bench.util.files import write_json

#: Two trials by commit 9bcd100, whole but for their weights and the places on the machine that they ran on.
OLD = Path(__file__).parent / "written_by_9bcd100"
#: One that reads every option of a training that is like no other's default.
OTHERS = {"model": "x", "loss": "x", "augmentation": "x", "sampler": "x", "predictor": "x", "backbone": "x", "seed": 7}


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    return store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.7), options={"k": 1}).trial()


@pytest.mark.parametrize(
    "changes",
    [
        {"data_options": {"val": 0.5}},
        {"weights": {"name": "other.pt", "sha256": None}},
        *({"dataset": {name: "other"}} for name in ("name", "resolution", "notes", "grey_levels")),
    ],
    ids=str,
)
def test_what_only_describes_is_not_in_it(trial: Trial, changes: dict[str, Any]) -> None:
    given = {**changes, "dataset": {**trial.dataset, **changes.get("dataset", {})}}
    assert replace(trial, **given).id == trial.id


@pytest.mark.parametrize(
    "changes",
    [
        *({name: value} for name, value in OTHERS.items()),
        {"options": {"k": 2}},
        {"options": {"k": 1, "more": 0}},
        {"weights": {"name": "none", "sha256": "0" * 64}},
        {"code": {"mine": "sha256:" + "0" * 64}},
        {"code": {"model lora": "revision 2"}},
        *({"dataset": {name: "other"}} for name in ("fingerprint", "split_checksum", "classes", "n_train", "options")),
    ],
    ids=str,
)
def test_what_decides_is_in_it(trial: Trial, changes: dict[str, Any]) -> None:
    given = {**changes, "dataset": {**trial.dataset, **changes.get("dataset", {})}}
    assert replace(trial, **given).id != trial.id


def test_every_recipe_field_is_in_it_where_anything_is_trained(trial: Trial) -> None:
    words = {"optimizer": "sgd", "schedule": "constant", "precision": "bfloat16", "lr_scale": {"*": 0.5}}
    counts = {"epochs": 5, "warmup_epochs": 2, "batch_size": 7, "image_size": 99, "patience": 3}
    others = {**dict.fromkeys(trial.recipe.facts(), 0.25), **words, **counts}
    recipes = [trial.recipe.changed(**{name: value}) for name, value in others.items()]
    assert len({trial.id, *(replace(trial, recipe=recipe).id for recipe in recipes)}) == 1 + len(recipes)


def test_of_a_recipe_that_trains_nothing_the_image_size_alone_is_in_it(trial: Trial) -> None:
    nothing = replace(trial, recipe=trial.recipe.changed(epochs=0, warmup_epochs=0))
    assert replace(nothing, recipe=nothing.recipe.changed(lr=1.0, batch_size=7)).id == nothing.id
    assert replace(nothing, recipe=nothing.recipe.changed(image_size=99)).id != nothing.id


def test_another_release_or_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new version of flowers-bench trains nothing again; a part whose numbers change says so by its revision."""
    host = discover(only_built_in=True)
    data = {f"data.{name}": "2" for name in ("train", "val", "test")} | {"data.species": "3", "image_size": "16"}
    request = Request(["lora/qv", "transfer/k0"], "petals", tmp_path, 1, "test_vit", "none", settings=data)

    def ids() -> list[str]:
        return [item.trial.id for item in plan(host, request, [])]

    before = ids()
    for status in host.plugins.values():
        monkeypatch.setattr(status, "code", "flowers-bench 99.0")
        monkeypatch.setattr(status, "version", "99.0")
    assert ids() == before
    part = host.models["classifier"]
    monkeypatch.setitem(host.models, "classifier", replace(part, value=replace(part.value, revision=2)))
    assert [one == other for one, other in zip(ids(), before, strict=True)] == [True, False]


def test_a_plugin_file_is_in_it_where_its_parts_are_used(tmp_path: Path) -> None:
    first = planned(tmp_path, "toy/plain").trial
    other = tmp_path / "toy.py"
    other.write_text((Path(__file__).parents[1] / "toy.py").read_text() + "\n# changed\n")
    request = Request(["toy/plain"], "toy", tmp_path, 1, settings={"image_size": "16"})
    (second,) = plan(discover([other]), request, [other])
    assert second.trial.options == first.options
    assert second.trial.id != first.id
    assert set(first.code) == {"toy", "augmentation standard"}


def test_options_of_a_dataset_that_is_not_built_in_are_in_it(tmp_path: Path) -> None:
    """Its fingerprint may not cover them, as that of the toy does not."""
    plain, noisy = (planned(tmp_path, "toy/plain", **{"data.noise": noise}).trial for noise in ("60", "5"))
    assert plain.dataset["fingerprint"] == noisy.dataset["fingerprint"]
    assert plain.id != noisy.id


def test_techniques_that_mean_one_training_are_one_trial(tmp_path: Path) -> None:
    plans = [same(tmp_path, label) for label in ("transfer/k0", "linear-probe/full")]
    assert plans[0].trial == plans[1].trial
    assert [item.labels[0].text for item in plans] == ["transfer/k0", "linear-probe/full"]
    assert [item.labels[0].baseline for item in plans] == [None, None]


def same(tmp_path: Path, label: str) -> TrialPlan:
    return planned(tmp_path, label, epochs="1", batch_size="8")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return shutil.copytree(OLD, tmp_path / "old")


def test_trials_of_schema_1_are_read_by_their_own_rule(old: Path) -> None:
    folders = Store(old).finished()
    assert [folder.id for folder in folders] == ["7f7870d0976d181c", "b9eeae161c77aeae"]
    for folder in folders:
        folder.check()
        assert config_id(folder.config().json()) == folder.id
        assert folder.trial().id != folder.id, "this version would train it anew"
    assert [(label.text, label.baseline) for folder in folders for label in folder.labels()] == [
        ("lora/frozen", None),
        ("lora/qv", "lora/frozen"),
    ]


def test_trials_of_schema_1_are_reported_and_compared(old: Path) -> None:
    (group,) = Leaderboard.of(Store(old).finished()).groups
    assert {row.name for row in group.rows} == {"lora/frozen", "lora/qv"}
    assert [(pair.first, pair.second) for pair in group.differences] == [("lora/qv", "lora/frozen")]
    table = load_results(old)
    assert table[["technique", "variant"]].values.tolist() == [["lora", "frozen"], ["lora", "qv"]]


@pytest.mark.parametrize("name", ["variant", "technique"])
def test_a_name_of_schema_1_that_was_edited_is_damage(old: Path, name: str) -> None:
    folder = Store(old).folder("b9eeae161c77aeae")
    config = json.loads((folder.path / "config.json").read_text())
    write_json(folder.path / "config.json", {**config, name: "frozen"})
    with pytest.raises(UsageError, match=r"config\.json is not of the trial that it describes"):
        folder.check()
    write_json(folder.path / "config.json", {key: value for key, value in config.items() if key != name})
    with pytest.raises(UsageError, match=f"it has no {name}"):
        folder.check()
