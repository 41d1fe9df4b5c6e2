"""One technique on several backbones, weights or settings in one table: every figure is of its own row."""

from __future__ import annotations

import csv
import html
import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from stored import outcomes, store_trial

from flowers_bench.cli.compare import compare, rows_of
from flowers_bench.cli.figures import figures
from flowers_bench.cli.report import report
from flowers_bench.measure.statistics import Difference, Pool, won_and_lost
from flowers_bench.plan.request import Request, TrialPlan
from flowers_bench.plan.suites import PlannedTable, read_suite
from flowers_bench.report.aggregate import start
from flowers_bench.report.answer import Answer
from flowers_bench.report.comparison import Comparison
from flowers_bench.report.formatting import points_interval
from flowers_bench.report.leaderboard import Group, Leaderboard
from flowers_bench.report.names import configuration_id, distinct_names, read_name
from flowers_bench.report.page import _matrix, _stressed, _verdicts
from flowers_bench.report.plots import series, sweeps
from flowers_bench.report.published import beside_reported
from flowers_bench.report.shots import families
from flowers_bench.report.text import FORMATS
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import HARNESS_REVISION, Protocol
from flowers_bench.store.records import Config
from flowers_bench.util.errors import UsageError

SEEDS = 3
WEIGHTS = ({"name": "none", "sha256": None}, {"name": "flora", "sha256": "ab" * 32})
#: Label, backbone, weights: two techniques, each four times, and what they get right.
ROWS = list(itertools.product(("knn/k5", "knn/plain"), ("resnet18", "vit_tiny"), WEIGHTS))
ACCURACY = dict(zip(range(8), (0.62, 0.71, 0.80, 0.66, 0.78, 0.64, 0.70, 0.75), strict=True))


def correct_of(number: int, seed: int) -> np.ndarray:
    return outcomes(10 * number + seed, ACCURACY[number])


def turned(number: int, level: int) -> float:
    """Accuracy under rotation: every row loses another part of its own."""
    return ACCURACY[number] - 0.01 * level * (number + 1)


def turned_images(number: int, seed: int, level: int) -> np.ndarray:
    return outcomes(10 * number + seed, turned(number, level))


