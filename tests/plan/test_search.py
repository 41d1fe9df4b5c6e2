"""The search for a recipe: on validation alone, reproducible, continued where it stopped, equal for every technique."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import TOY

from flowers_bench import Option, Recipe
from flowers_bench.cli import run as command
from flowers_bench.cli.options import Factors, RunOptions
from flowers_bench.contract.dataset import Dataset, Split
from flowers_bench.contract.host import discover
from flowers_bench.executors.local import Outcome
from flowers_bench.plan.planning import searchable
from flowers_bench.plan.request import Request, TrialPlan, in_order
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training import trial as trial_module
from flowers_bench.util.errors import TrialFailed, UsageError

pytest.importorskip("optuna", reason='pip install "flowers-bench[search]"')
from flowers_bench.plan.search import distributions, search

Execute = Callable[[int, Sequence[TrialPlan]], Sequence[Outcome]]


def searched(out: Path) -> Store:
    return Store(out).of_searches()


def in_this_process(store: Store) -> Execute:
    """Runs a round's trials here, and tells how they ended as the executor would."""

    def execute(number: int, planned: Sequence[TrialPlan]) -> list[Outcome]:
        return [
            in_this_process_alone(store.prepare(item.trial, replace(item.run, threads=1), item.labels))
            for item in planned
            if not store.folder(item.trial.id).finished()
        ]

    return execute


def in_this_process_alone(folder: TrialFolder) -> Outcome:
    try:
        trial_module.run_trial(folder, lambda event: None)
        return Outcome(folder, "done")
    except TrialFailed as error:
        return Outcome(folder, "failed", str(error), "TrialFailed")
    finally:
        torch.use_deterministic_algorithms(False)


def find(out: Path, budget: int, techniques: Sequence[str] = ("toy/plain", "toy/short"), execute: Execute | None = None,
         shots: int | None = None, **settings: str) -> list[TrialPlan]:  # fmt: skip
    given = {"epochs": "1", "warmup_epochs": "0", **settings}
    requests = [
        Request([name], "toy", out / "cache", seeds=2, settings=given, store=out, shots=shots, search=budget)
        for name in techniques
    ]
    searches = search(discover([TOY]), requests, [TOY], execute or in_this_process(searched(out)))
    return in_order(item for one in searches for item in one.best())


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[TrialPlan]]:
    out = tmp_path_factory.mktemp("searched")
    return out, find(out, 4)


def test_the_best_on_validation_is_run_with_every_seed(found: tuple[Path, list[TrialPlan]]) -> None:
    out, planned = found
    assert [(item.label, item.trial.seed) for item in planned] == [
        (label, seed) for seed in range(2) for label in ("toy/plain", "toy/short")
    ]
    for item in planned:
        about = item.run.search
        results = {name: searched(out).folder(name) for name in about.trials}
        top1 = {name: folder.any_result().val.top1 for name, folder in results.items()}
        assert len(top1) == 4
        assert about.val_top1 == top1[about.chosen] == max(top1.values())
        chosen = results[about.chosen].config()
        assert chosen.recipe.json() == item.trial.recipe.facts()
        assert chosen.options == item.trial.options
        assert item.trial.protocol.search == 4
        assert len({folder.config().recipe.lr for folder in results.values()}) == 4


def test_the_first_configuration_is_the_techniques_own(found: tuple[Path, list[TrialPlan]]) -> None:
    out, planned = found
    first = searched(out).folder(planned[0].run.search.trials[0]).config()
    assert first.recipe.lr == 1e-2
    assert first.recipe.weight_decay == 0.05
    assert first.options["label_smoothing"] == 0.0


