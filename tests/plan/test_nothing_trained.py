"""Techniques that train nothing are not told, compared or searched by a learning rate and epochs that they do not use."""

from __future__ import annotations

from pathlib import Path

import pytest
from lives import TOY, live, planned

from flowers_bench.cli.catalogue import describe
from flowers_bench.cli.execute import _in_one_line
from flowers_bench.cli.show import show
from flowers_bench.contract.host import discover
from flowers_bench.plan.request import Request
from flowers_bench.report.aggregate import Configuration, Finished, Row, build_row
from flowers_bench.report.comparison import Comparison
from flowers_bench.report.page import Machine, _facts, _trial

UNUSED = ("optimizer", "lr", "epochs", "warmup_epochs", "batch_size", "weight_decay", "schedule")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """By technique; all were given epochs, which only one of them can use."""
    folder = tmp_path_factory.mktemp("untrained")
    lives = {
        "knn": live(folder, "knn/k5", weights="none", epochs="4", lr="0.5"),
        "other": live(folder, "knn/k5", weights="none"),
        "trained": live(folder, "toy/short"),
        "longer": live(folder, "toy/short", epochs="2"),
    }
    return {name: build_row(name, Configuration.of([Finished.load(trial)])) for name, trial in lives.items()}


def differing(rows: dict[str, Row], first: str, second: str) -> str:
    (pair,) = Comparison.of([(rows[first], rows[second])]).pairs
    return ", ".join(pair.differing)


def test_a_comparison_does_not_speak_of_what_only_one_uses(rows: dict[str, Row]) -> None:
    assert differing(rows, "knn", "trained") == ""
    assert differing(rows, "knn", "other") == ""
    assert "epochs 2 / 1" in differing(rows, "longer", "trained")


def test_the_report_lists_what_was_used(rows: dict[str, Row]) -> None:
    machines = {key: Machine(1, "", []) for key in map(_key, rows.values())}
    facts = dict(_facts(rows["knn"]))
    assert facts["recipe.image_size"] == "16"
    assert not [name for name in UNUSED if f"recipe.{name}" in facts]
    assert dict(_facts(rows["trained"]))["recipe.epochs"] == "1"
    assert _trial(rows["knn"].trials[0], machines, {}).epochs == "none"


def _key(row: Row) -> str:
    from flowers_bench.report.page import _machine_key

    return _machine_key(row.trials[0])


def test_show_lists_what_was_used(rows: dict[str, Row], capsys: pytest.CaptureFixture[str]) -> None:
    folder = rows["knn"].trials[0].folder
    show(folder.id, folder.path.parent, "text")
    said = capsys.readouterr().out
    assert "\nNothing trained\n" in said
    section = said.partition("Nothing trained")[2].partition("\n\n")[0]
    assert "image_size" in section
    assert not [name for name in UNUSED if f"  {name} " in section]
    assert "epoch 0 of 0" not in said


@pytest.mark.parametrize("given", [{}, {"epochs": "4", "lr": "0.5"}])
def test_a_run_does_not_announce_epochs(tmp_path: Path, given: dict[str, str]) -> None:
    line = _in_one_line(planned(tmp_path, "knn/k5", **given))  # type: ignore[arg-type]
    assert line == "knn/k5: test_resnet, weights none, 16 px, nothing trained, predicts by knn"
    assert "at most 1 epoch, adamw lr 0.01, batch 16" in _in_one_line(planned(tmp_path, "toy/short"))
    assert "nothing trained, predicts by classifier" in _in_one_line(planned(tmp_path, "toy/short", epochs="0"))


def test_describe_names_what_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    describe("knn", [])
    said = capsys.readouterr().out
    assert "nothing is trained" in said
    assert "  image_size = 224\n" in said
    assert not [name for name in UNUSED if f"  {name} = " in said]
    describe("linear-probe", [])
    said = capsys.readouterr().out
    assert " epochs=0" not in said
    assert "predictor=logistic, nothing trained" in said


def test_no_search_for_a_rate_that_nothing_is_trained_with(tmp_path: Path) -> None:
    pytest.importorskip("optuna", reason='pip install "flowers-bench[search]"')
    from flowers_bench.plan.search import Search

    settings = {"epochs": "4", "image_size": "16"}
    for name, space in (("knn/untrained", set()), ("transfer/scratch", {"lr", "weight_decay"})):
        request = Request(
            [name],
            "toy",
            tmp_path,
            1,
            backbone="test_resnet",
            weights="none",
            settings=settings,
            search=1,
            store=tmp_path,
        )
        found = Search.begin(discover([TOY]), request, [TOY], {}).space
        assert {"lr", "weight_decay"} & set(found) == space