def store_stressed(root: Path, number: int, seed: int) -> None:
    label, backbone, weights = ROWS[number]
    points = [{"level": k, "label": str(k), "top1": turned(number, k)} for k in range(1, 6)]
    result = {"stress_revision": 1, "stress": {"rotation": points}, "robustness": {"rotation": 0.5}}
    common = {"backbone": backbone, "weights": weights, "result": result}
    folder = store_trial(root, label, seed, correct_of(number, seed), **common)
    keys = [f"test/{i:05}" for i in range(400)]
    tables = [
        pd.DataFrame(
            {"kind": "rotation", "level": k, "value": 1.0, "key": keys, "correct": turned_images(number, seed, k)}
        )
        for k in range(1, 6)
    ]
    pd.concat(tables).to_parquet(folder.path / "stress.parquet", index=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for number, seed in itertools.product(range(len(ROWS)), range(SEEDS)):
        store_stressed(root, number, seed)
    return root


@pytest.fixture(scope="module")
def group(runs: Path) -> Group:
    (group,) = Leaderboard.of(Store(runs).finished()).groups
    return group


def number_of(config: Config) -> int:
    """Which of `ROWS` a configuration is."""
    return ROWS.index((config.label, config.backbone, config.weights.json()))


def outcomes_of(number: int) -> np.ndarray:
    return np.stack([correct_of(number, seed) for seed in range(SEEDS)])


def test_names_say_what_tells_rows_apart(group: Group) -> None:
    names = {number_of(row.config): row.name for row in group.rows}
    assert names[0] == "knn/k5 backbone=resnet18 weights=none"
    assert names[7] == "knn/plain backbone=vit_tiny weights=flora"
    assert len(set(names.values())) == len({row.id for row in group.rows}) == 8


def test_every_cell_is_the_difference_of_its_own_rows(group: Group) -> None:
    compared = Comparison.all_of(group.rows)
    matrix = _matrix(group.rows, compared)
    for (i, one), (j, other) in itertools.product(enumerate(group.rows), repeat=2):
        cell = matrix.body[i][j]
        if i == j:
            assert cell is None, "no row is compared with itself"
            continue
        numbers = number_of(one.config), number_of(other.config)
        twins = start(one.config) == start(other.config) and {n // 4 for n in numbers} == {0, 1}
        pool = None if twins else Pool.of([outcomes_of(number_of(row.config)) for row in group.rows])
        found = Difference.of(*map(outcomes_of, numbers), pool).interval()
        assert cell.value == f"{100 * found.value:+.1f}", (one.name, other.name)
        if i < j:  # the mirrored one draws its bootstrap the other way round
            assert cell.interval == points_interval(found.low, found.high)
    assert matrix.names == [row.name for row in group.rows]


def test_baselines_are_the_rows_own(group: Group) -> None:
    assert len(group.differences) == 4
    for pair in group.differences:
        one, other = (next(row for row in group.rows if row.id == i) for i in pair.ids)
        assert (one.name, other.name) == (pair.first, pair.second)
        assert one.config.backbone == other.config.backbone
        assert one.config.weights == other.config.weights
        won, lost = won_and_lost(*(outcomes_of(number_of(row.config)) for row in (one, other)))
        assert pair.difference.value == pytest.approx((won - lost) / SEEDS / 400)


def test_no_verdict_has_its_row_as_opponent(group: Group) -> None:
    answer = Answer.of(group)
    best = max(ACCURACY, key=lambda number: outcomes_of(number).mean())
    name = next(row.name for row in group.rows if number_of(row.config) == best)
    assert answer.best.name == name
    assert [one.other.name for one in answer.against] == [row.name for row in group.rows if row.name != name]
    for one in answer.against:
        (pair,) = [p for p in group.compared.pairs if {p.first, p.second} == {name, one.other.name}]
        assert one.verdict == ("within" if pair.within else "better" if pair.claimed else "open")
    said = set(answer.sentences())
    about = [text for text in _verdicts(group, answer) if text not in said]
    assert len(about) == sum(answer.best.row not in pair.ids for pair in group.differences) > 0
    for text in about:
        assert len({row.name for row in group.rows if row.name in text}) == 2


def test_stress_is_the_rows_own(group: Group) -> None:
    for row in group.rows:
        drawn, number = series(row)["stress"]["rotation"]["mean"], number_of(row.config)
        assert drawn[1:] == pytest.approx([turned(number, k) for k in range(1, 6)])
        assert drawn[0] == pytest.approx(outcomes_of(number).mean(), abs=1e-4)
    found = _stressed(group)
    assert len(found) == 4
    for one, pair in zip(found, group.differences, strict=True):
        assert one.table.title == f"{pair.first} against {pair.second} under stress"
        a, b = (number_of(next(row for row in group.rows if row.id == i).config) for i in pair.ids)
        levels = [np.mean([turned_images(n, seed, k) for seed in range(SEEDS) for k in range(1, 6)]) for n in (a, b)]
        assert one.table.body[0][3] == f"{100 * (levels[0] - levels[1]):+.1f}"


def test_every_name_is_one_that_compare_takes(group: Group, runs: Path) -> None:
    again = rows_of([row.name for row in group.rows], runs)
    assert [row.id for row in again] == [row.id for row in group.rows]
    assert [row.name for row in again] == [row.name for row in group.rows]


def test_compare_says_what_to_add(runs: Path) -> None:
    with pytest.raises(UsageError, match="names 4 configurations") as error:
        rows_of(["knn/k5", "knn/plain"], runs)
    assert "'knn/k5 backbone=vit_tiny weights=flora'   seeds 0, 1, 2" in str(error.value)
    with pytest.raises(UsageError, match="names 2 configurations") as error:
        rows_of(["knn/k5 weights=none", "knn/plain"], runs)
    assert "'knn/k5 backbone=vit_tiny'   seeds" in str(error.value)
    with pytest.raises(UsageError, match="was not run with backbone=vgg"):
        rows_of(["knn/k5 backbone=vgg", "knn/plain"], runs)


def test_comparisons_are_of_the_rows_that_were_named(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["knn/k5 backbone=resnet18 weights=none", "knn/k5 weights=none backbone=vit_tiny", "knn/plain backbone=resnet18 weights=flora"]  # fmt: skip
    shown = ["knn/k5 backbone=resnet18", "knn/k5 backbone=vit_tiny", "knn/plain"]
    compare(names, runs, "json")
    found = json.loads(capsys.readouterr().out)
    assert [(pair["first"], pair["second"]) for pair in found] == list(itertools.combinations(shown, 2))
    for pair, (a, b) in zip(found, itertools.combinations((0, 2, 5), 2), strict=True):
        assert pair["difference"] == pytest.approx(outcomes_of(a).mean() - outcomes_of(b).mean())
        levels = [np.mean([turned(n, k) for k in range(1, 6)]) for n in (a, b)]
        assert pair["stress"][0]["difference"] == pytest.approx(levels[0] - levels[1], abs=0.01)
        assert pair["sentence"].count(pair["first"]) >= 1
    compare(names, runs, "csv")
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(line["first_row"], line["second_row"]) for line in lines] == [
        (pair["first_row"], pair["second_row"]) for pair in found
    ]


@pytest.mark.parametrize("format", sorted(FORMATS))
def test_exports_name_every_row(group: Group, runs: Path, format: str) -> None:
    board = Leaderboard.of(Store(runs).finished())
    text = FORMATS[format](board).replace(r"\_", "_").replace(r"\textunderscore", "_")
    for row in group.rows:
        assert row.name in text
    if format == "json":
        assert {record["row"]: record["test_top1"] for record in json.loads(text)} == {
            row.id: outcomes_of(number_of(row.config)).mean() for row in group.rows
        }


def test_the_page_has_each_name_where_its_row_is(group: Group, runs: Path, tmp_path: Path) -> None:
    report(runs, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    (data,) = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1)).values()
    assert [(row["id"], row["name"]) for row in data["rows"]] == [(row.id, row.name) for row in group.rows]
    matrix = re.search(r'<table class="matrix">(.*?)</table>', text, re.S).group(1)
    heads = [
        html.unescape(name.replace("<wbr>", ""))
        for name in re.findall(r'<th scope="col"[^>]*><span>(.*?)</span></th>', matrix)
    ]
    assert heads == [row.name for row in group.rows]
    assert matrix.count('<td class="self"') == 8


def test_legends_of_figures_tell_rows_apart(runs: Path, tmp_path: Path) -> None:
    suite = tmp_path / "mine.toml"
    text = '[[trials]]\ntechnique = "knn/k5"\n[[figures]]\nname = "c"\ntitle = "T"\ndraw = "curves"\ntechnique = ["knn/k5", "knn/plain"]\n'
    suite.write_text(text)
    figures(str(suite), runs, tmp_path)
    for backbone, numbers in (("resnet18", (0, 1, 4, 5)), ("vit_tiny", (2, 3, 6, 7))):
        words = " ".join(ElementTree.parse(tmp_path / f"c-meadow-{backbone}.svg").getroot().itertext())
        for number in numbers:
            label, _, weights = ROWS[number]
            assert f"{label} weights={weights['name']}: {100 * outcomes_of(number).mean():.1f} [" in words


def test_curves_over_training_images_are_each_of_their_row(tmp_path: Path) -> None:
    accuracy = {("resnet18", 1): 0.3, ("resnet18", 5): 0.6, ("vit", 1): 0.5, ("vit", 5): 0.55}
    for (backbone, shots), value in accuracy.items():
        common = {"dataset": {"n_train": 4 * shots}, "protocol": Protocol(shots=shots), "backbone": backbone}
        store_trial(tmp_path, "wise/good", 0, outcomes(0, value), **common)
    board = Leaderboard.of(Store(tmp_path).finished())
    (family,) = dict.fromkeys(families(board).values())
    found = {curve.name: [round(top1.value, 2) for top1 in curve.points.values()] for curve in family.curves}
    assert found == {"wise/good backbone=resnet18": [0.3, 0.6], "wise/good backbone=vit": [0.5, 0.55]}


def test_families_of_one_dataset_have_titles_of_their_own(tmp_path: Path) -> None:
    for shots, k in itertools.product((1, 5), (3, 9)):
        common = {"dataset": {"n_train": 4 * shots}, "protocol": Protocol(shots=shots), "data_options": {"k": k}}
        store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.5), **common)
    found = dict.fromkeys(families(Leaderboard.of(Store(tmp_path).finished())).values())
    assert [family.table().title for family in found] == [
        f"meadow: accuracy against training images of each class; data options: k {k}" for k in (3, 9)
    ]