def test_searched_trials_know_nothing_of_the_test_split(
    found: tuple[Path, list[TrialPlan]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forbidden:
        def __len__(self) -> int:
            return 40

        def __getitem__(self, index: int) -> Any:
            raise AssertionError("a test image was read")

    def load(*arguments: Any) -> Dataset:
        data = opened(*arguments)
        test = Split(Forbidden(), data.test.labels, data.test.keys)  # type: ignore[arg-type]
        return Dataset(**{**vars(data), "test": test})

    opened = trial_module.load_dataset
    monkeypatch.setattr(trial_module, "load_dataset", load)
    find(tmp_path, 1, ["toy/short"])
    (folder,) = searched(tmp_path).finished()
    assert "test" not in folder.any_result().json()
    with pytest.raises(UsageError, match="is of a search"):
        folder.result()
    assert not (folder.path / "predictions.parquet").exists()
    assert not (folder.path / "model.safetensors").exists()
    assert not list(Store(found[0]).trials())  # nor do leaderboards see them


def test_stopped_and_continued_it_finds_the_same(found: tuple[Path, list[TrialPlan]], tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    real = in_this_process(searched(tmp_path))

    def stops(number: int, planned: Sequence[TrialPlan]) -> Sequence[Outcome]:
        if number == 3:
            raise Killed
        return real(number, planned)

    with pytest.raises(Killed):
        find(tmp_path, 4, execute=stops)
    before = {folder.path: (folder.path / "result.json").stat().st_mtime_ns for folder in searched(tmp_path).finished()}
    assert len(before) == 4
    again = find(tmp_path, 4)
    assert [item.trial.id for item in again] == [item.trial.id for item in found[1]]
    assert again[0].run.search.trials == found[1][0].run.search.trials
    assert all((path / "result.json").stat().st_mtime_ns == time for path, time in before.items())


def test_what_is_set_is_not_searched(tmp_path: Path) -> None:
    planned = find(tmp_path, 2, ["toy/short"], lr="0.02", jitter="0.1")
    assert not {"lr", "jitter"}.intersection(planned[0].run.search.settings)
    assert "weight_decay" in planned[0].run.search.settings
    assert planned[0].trial.recipe.lr == 0.02


def test_failed_configurations_count_and_only_failures_fail(tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match="none of 2 configurations"):
        find(tmp_path, 2, ["toy/explode"])


def test_declared_bounds_fit_their_options() -> None:
    host = discover()
    tables = (host.models, host.losses, host.augmentations, host.predictors)
    parts = [entry.value for table in tables for entry in table.values()]
    declared = [(name, option) for part in parts for name, option in part.options.items() if option.search]
    assert len(declared) > 20
    for name, option in declared:
        for value in option.search:
            assert option.parse(name, value) == value
        (space,) = distributions(Recipe(epochs=0, warmup_epochs=0), {name: option}, {}).values()
        assert space._contains(space.to_internal_repr(option.default)), name


@pytest.mark.parametrize(
    ("technique", "without_effect"),
    [
        ("distillation/alone", {"temperature"}),
        ("triplet/batch-hard", {"margin"}),
        ("triplet/nearest-mean", {"margin"}),
        ("triplet/entropy", {"margin"}),
        ("prototypical/frozen", {"temperature", "jitter", "min_scale"}),
        ("knn/untrained", {"k"}),
    ],
)
def test_no_try_is_spent_on_what_has_no_effect(tmp_path: Path, technique: str, without_effect: set[str]) -> None:
    request = Request([technique], "toy", tmp_path, seeds=1, settings={})
    _, options = searchable(discover([TOY]), request)
    assert not without_effect.intersection(options)


def test_scales() -> None:
    options = {
        "wide": Option(1.0, "", search=(0.01, 1.0)),
        "narrow": Option(1.0, "", search=(0.5, 1.0)),
        "zero": Option(1.0, "", search=(0.0, 1.0)),
        "count": Option(8, "", search=(2, 32)),
        "name": Option("a", "", choices=("a", "b", "c"), search=("a", "b")),
    }
    space: Any = distributions(Recipe(weight_decay=0.0), options, {})
    assert set(space) == {"lr", *options}
    assert (space["lr"].low, space["lr"].high, space["lr"].log) == (pytest.approx(1e-4), pytest.approx(1e-2), True)
    assert [space[name].log for name in ("wide", "narrow", "zero", "count")] == [True, False, False, True]
    assert space["name"].choices == ("a", "b")


def test_few_images_have_a_search_of_their_own(tmp_path: Path) -> None:
    planned = find(tmp_path, 2, ["toy/short"], shots=3)
    assert {(item.trial.protocol.search, item.trial.protocol.shots) for item in planned} == {(2, 3)}
    for folder in searched(tmp_path).finished():
        config = folder.config()
        assert config.protocol.json() == {"train": "train", "select": "val", "report": "none", "shots": 3}
        assert config.dataset.n_train == 12
        assert folder.history()[0].images == 12


def asked(folder: Path, **changes: Any) -> RunOptions:
    common: dict[str, Any] = {
        "suite": None,
        "plugin": str(TOY),
        "factors": Factors(),
        "seeds": 1,
        "settings": [],
        "sweeps": [],
    }
    more = {"data_dir": folder, "store": str(folder / "runs"), "jobs": 1, "shard": "1/1"}
    return RunOptions.parse(**{**common, **more, **changes})


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[TrialPlan]:
    """What the command would run after its search, whose trials run in this process."""
    found: list[TrialPlan] = []

    def execute(planned: Sequence[TrialPlan], *arguments: Any) -> int:
        found.extend(planned)
        return 0

    def run_all(folders: Sequence[TrialFolder], *arguments: Any) -> list[Outcome]:
        return [in_this_process_alone(folder) for folder in folders]

    monkeypatch.setattr(command, "execute", execute)
    monkeypatch.setattr(command, "run_all", run_all)
    return found


SUITE = """\
[defaults]
data = "toy"
seeds = 1
epochs = 1
warmup_epochs = 0
[[trials]]
technique = "toy/plain"
shots = [2, 5]
search = 2
[[trials]]
technique = ["toy/short", "toy/explode"]
search = 3
[[trials]]
technique = "toy/short"
shots = 4
"""


def test_a_suite_searches_where_it_says_so(
    tmp_path: Path, executed: list[TrialPlan], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.toml").write_text(SUITE)
    suite = str(tmp_path / "mine.toml")
    assert command.run(asked(tmp_path, suite=suite), "text", 60) == 1, "of toy/explode nothing could be trained"
    found = [(item.label, item.trial.protocol.search, item.trial.protocol.shots) for item in executed]
    assert found == [("toy/plain", 2, 2), ("toy/plain", 2, 5), ("toy/short", 3, None), ("toy/short", 0, 4)]
    said = capsys.readouterr().err
    assert "search: configuration 3 of 3" in said
    for words in ("toy/plain shots=2: lr=", "toy/plain shots=5: lr=", "toy/explode: none of 3 configurations"):
        assert words in said
    executed.clear()
    assert command.run(asked(tmp_path, suite=suite, search=0, shard="2/3"), "text", 60) == 0
    assert [(item.label, item.trial.protocol.search) for item in executed] == [("toy/plain", 0), ("toy/short", 0)]


def test_each_value_of_a_sweep_and_of_shots_has_its_search(tmp_path: Path, executed: list[TrialPlan]) -> None:
    what = {"factors": Factors("toy"), "settings": ["epochs=1", "warmup_epochs=0"], "search": 2}
    assert command.run(asked(tmp_path, **what, shots="2,5", sweeps=["dropout=0.1,0.5"]), "text", 60) == 0
    found = {(item.label, item.trial.protocol.shots, item.trial.options["dropout"]) for item in executed}
    assert found == {("toy/plain", shots, dropout) for shots in (2, 5) for dropout in (0.1, 0.5)}
    assert {item.trial.protocol.search for item in executed} == {2}


def test_a_search_is_not_divided(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SUITE)
    for change in ({"search": 2}, {"suite": str(tmp_path / "mine.toml")}, {"suite": "study-small", "search": 2}):
        with pytest.raises(UsageError, match=r"--shard cannot divide.*--search 0"):
            command.run(asked(tmp_path, **change, shard="1/2"), "text", 60)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_the_command(flowers_bench: Callable[..., Any], tmp_path: Path) -> None:
    command = ["--plugin", str(TOY), "--data", "toy", "--search", "3", "--seeds", "2", "--jobs", "2"]
    first = flowers_bench(*command)
    assert first.returncode == 0, first.stderr
    assert "search: configuration 3 of 3" in first.stderr
    assert "best of 3 configurations" in first.stderr
    assert "recipes searched: best of 3 configurations on validation" in first.stdout
    assert " search " in first.stdout  # in the cost column
    assert len(searched(tmp_path / "runs").finished()) == 6
    again = flowers_bench(*command)
    assert again.stdout == first.stdout
    assert "search: configuration" not in again.stderr
    untuned = flowers_bench("--plugin", f"{TOY},toy/plain", "--data", "toy", "--seeds", "2")
    assert untuned.returncode == 0
    (result,) = {
        f.result().cost.search_seconds for f in Store(tmp_path / "runs").finished() if f.labels()[0].variant == "short"
    }
    assert result > 0
    board = flowers_bench("leaderboard").stdout
    assert board.count("toy/plain") >= 2  # a table of its own
    refused = flowers_bench(
        "compare",
        *[
            f.id
            for f in Store(tmp_path / "runs").finished()
            if f.labels()[0].variant == "plain" and f.config().seed == 0
        ],
    )
    assert refused.returncode == 2
    assert "other search budget" in refused.stderr
