"""Suites and sweeps: what they mean, and that their mistakes are refused with the line they stand on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lives import TOY

from flowers_bench.contract.host import Host, discover
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request, in_order
from flowers_bench.plan.suites import (
    BUILT_IN,
    PlannedTable,
    distinct_requests,
    overridden,
    plan_suite,
    read_suite,
    swept,
)
from flowers_bench.store.identity import Label
from flowers_bench.util.errors import UsageError

SMALL = """\
[defaults]
data = "toy"
backbone = "test_resnet"
weights = "none"
image_size = 16
"""


@pytest.fixture(scope="module")
def host() -> Host:
    return discover([TOY])


def planned(host: Host, folder: Path, text: str) -> list[PlannedTable]:
    path = folder / "mine.toml"
    path.write_text(text)
    return plan_suite(host, read_suite(str(path)), Request([], "toy", folder / "cache", 1), [TOY])


def test_a_table_means_every_combination(host: Host, tmp_path: Path) -> None:
    text = SMALL + '[[trials]]\ntechnique = ["transfer/k0", "mixing"]\nlr = [1e-3, 1e-2]\nfreeze = [0, 1]\nseeds = 2\n'
    (table,) = planned(host, tmp_path, text)
    found = [(t.label, t.trial.recipe.lr, t.trial.options["freeze"], t.trial.seed) for t in table.planned]
    labels = ("transfer/k0", "mixing/random")  # a bare name is the default variant, without its baseline
    expected = [(name, lr, k, seed) for name in labels for lr in (1e-3, 1e-2) for k in (0, 1) for seed in (0, 1)]
    assert sorted(found) == sorted(expected)
    assert len({item.trial.id for item in table.planned}) == len(expected)


@pytest.mark.parametrize(
    ("table", "line", "words"),
    [
        ('technique = "transfer/k0"\nfreez = 1\n', 8, ["unknown key 'freez'", "Did you mean 'freeze'?", "lr"]),
        ('technique = "transfr"\n', 7, ["unknown technique", "Did you mean 'transfer'?"]),
        ('technique = "transfer/k9"\n', 7, ["variant of transfer", "k0"]),
        ('lr = 1e-3\ntechnique = "transfer/k0"\nmargin = 0.2\n', 9, ["unknown setting 'margin'", "freeze"]),
        ('technique = "transfer/k0"\nlr = [1e-3, "fast"]\n', 8, ["a finite number"]),
        ('technique = "transfer/k0"\nepochs = -1\n', 8, ["between 0 and"]),
        ('technique = "transfer/k0"\nbackbone = "resnet19"\n', 8, ["resnet19"]),
        ('technique = "triplet"\naugmentation = "mixup"\n', 8, ["mixup", "hard_targets"]),
        ('technique = "prompt-tuning"\n', 7, ["test_resnet", "vision transformer"]),
        ('technique = "deformable"\nbackbone = "test_vit"\n', 8, ["test_vit", "no 3x3 convolution"]),
        (
            'technique = "prototypical"\nn_way = 3\nk_shot = 20\n',
            8,
            ["20 support", "the smallest with 12 images", "k_shot"],
        ),
        ('technique = "prototypical"\nn_way = 3\neval_way = 3\neval_shot = 20\n', 9, ["3-way 20-shot", "test split"]),
        ('technique = "triplet"\nimages_per_class = 8\n', 8, ["need 8 classes", "the data has 4", "batch_size"]),
        ('technique = "transfer/k0"\nseeds = 0\n', 8, ["from 1 to 1000"]),
        ('technique = "transfer/k0"\nlr = []\n', 8, ["a list of values"]),
        ('technique = "transfer/k0"\nfreeze = [0, 1]\nreported = {row = "a", top1 = 1}\n', 9, ["one configuration"]),
        ('technique = "transfer/k0"\nreported = 88\n', 8, ["top1 = "]),
        ('technique = "transfer/k0"\nk = 3\n', 8, ["unknown setting 'k'", "freeze"]),  # a predictor's option
        ("lr = 1e-3\n", 6, ["no technique"]),
        ('technique = "transfer/k0"\nshots = [1, 0]\n', 8, ["shots = 0", "from 1"]),
        ('technique = "transfer/k0"\nshots = "5"\n', 8, ["shots = '5'"]),
        ('technique = "transfer/k0"\nlr = 1e-3\nshots = [5, 13]\n', 9, ["13 shots: class 'class 0'", "at most 12"]),
        ('technique = "transfer/k0"\nsearch = -1\n', 8, ["search = -1", "from 0 to 10000"]),
        ('technique = "transfer/k0"\nsearch = [1, 2]\n', 8, ["search = [1, 2]"]),
        ('technique = "transfer/k0"\nname = "mine"\n', 8, ["name = 'mine'", "NAME/VARIANT"]),
        ('technique = "transfer/k0"\nname = ["a/b", "c/d"]\n', 8, ["expected a text"]),
        ('technique = "transfer/k0"\nname = "transfer/k3"\n', 8, ["a variant that transfer registers"]),
        ('technique = "transfer/k0"\nfreeze = 1\nname = "mine/{freez}"\n', 9, ["key in name 'freez'", "'freeze'"]),
        ('technique = "transfer/k0"\nbaseline = "mine/b"\n', 8, ["baseline goes with name"]),
        ('technique = "transfer/k0"\nrecipe = "their"\n', 8, ["unknown recipe 'their'"]),
    ],
)
def test_mistakes_are_refused_with_their_line(
    host: Host, tmp_path: Path, table: str, line: int, words: list[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        planned(host, tmp_path, f"{SMALL}[[trials]]\n{table}")
    assert f"line {line}: " in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_what_is_no_suite_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown suite 'studdy'.*Did you mean 'study'"):
        read_suite("studdy")
    with pytest.raises(UsageError, match="no such file"):
        read_suite(str(tmp_path / "none.toml"))
    path = tmp_path / "mine.toml"
    for text, problem in (
        ("a = \n", "line 1"),
        ('summary = "x"\ndata = "toy"\n[[trials]]\n', "line 2: unknown key 'data'"),
        ("trials = []\n", "line 1: a suite names"),
        ("a = " + "[" * 100_000, "recursion"),
        ("a = " + "9" * 5000, "digits"),
        ('trials = [{technique = "knn"}]\n', "header line"),
    ):
        path.write_text(text)
        with pytest.raises(UsageError, match=problem):
            read_suite(str(path))


def test_the_command_line_replaces_what_the_suite_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[[trials]]\ntechnique = "knn"\ndata = "petals"\n"data.species" = 20\nlr = [1, 2]\nseeds = 3\n')
    (table,) = overridden(read_suite(str(path)), {"data": ["flowers102"], "lr": ["3"]}, 1).tables
    assert dict(table.values) == {"technique": ["knn"], "data": ["flowers102"], "lr": ["3"]}
    assert (table.seeds, table.search) == (1, 0)


def test_shots_and_search_of_the_command_line_replace_the_suites(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    reported = 'reported = {row = "5 shots", top1 = 50}\n'
    path.write_text(f'[defaults]\nshots = 5\nsearch = 8\n[[trials]]\ntechnique = "knn"\n{reported}')
    suite = read_suite(str(path))
    (own,) = overridden(suite, {}).tables
    assert (own.values["shots"], own.search) == ([5], 8)
    assert own.reported
    (other,) = overridden(suite, {}, shots=[1, 2], search=0).tables
    assert (other.values["shots"], other.search) == ([1, 2], 0)
    assert other.reported is None, "what was reported was trained on other images"


def test_shots_are_a_factor_like_any_other(host: Host, tmp_path: Path) -> None:
    text = SMALL + '[[trials]]\ntechnique = "transfer/k0"\nshots = [2, 5]\nlr = [1e-3, 1e-2]\nseeds = 1\nsearch = 3\n'
    (table,) = planned(host, tmp_path, text)
    found = [(item.trial.dataset["n_train"], item.trial.protocol.shots, item.trial.recipe.lr) for item in table.planned]
    assert found == [(4 * shots, shots, lr) for shots in (2, 5) for lr in (1e-3, 1e-2)]
    assert [(one.shots, one.search) for one in table.requests] == [(2, 3), (2, 3), (5, 3), (5, 3)]
    names = distinct_requests(table.requests)
    assert names[1] == "transfer/k0 shots=2 lr=0.01", "what all have in common is not said"
    assert len(set(names)) == 4


def test_a_sweep_runs_each_value(host: Host, tmp_path: Path) -> None:
    request = Request(
        ["triplet"], "toy", tmp_path, 1, "test_resnet", "none", settings={"image_size": "16", "batch_size": "8"}
    )
    requests = swept(host, request, {"margin": ["0.1", "0.3"], "lr": ["1e-3", "1e-2"]})
    found = [item for one in requests for item in plan(host, one, [TOY])]
    values = [(item.trial.options["margin"], item.trial.recipe.lr) for item in found]
    assert values == [(0.1, 1e-3), (0.1, 1e-2), (0.3, 1e-3), (0.3, 1e-2)]


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.toml")))
def test_built_in_suites_name_what_exists(host: Host, name: str) -> None:
    suite = read_suite(name)
    reported = [table.reported for table in suite.tables if table.reported]
    of_study = 15 if name.startswith("study") else 0  # every figure of the study's section 3
    assert len(reported) == len({entry.row for entry in reported}) == of_study
    for table in suite.tables:
        for cell in table.cells():
            base, _, variant = cell["technique"].partition("/")
            host.techniques[base].value.variant(variant)


@pytest.mark.slow
def test_run_a_suite(flowers_bench: Callable[..., Any], tmp_path: Path) -> None:
    text = SMALL + 'epochs = 1\nwarmup_epochs = 0\nseeds = 1\n[[trials]]\ntechnique = "transfer/k0"\n'
    (tmp_path / "mine.toml").write_text(f'source = "a report"\n{text}reported = {{row = "their row", top1 = 88.16}}\n')
    first = flowers_bench("run", "mine.toml", "--plugin", str(TOY), "--format", "md")
    assert first.returncode == 0, first.stderr
    line = next(line for line in first.stdout.splitlines() if line.startswith("| their row"))
    assert line.startswith("| their row | transfer/k0 | toy | test_resnet | none | 1 |")
    assert line.endswith("| 88.16 |")
    assert "reported: a report" in first.stdout
    again = flowers_bench("run", "mine.toml", "--plugin", str(TOY), "--format", "md")
    assert "1 of 1 trial is finished already" in again.stderr
    assert next(line for line in again.stdout.splitlines() if line.startswith("| their row")) == line


def test_a_suite_whose_figures_lead_back_to_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'figures = "{path}"\n[[trials]]\ntechnique = "knn"\n')
    with pytest.raises(UsageError, match=r"mine\.toml, line 1: .* leads back to this suite"):
        read_suite(str(path))


RECIPES = """
[recipes.theirs]
optimizer = "sgd"
lr = 0.5
warmup_epochs = 0
patience = 7
"""


def test_a_row_has_a_name_a_baseline_and_a_recipe_of_its_own(host: Host, tmp_path: Path) -> None:
    text = SMALL + RECIPES + '[[trials]]\nname = "mine/k{freeze}"\nbaseline = "mine/k0"\ntechnique = "transfer/k3"\n'
    named, plain = planned(
        host, tmp_path, f'{text}recipe = "theirs"\nfreeze = [0, 2]\nseeds = 1\n[[trials]]\ntechnique = "transfer/k3"\n'
    )
    found = [(item.labels, item.trial.options["freeze"]) for item in named.planned]
    assert found == [((Label("mine", f"k{freeze}", "mine/k0"),), freeze) for freeze in (0, 2)]
    recipe = named.planned[0].trial.recipe
    assert (recipe.optimizer, recipe.lr, recipe.patience) == ("sgd", 0.5, 7)
    assert recipe.image_size == 16, "the data's and the row's own settings come after it"
    assert plain.planned[0].labels == (Label("transfer", "k3", "transfer/k0"),)
    assert plain.planned[0].trial.recipe.optimizer == "adamw"


def test_settings_of_the_command_line_come_after_a_recipe(host: Host, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'{SMALL}{RECIPES}[[trials]]\ntechnique = "transfer/k0"\nrecipe = "theirs"\nseeds = 1\n')
    suite = overridden(read_suite(str(path)), {"lr": ["0.25"]})
    (table,) = plan_suite(host, suite, Request([], "toy", tmp_path, 1, settings={}), [TOY])
    assert (table.planned[0].trial.recipe.lr, table.planned[0].trial.recipe.patience) == (0.25, 7)


def test_recipes_of_another_suite(tmp_path: Path) -> None:
    (tmp_path / "one.toml").write_text(RECIPES + '[[trials]]\ntechnique = "knn"\n')
    path = tmp_path / "two.toml"
    path.write_text(f'recipes = "{tmp_path / "one.toml"}"\n[[trials]]\ntechnique = "knn"\nrecipe = "theirs"\n')
    assert read_suite(str(path)).tables[0].recipe["lr"] == 0.5
    path.write_text(f'recipes = "{path}"\n[[trials]]\ntechnique = "knn"\n')
    with pytest.raises(UsageError, match=r"line 1: recipes = .* leads back to this suite"):
        read_suite(str(path))
    path.write_text('[recipes.bad]\nlearning_rate = 1\n[[trials]]\ntechnique = "knn"\n')
    with pytest.raises(UsageError, match="line 1: recipe bad: unknown recipe field 'learning_rate'"):
        read_suite(str(path))


ONE_NETWORK = {
    "transfer/study-scratch",
    "triplet/study-cross-entropy",
    "mixing/study-plain",
    "prototypical/study-cross-entropy",
}
TINY = {"data.species": ["3"], "data.train": ["2"], "data.val": ["2"], "data.test": ["5"], "image_size": ["16"]}


def test_rows_of_the_study_that_are_one_training_are_one_trial(host: Host, tmp_path: Path) -> None:
    suite = overridden(read_suite("study-small"), {**TINY, "weights": ["none"]})
    tables = [table for table in suite.tables if table.name in {*ONE_NETWORK, "transfer/study"}]
    found = plan_suite(host, replace(suite, tables=tuple(tables)), Request([], "petals", tmp_path, 1), [])
    items = [item for table in found for item in table.planned]
    by_name: dict[str, set[str]] = {}
    for item in items:
        by_name.setdefault(item.label, set()).add(item.trial.id)
    assert len({frozenset(by_name[name]) for name in ONE_NETWORK}) == 1, "five seeds of one network"
    assert len(by_name["transfer/study-scratch"]) == 5
    assert by_name["transfer/study"] > by_name["transfer/study-scratch"], "freeze = 0"
    several = [item for item in in_order(items) if len(item.labels) > 1]
    assert [set(item.label.split(" = ")) for item in several] == 5 * [ONE_NETWORK | {"transfer/study"}]


@pytest.mark.slow
def test_study_small_trains_what_is_distinct(host: Host, tmp_path: Path) -> None:
    suite = read_suite("study-small")
    items = [
        item for table in plan_suite(host, suite, Request([], "petals", tmp_path, 1), []) for item in table.planned
    ]
    assert (len(items), len(in_order(items))) == (298, 283)


@pytest.mark.parametrize(
    ("name", "backbone", "data", "trials", "distinct"),
    [
        ("peft-small", "test_vit", TINY, 30, 30),
        ("peft", "test_vit", {"data": ["toy"], "image_size": ["32"]}, 30, 30),
        ("fine-grained-small", "test_resnet", TINY, 24, 24),
        ("fine-grained", "test_resnet", {"data": ["toy"], "image_size": ["32"]}, 24, 24),
        ("few-shot-small", "test_resnet", {**TINY, "shots": ["1", "2"]}, 66, 60),
        ("few-shot", "test_resnet", {"data": ["toy"], "image_size": ["16"]}, 99, 90),
    ],
)
def test_suites_of_techniques_run_on_any_data(
    host: Host, tmp_path: Path, name: str, backbone: str, data: dict[str, list[str]], trials: int, distinct: int
) -> None:
    suite = overridden(read_suite(name), {**data, "weights": ["none"], "backbone": [backbone]})
    tables = plan_suite(host, suite, Request([], "petals", tmp_path, 1), [TOY])
    items = [item for table in tables for item in table.planned]
    assert (len(items), len(in_order(items))) == (trials, distinct)
    labels = {label.text for item in items for label in item.labels}
    for item in items:  # nothing that predicts without training is trained, whatever the suite's epochs
        assert (item.trial.recipe.epochs == 0) == (item.trial.predictor != "classifier"), item.label
    twin = {"peft": "peft/frozen", "fine": "fine-grained/plain"}.get(name.partition("-")[0])
    if twin:
        assert {label.baseline for item in items for label in item.labels} == {twin, None}
        assert labels >= {name for figure in suite.figures for name in figure.technique}


def test_no_variant_of_a_technique_is_the_studys(host: Host) -> None:
    names = [f"{name}/{variant}" for name, found in host.techniques.items() for variant in found.value.variants]
    assert not [name for name in names if "study" in name]
    assert len(names) > 100