def test_sweeps_of_one_number_have_titles_of_their_own(tmp_path: Path) -> None:
    for k, backbone in itertools.product((1, 2, 3), ("resnet18", "vit")):
        accuracy = 0.5 + 0.1 * k * (backbone == "vit")
        store_trial(tmp_path, "wise/good", 0, outcomes(0, accuracy), options={"k": k}, backbone=backbone)
    (group,) = Leaderboard.of(Store(tmp_path).finished()).groups
    found = {sweep["factor"]: [round(top1[1], 1) for top1 in sweep["top1"]] for sweep in sweeps(group.rows)}
    assert found == {"wise: k backbone=resnet18": [0.5, 0.5, 0.5], "wise: k backbone=vit": [0.6, 0.7, 0.8]}


def test_reported_figures_stand_beside_rows_that_are_told_apart(tmp_path: Path) -> None:
    """As the study does: one technique with another setting, then on another backbone."""
    suite = tmp_path / "mine.toml"
    rows = (f'[[trials]]\ntechnique = "wise/good"\nreported = {{row = "{row}", top1 = 50}}\n' for row in "abc")
    suite.write_text("".join(rows))
    request, tables = Request(["wise/good"], "meadow", tmp_path, 1), []
    for table, (k, backbone) in zip(read_suite(str(suite)).tables, ((3, "x"), (4, "x"), (3, "y")), strict=True):
        common = {"options": {"k": k}, "backbone": backbone}
        folder = store_trial(tmp_path / "runs", "wise/good", 0, outcomes(0, 0.5 + k / 20), **common)
        trial = folder.trial()
        tables.append(PlannedTable(table, (request,), (TrialPlan(trial, folder.labels(), folder.run()),)))
    found = beside_reported(tables, Store(tmp_path / "runs"))
    assert [(line.reported.row, line.name) for line in found] == [
        ("a", "wise/good backbone=x k=3"),
        ("b", "wise/good backbone=x k=4"),
        ("c", "wise/good backbone=y"),
    ]
    assert [line.row.top1.value for line in found if line.row] == pytest.approx([0.65, 0.70, 0.65])


