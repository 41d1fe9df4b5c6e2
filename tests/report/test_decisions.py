"""Deciding by adding seeds: the loop on planted outcomes, its plan in the store, and what is said about such trials."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stored import cost, finish, outcomes, store_trial

from flowers_bench import cli
from flowers_bench.cli import execute
from flowers_bench.cli.compare import compare, rows_of
from flowers_bench.cli.decide import decide
from flowers_bench.cli.exit_codes import FAILED
from flowers_bench.cli.options import Deciding, RunOptions
from flowers_bench.executors.local import Outcome
from flowers_bench.plan.request import TrialPlan
from flowers_bench.report.comparison import Comparison
from flowers_bench.report.comparison_text import sentence
from flowers_bench.report.decisions import Contender, look_again, new_decision
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.text import footnotes
from flowers_bench.store.decisions import Decision, read_decisions
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.merge import merge_stores
from flowers_bench.util.errors import Unreadable, UsageError

IMAGES = 1000
SEEDS_MAX = 8
#: Accuracy of a seed, by label: `good` and `bad` are plainly different, `same` is like `good`, `wild` is not to be decided.
ACCURACY: dict[str, Callable[[int], float]] = {
    "a/good": lambda seed: 0.80 + 0.005 * (seed % 3),
    "b/same": lambda seed: 0.80 + 0.005 * ((seed + 1) % 3),
    "c/bad": lambda seed: 0.60 + 0.005 * (seed % 3),
    "d/wild": lambda seed: 0.80 + 0.06 * (-1) ** seed,
}


def right(accuracy: float) -> np.ndarray:
    """bool (N,): the same images are hard for everyone, so that few images are enough for these tests."""
    return np.arange(IMAGES) < round(accuracy * IMAGES)


class Machine:
    """Runs no trial: writes what it would have given."""

    def __init__(self, root: Path, *labels: str) -> None:
        self.root = root
        self.ran: list[tuple[str, int]] = []
        self.fails: set[tuple[str, int]] = set()
        self.plans = [item for label in labels for item in self._planned(label)]

    def _planned(self, label: str) -> list[TrialPlan]:
        folder = store_trial(self.root.with_name("elsewhere"), label, 0, right(0.5))
        return [
            TrialPlan(replace(folder.trial(), seed=seed), folder.labels(), folder.run())
            for seed in range(SEEDS_MAX + 5)
        ]

    def run_all(
        self, folders: Sequence[TrialFolder], on_event: object, timeout: float, options: RunOptions, jobs: int
    ) -> list[Outcome]:
        found = []
        for folder in folders:
            name, seed = folder.labels()[0].text, folder.config().seed
            self.ran.append((name, seed))
            failed = (name, seed) in self.fails
            if not failed:
                finish(
                    folder,
                    right(ACCURACY[name](seed)),
                    cost=cost(60.0),
                    class_names=list("wxyz"),
                )
            found.append(Outcome(folder, "failed" if failed else "done"))
        return found

    def decide(self, seeds_max: int = SEEDS_MAX, budget: str = "", margin: float = 1.0, shard: str = "1/1") -> int:
        options = RunOptions.parse(
            plugin="a", store=str(self.root), decide=margin, seeds_max=seeds_max, budget=budget, shard=shard
        )
        planned = [item for item in self.plans if item.trial.seed < seeds_max]
        return decide(planned, options, options.decide, 60, "text")

    def plan(self) -> Decision:
        (found,) = read_decisions(self.root)
        return found

    def seeds_of(self, label: str) -> int:
        return sum(name == label for name, _ in self.ran)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(*labels: str) -> Machine:
        found = Machine(tmp_path / "runs", *labels)
        monkeypatch.setattr(execute, "run_all", found.run_all)
        return found

    return make


def test_pairs_are_decided_and_their_techniques_stop(
    machine: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    found = machine("a/good", "b/same", "c/bad")
    assert found.decide() == 0
    by_label = dict(zip(found.plan().techniques, found.plan().labels, strict=True))
    outcome = {(by_label[pair.first], by_label[pair.second]): pair for pair in found.plan().pairs}
    assert {key: pair.outcome for key, pair in outcome.items()} == {
        ("a/good", "b/same"): "within",
        ("a/good", "c/bad"): "differ",
        ("b/same", "c/bad"): "differ",
    }
    took = {key: found.plan().seeds_of(pair) for key, pair in outcome.items()}
    assert took["a/good", "c/bad"] == found.seeds_of("c/bad") == 3, "it stops while the others go on"
    assert took["a/good", "b/same"] == found.seeds_of("a/good") == found.seeds_of("b/same") > 3
    assert len(found.ran) == len(set(found.ran))
    words = capsys.readouterr()
    assert "they differ" in words.err
    printed = " ".join(words.out.split())
    assert "It is within 1.0 points of" in printed
    assert "sequential: look 1 of 5 up to 8 seeds, 3 pairs, 6.0 min of training" in printed
    assert "3 sequential, adjusted for the looks and pairs of their plan" in printed
    assert "Holm: adjusted" not in printed


def test_names_of_one_label_are_told_apart_at_a_look(
    machine: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    found = machine("a/good", "c/bad")
    bad = [item for item in found.plans if item.label == "c/bad"]
    found.plans += [replace(item, trial=replace(item.trial, backbone="vit")) for item in bad]
    found.decide()
    assert "a/good and c/bad backbone=vit: they differ" in capsys.readouterr().err


def test_a_rerun_trains_and_looks_no_more(machine: Callable[..., Machine]) -> None:
    found = machine("a/good", "c/bad")
    found.decide()
    ran, plan = list(found.ran), found.plan()
    assert found.decide() == 0
    assert (found.ran, found.plan()) == (ran, plan)


def test_the_plan_is_stored_before_the_first_trial(machine: Callable[..., Machine]) -> None:
    found = machine("a/good", "c/bad")
    found.fails.add(("c/bad", 2))
    assert found.decide() == FAILED
    plan = found.plan()
    assert [look.seeds for look in plan.looks] == [3, 4, 5, 6, 8]
    assert (plan.done, plan.pairs[0].p, plan.finished_before) == (0, [], 0)
    found.fails.clear()
    assert found.decide() == 0
    assert found.ran.count(("a/good", 0)) == 1, "what is finished is not run again"
    assert found.plan().pairs[0].outcome == "differ"


def test_what_seeds_cannot_tell_ends_at_the_last_look_and_more_seeds_find_alpha_spent(
    machine: Callable[..., Machine],
) -> None:
    found = machine("a/good", "d/wild")
    assert found.decide(seeds_max=4) == 0
    plan = found.plan()
    assert (plan.done, plan.pairs[0].outcome) == (2, "open")
    assert len(plan.pairs[0].p) == 2
    with pytest.raises(UsageError, match=r"100 % of alpha is spent. Nothing is left for more seeds"):
        found.decide(seeds_max=8)
    (pair,) = Comparison.all_of(rows_of(["a/good", "d/wild"], found.root)).pairs
    assert not pair.claimed
    assert not pair.within
    assert "undecided at the last look" in sentence(pair)


def test_a_raised_number_of_seeds_spends_what_is_left(machine: Callable[..., Machine]) -> None:
    found = machine("a/good", "d/wild")
    found.fails.add(("a/good", 3))
    assert found.decide(seeds_max=8) == FAILED
    before = found.plan()
    assert before.done == 1
    found.fails.clear()
    found.decide(seeds_max=10)
    after = found.plan()
    assert after.looks[0] == before.looks[0]
    assert [look.seeds for look in after.looks] == [3, 4, 5, 6, 8, 10]
    assert [look.spent for look in after.looks][1:3] == pytest.approx([3 / 8 + 5 / 8 / 7, 3 / 8 + 10 / 8 / 7])
    with pytest.raises(UsageError, match=r"Give more than|Nothing is left"):
        found.decide(seeds_max=4)


def test_another_margin_would_be_another_test_of_the_same_trials(machine: Callable[..., Machine]) -> None:
    found = machine("a/good", "c/bad")
    found.decide()
    with pytest.raises(UsageError, match=r"is for 1 points, and was tested already"):
        found.decide(margin=2.0)


def test_a_budget_ends_before_a_look_that_it_does_not_reach(
    machine: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    found = machine("a/good", "d/wild")
    assert found.decide(budget="100s") == 0
    assert found.plan().done == 1, "a trial takes a minute: two more do not fit"
    assert "the budget is spent before the look at 4 seeds" in capsys.readouterr().err
    assert found.decide(budget="9m") == 0
    assert found.plan().done > 1


def test_shards_wait_for_each_other_and_find_the_same(
    machine: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    found = machine("a/good", "c/bad")
    assert found.decide(shard="1/2") == 0
    assert len(found.ran) == 3
    assert "waits for the other shards' trials" in capsys.readouterr().err
    assert found.plan().done == 0
    assert found.decide(shard="2/2") == 0
    assert len(set(found.ran)) == len(found.ran) == 6
    assert found.plan().pairs[0].outcome == "differ"
    whole = found.plan()
    assert found.decide(shard="1/2") == 0
    assert found.plan() == whole


def test_compare_does_not_pretend_to_a_fixed_plan(
    machine: Callable[..., Machine], capsys: pytest.CaptureFixture[str]
) -> None:
    found = machine("a/good", "b/same", "c/bad")
    found.decide()
    more = next(item for item in found.plans if item.label == "c/bad" and item.trial.seed == 7)
    finish(
        Store(found.root).prepare(more.trial, more.run, more.labels),
        right(0.1),
        cost=cost(60.0),
        class_names=[],
    )
    capsys.readouterr()
    compare(["a/good", "c/bad"], found.root, "json")
    (record,) = json.loads(capsys.readouterr().out)
    assert record["seeds"] == [0, 1, 2], "those that it took, whatever the store has by now"
    plan = found.plan()
    of_plan = next(pair for pair in plan.pairs if {pair.first, pair.second} == {plan.techniques[0], plan.techniques[2]})
    assert record["p_holm"] == of_plan.p_adjusted > record["p"]
    assert record["sequential"]["outcome"] == "differ"
    assert "sequential: look 1 of 5" in record["sentence"]


def test_trials_that_were_there_before_the_plan_are_said(machine: Callable[..., Machine]) -> None:
    found = machine("a/good", "c/bad")
    for item in found.plans[:2]:
        found.run_all([Store(found.root).prepare(item.trial, item.run, item.labels)], None, 0, RunOptions.parse(), 1)
    found.decide()
    (group,) = Leaderboard.of(Store(found.root).finished()).groups
    assert "2 trials were finished before the plan was made" in footnotes(group)[0]


def test_few_images_end_it_early(tmp_path: Path) -> None:
    """Two techniques of 100 images: what is within a point, no number of seeds can tell."""
    contenders, correct = [], {}
    for salt, label in enumerate(("a/x", "b/x")):
        folder = store_trial(tmp_path, label, 0, outcomes(0, 0.5, 100))
        contenders.append(Contender(folder.described(), folder.labels()))
        correct[contenders[-1].id] = np.stack([outcomes(100 * salt + seed, 0.7, 100) for seed in range(3)])
        correct[contenders[-1].id][:, 50 * salt : 50 * salt + 5] = False
    decision = look_again(new_decision(contenders, 0.01, 30, 0), contenders, correct)
    assert decision.pairs[0].outcome == "images"
    assert decision.done == 1


def test_what_cannot_be_compared_is_no_pair(tmp_path: Path) -> None:
    contenders = []
    for label, dataset in (("a/x", "garden"), ("b/x", "meadow"), ("c/x", "meadow")):
        folder = store_trial(tmp_path, label, 0, outcomes(0, 0.5, 100), dataset={"name": dataset})
        contenders.append(Contender(folder.described(), folder.labels()))
    assert len(new_decision(contenders, 0.01, 30, 0).pairs) == 1
    with pytest.raises(UsageError, match="two techniques or more that can be compared"):
        new_decision(contenders[:2], 0.01, 30, 0)


def test_a_look_at_many_pairs_takes_less_than_a_second(tmp_path: Path) -> None:
    """Eight techniques, 28 pairs, twenty seeds: the last look but two, with everything that was looked up once."""
    contenders, correct = [], {}
    for salt in range(8):
        folder = store_trial(tmp_path, f"t{salt}/x", 0, outcomes(0, 0.5, 1000))
        contenders.append(Contender(folder.described(), folder.labels()))
        correct[contenders[-1].id] = np.stack([outcomes(100 * salt + seed, 0.7, 1000) for seed in range(20)])
    decision = new_decision(contenders, 0.01, 30, 0)
    decision = look_again(decision, contenders, correct)
    decision = replace(decision, done=8)
    began = time.process_time()
    look_again(decision, contenders, correct)
    assert time.process_time() - began < 1


def test_plans_come_along_when_stores_are_merged(machine: Callable[..., Machine], tmp_path: Path) -> None:
    found = machine("a/good", "c/bad")
    found.decide()
    merge_stores([found.root], tmp_path / "all")
    assert read_decisions(tmp_path / "all") == [found.plan()]
    assert Comparison.all_of(rows_of(["a/good", "c/bad"], tmp_path / "all")).pairs[0].sequential


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"done": 99}, "the looks cannot be"),
        ({"looks": []}, "the looks cannot be"),
        ({"labels": ["one"]}, "the names cannot be"),
        ({"techniques": ["0" * 16, "1" * 16]}, "the pairs cannot be"),
        ({"margin": "wide"}, "margin is"),
    ],
)
def test_a_damaged_plan_is_named(machine: Callable[..., Machine], change: dict[str, object], words: str) -> None:
    found = machine("a/good", "c/bad")
    found.decide()
    (path,) = (found.root / "decisions").iterdir()
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    contents = Store(found.root).read()
    assert len(contents.finished) == len(found.ran)
    assert [bool(re.search(words, str(error))) for error in contents.damaged] == [True]
    with pytest.raises(Unreadable, match=words):
        merge_stores([found.root], found.root.parent / "merged")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda plan: plan.write_text(plan.read_text()[:99]),
    "renamed": lambda plan: plan.rename(plan.with_name("0" * 16 + ".json")),
    "pipe": lambda plan: (plan.unlink(), os.mkfifo(plan)),
    "folder": lambda plan: (plan.unlink(), plan.mkdir()),
    "link": lambda plan: (plan.rename(plan.parent.parent / "plan"), plan.symlink_to(plan.parent.parent / "plan")),
    "plans are a pipe": lambda plan: (shutil.rmtree(plan.parent), os.mkfifo(plan.parent)),
    "plans are a link": lambda plan: (
        plan.parent.rename(plan.parent.parent.parent / "plans"),
        plan.parent.symlink_to(plan.parent.parent.parent / "plans"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_store_with_a_damaged_plan_is_shown_without_claims(
    machine: Callable[..., Machine],
    damage: Callable[[Path], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Seeds were added until something was claimed: without the plan, nobody knows at which level."""
    found = machine("a/good", "c/bad")
    found.decide()
    (plan,) = (found.root / "decisions").iterdir()
    damage(plan)
    for command, shown in {
        "leaderboard --format csv": "c/bad",
        "answer": "Not compared with it: c/bad",
        "compare": "",
        "compare a/good c/bad": "",
        f"report -o {found.root.parent / 'page.html'}": "page.html",
        f"figures -o {found.root.parent / 'pictures'}": "pictures",
    }.items():
        capsys.readouterr()
        monkeypatch.setattr("sys.argv", ["flowers-bench", *command.split(), "--store", str(found.root)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        assert end.value.code == 1, command
        assert shown in printed.out, command
        assert "left out: " in printed.err, command
        assert "nothing can be claimed" in printed.err, command
    comparison = Comparison.all_of(rows_of(["a/good", "c/bad"], found.root))
    assert not comparison.pairs
    assert "nothing can be claimed" in comparison.refused[0].reasons[0]


def test_a_plan_is_not_written_where_a_link_leads(machine: Callable[..., Machine], tmp_path: Path) -> None:
    found = machine("a/good", "c/bad")
    (tmp_path / "plans").mkdir()
    found.root.mkdir(exist_ok=True)
    (found.root / "decisions").symlink_to(tmp_path / "plans")
    with pytest.raises(Unreadable, match="decisions is a link"):
        found.decide()
    assert not any((tmp_path / "plans").iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seeds_max": 9}, "go with --decide"),
        ({"budget": "2h"}, "go with --decide"),
        ({"decide": 1.0, "seeds": 3}, "give --seeds-max instead of --seeds"),
        ({"decide": 1.0, "budget": "soon"}, "expected a time such as 90s, 45m or 2h"),
        ({"decide": 1.0, "budget": "0h"}, "expected a time"),
    ],
)
def test_mistakes_are_explained(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        RunOptions.parse(plugin="knn", **options)


def test_times_are_read() -> None:
    found = [Deciding.parse(1.0, None, text, None) for text in ("90s", "1.5m", "2h", "30")]
    assert [one.budget for one in found] == [90, 90, 7200, 30]
    assert {one.seeds_max for one in found} == {30}
    assert Deciding.parse(None, None, "", 3) is None