def test_trials_that_are_not_finished_are_told_apart(tmp_path: Path) -> None:
    store_trial(tmp_path, "wise/plain", 0, outcomes(0, 0.7))
    for backbone in ("resnet18", "vit"):
        (store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.7), backbone=backbone).path / "result.json").unlink()
    report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    for backbone in ("resnet18", "vit"):
        assert f"<td>wise/good backbone={backbone}</td>" in text


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"recipe": {"image_size": 96}}, "image_size=224"),
        ({"recipe": {"precision": "bfloat16"}}, "precision=float32"),
        ({"code": {"common": "flowers-bench 0.1.0 1234abcd"}}, "code.common=flowers-bench 0.1.0"),
        ({"weights": {"name": "none", "sha256": "cd" * 32}}, "weights.sha256=None"),
        ({"dataset": {"fingerprint": "e" * 64}}, "dataset.fingerprint=ffffffff"),
        ({"options": {"idle": 3, "seeds": 1}}, "idle=absent seeds=absent"),
        ({"options": {"loss": "triplet"}}, "options.loss=absent"),
        ({"options": {"blocks": "1, 2"}}, "blocks=absent"),
        ({"backbone": "vit", "recipe": {"lr": 0.5}}, "backbone=resnet18"),
    ],
)
def test_whatever_differs_is_said_and_can_be_typed(tmp_path: Path, changes: dict, told: str) -> None:
    store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.7))
    store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.8), **changes)
    store_trial(tmp_path, "wise/plain", 0, outcomes(0, 0.6))
    (group,) = Leaderboard.of(Store(tmp_path).finished()).groups
    names = {row.name: row.id for row in group.rows}
    assert len(names) == 3
    assert "wise/plain" in names, "what is alone under its name needs no more"
    assert f"wise/good {told}" in names
    for name, identity in names.items():
        other = next(other for other in names if other != name)
        assert rows_of([name, other], tmp_path)[0].id == identity


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"protocol": Protocol(search=5)}, "recipes searched: best of 5"),
        ({"data_options": {"k": 5}}, "data options: k 5"),
        ({"dataset": {"notes": ["64 px copies"]}}, "images: 64 px copies"),
        ({"protocol": Protocol(shots=10)}, "(10 of each class)"),
        ({"harness_revision": 99}, "harness revision: 99"),
    ],
)
def test_tables_of_one_dataset_have_titles_of_their_own(tmp_path: Path, changes: dict, told: str) -> None:
    store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.7))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "flowers_bench.store.identity.HARNESS_REVISION", changes.pop("harness_revision", HARNESS_REVISION)
        )
        store_trial(tmp_path, "wise/good", 1, outcomes(1, 0.8), **changes)
    records = json.loads(FORMATS["json"](Leaderboard.of(Store(tmp_path).finished())))
    titles = {record["group"]: record["test_top1"] for record in records}
    assert len(titles) == 2
    assert next(value for title, value in titles.items() if told in title) == pytest.approx(0.8)


def test_seeds_and_schema_do_not_make_another_row(tmp_path: Path) -> None:
    config = store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.7)).described()
    assert configuration_id(config) == configuration_id(replace(config, seed=5, id="0" * 16, schema_version=3))
    assert configuration_id(config) != configuration_id(Config.read({**config.json(), "not known yet": None}))


def test_a_trial_is_not_compared_with_its_own_row(tmp_path: Path) -> None:
    folders = [store_trial(tmp_path, "wise/good", seed, outcomes(seed, 0.7)) for seed in range(2)]
    with pytest.raises(UsageError, match="one and the same trial stands in both"):
        compare(["wise/good", folders[0].id], tmp_path, "text")


def test_two_trials_of_one_row_are_each_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ids = [store_trial(tmp_path, "wise/good", seed, outcomes(seed, 0.5 + 0.1 * seed)).id for seed in range(2)]
    for seed in range(2):
        store_trial(tmp_path, "wise/plain", seed, outcomes(seed, 0.5))
    compare([*ids, "wise/plain"], tmp_path, "json")
    found = {pair["first"]: pair for pair in json.loads(capsys.readouterr().out) if pair["second"] == "wise/plain"}
    assert [found[f"wise/good (trial {trial})"]["difference"] for trial in ids] == pytest.approx([0, 0.1], abs=0.01)
    assert [found[f"wise/good (trial {trial})"]["first_row"] for trial in ids] == ids


def test_names_are_distinct_whatever_differs(tmp_path: Path) -> None:
    """Random configurations, many of them near twins: distinct, and each picked by what it says and by nothing else."""
    rng = np.random.default_rng(0)
    config = store_trial(tmp_path, "a/b", 0, outcomes(0, 0.5)).described().json()

    def changed() -> dict[str, Any]:
        one = json.loads(json.dumps(config))
        one["technique"] = rng.choice(["a", "a/b"])
        one["variant"] = {"a": "b/c", "a/b": "c"}[one["technique"]]
        one["backbone"] = rng.choice(["x", "y"])
        one["weights"] = {"name": rng.choice(["none", "w"]), "sha256": rng.choice([None, "ab" * 32, "cd" * 32])}
        one["recipe"]["lr"] = rng.choice([0.1, 0.2])
        one["options"] = {
            key: rng.choice([1, "1", True, "1 lr=0.1"]) for key in ("k", "lr", "id") if rng.random() < 0.5
        }
        one["code"] = {"common": rng.choice(["v\x1b1", "v\\x1b1"])}
        return json.loads(json.dumps(one, default=lambda value: value.item()))

    configs = list({json.dumps(one, sort_keys=True): one for one in (changed() for _ in range(300))}.values())
    names = distinct_names(list(map(Config.read, configs)))
    assert len(set(names)) == len(names) > 200
    assert all(name.isprintable() for name in names)


def test_a_name_that_imitates_another_is_told_apart(tmp_path: Path) -> None:
    config = store_trial(tmp_path, "a/b", 0, outcomes(0, 0.5)).described()
    twins = [config, replace(config, options={"k": 1}), replace(config, options={"k": "1"})]
    imitated = distinct_names(twins)
    liars = [replace(config, variant=name.partition("/")[2]) for name in imitated]
    assert len(set(distinct_names([*twins, *liars]))) == 6


def test_typed_names_may_have_spaces_in_values() -> None:
    assert read_name("a/b code.common=flowers-bench 0.1.0  blocks=[1, 2]") == (
        "a/b",
        {"code.common": "flowers-bench 0.1.0", "blocks": "[1, 2]"},
    )


def test_in_a_browser_every_line_is_its_rows_own(group: Group, runs: Path, tmp_path: Path, browser: Any) -> None:
    report(runs, tmp_path / "report.html")
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto((tmp_path / "report.html").as_uri())
    for box in page.locator(".draw").all():
        box.check()
    names = [row.name for row in group.rows]
    for plot in page.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    assert page.locator("[data-plot=curves] .legendtext").all_text_contents() == names
    assert page.locator(".legend li").all_inner_texts() == names
    assert page.locator(".explore option").all_inner_texts() == names
    assert page.locator(".board tbody th").all_inner_texts() == names
    drawn = page.locator("[data-plot=stress]").evaluate(
        "(plot) => Object.fromEntries(plot.data.filter((t) => t.name).map((t) => [t.name, t.y]))"
    )
    for row in group.rows:
        assert drawn[row.name][1:] == pytest.approx([100 * turned(number_of(row.config), k) for k in range(1, 6)])
    compared = group.compared
    for i, line in enumerate(page.locator(".matrix tbody tr").all()):
        cells = line.locator("td")
        assert cells.nth(i).inner_text() == ""
        for j in set(range(8)) - {i}:
            ids = tuple(group.rows[k].id for k in (i, j))
            pair = next(p for p in compared.pairs if set(p.ids) == set(ids))
            sign = 1 if pair.ids == ids else -1
            assert cells.nth(j).locator("strong").inner_text() == f"{100 * sign * pair.difference.value:+.1f}"
            assert ("open" in (cells.nth(j).get_attribute("class") or "")) == (not pair.claimed)
    page.context.close()


def test_long_names_are_cut_only_where_they_stay_apart(tmp_path: Path, browser: Any) -> None:
    long = "technique-with-a-name/that-is-longer-than-a-legend"
    for label in (f"{long}-a", f"{long}-b", f"other-{long}", "50%{x}/%{y} &#37;"):
        store_trial(tmp_path, label, 0, outcomes(0, 0.7))
    report(tmp_path, tmp_path / "report.html")
    page = browser.new_page()
    page.goto((tmp_path / "report.html").as_uri())
    plot = page.locator("[data-plot=curves]")
    plot.scroll_into_view_if_needed()
    plot.locator("svg.main-svg").first.wait_for()
    shown = set(plot.locator(".legendtext").all_text_contents())
    assert shown == {f"{long}-a", f"{long}-b", f"other-{long}"[:33] + "…", "50%{x}/%{y} &#37;"}
    page.close()
