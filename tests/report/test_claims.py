"""What the sentences may claim, on planted outcomes: one and several seeds, equals, twins, collapsed and searched trials."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored import outcomes, store_trial

from flowers_bench.cli.compare import compare, rows_of
from flowers_bench.cli.leaderboard import print_leaderboard
from flowers_bench.cli.report import report
from flowers_bench.measure.statistics import Difference, Pool
from flowers_bench.report.answer import Answer
from flowers_bench.report.comparison import Comparison, Pair
from flowers_bench.report.comparison_text import far_off, sentence, sentences
from flowers_bench.report.leaderboard import COMPARED, Group, Leaderboard
from flowers_bench.report.page import _verdicts
from flowers_bench.report.text import footnotes
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import Label, Protocol
from flowers_bench.util.errors import UsageError

MANY = 10_000
Plant = Callable[..., None]


@pytest.fixture
def plant(tmp_path: Path) -> Plant:
    """Store a technique's seeds with these accuracies; other `salt`, other images are right."""

    def store(label: str, *accuracies: float, salt: int = 0, images: int = 400, **given: object) -> None:
        for seed, accuracy in enumerate(accuracies):
            store_trial(tmp_path, label, seed, outcomes(100 * salt + seed, accuracy, images), **given)

    return store


def pair_of(root: Path, first: str, second: str, **given: float) -> Pair:
    (pair,) = Comparison.all_of(rows_of([first, second], root), **given).pairs
    return pair


def group_of(root: Path) -> Group:
    (group,) = Leaderboard.of(Store(root).finished()).groups
    return group


def test_one_seed_is_neither_better_nor_the_same(plant: Plant, tmp_path: Path) -> None:
    plant("a/one", 0.8, images=MANY)
    plant("b/one", 0.8, images=MANY)
    pair = pair_of(tmp_path, "a/one", "b/one")
    assert pair.p_within_holm < 1e-6
    assert not pair.within
    text = sentence(pair)
    assert "within" not in text
    assert (
        "run at least 3; a/one costs 1.0x the training time (one seed, 10000 images: nothing is claimed about the techniques)"
        in text
    )


def test_two_seeds_may_claim_and_say_what_they_are(plant: Plant, tmp_path: Path) -> None:
    plant("a/one", 0.9, 0.901, images=MANY)
    plant("b/one", 0.7, 0.701, salt=1, images=MANY)
    pair = pair_of(tmp_path, "a/one", "b/one")
    assert pair.claimed
    assert sentence(pair).startswith("a/one is better than b/one by 20.0 points [")
    assert sentence(pair).endswith("(2 seeds x 10000 images)")


def test_equal_techniques_on_many_images_are_the_same_within_a_point(plant: Plant, tmp_path: Path) -> None:
    plant("a/one", 0.800, 0.801, 0.802, 0.800, images=MANY)
    plant("b/one", 0.801, 0.801, 0.800, 0.801, salt=1, images=MANY)
    pair = pair_of(tmp_path, "a/one", "b/one")
    assert not pair.claimed
    assert sentence(pair).startswith("a/one is within 1.0 points of b/one: +0.0 points [-")
    assert max(-pair.difference.low, pair.difference.high) < 0.01
    narrow = pair_of(tmp_path, "a/one", "b/one", margin=0.0005)
    assert not narrow.within
    assert "nor that they are within 0.05 points" in sentence(narrow)


def test_a_small_sure_difference_is_both(plant: Plant, tmp_path: Path) -> None:
    plant("a/one", *[0.804] * 4, images=MANY)
    plant("a/plain", *[0.8] * 4, images=MANY)
    text = sentence(pair_of(tmp_path, "a/one", "a/plain"))
    assert text.startswith("a/one is better than a/plain by 0.4 points [")
    assert "], and within 1.0 points of it;" in text


def test_few_images_say_that_images_are_what_it_takes(plant: Plant, tmp_path: Path) -> None:
    plant("a/one", 0.8, 0.81, 0.8)
    plant("b/one", 0.8, 0.8, 0.79, salt=1)
    assert "to see 1.0 points it takes more test images, not more seeds" in sentence(
        pair_of(tmp_path, "a/one", "b/one")
    )


def test_unsteady_seeds_give_a_range_with_its_level(plant: Plant, tmp_path: Path) -> None:
    plant("a/one", 0.80, 0.83, 0.81, images=MANY)
    plant("b/one", 0.82, 0.79, 0.82, salt=1, images=MANY)
    plant("c/one", 0.70, 0.73, 0.71, salt=2, images=MANY)
    comparison = Comparison.all_of(rows_of(["a/one", "b/one", "c/one"], tmp_path))
    pair = comparison.pairs[0]
    assert [found.claimed for found in comparison.pairs] == [False, True, True]
    assert pair.level == 0.05, "the two clear pairs are claimed already: this one is alone in Holm's order"
    assert pair.needed.low < pair.needed.high
    assert (
        f"to see 1.0 points it takes {pair.needed.low} to {pair.needed.high} seeds in all, as far as 3 seeds can tell "
        "(level 0.05)" in sentence(pair)
    )


def test_probably_is_said_only_where_the_whole_range_allows_it(plant: Plant, tmp_path: Path) -> None:
    plant("a/one", *[0.8, 0.801, 0.8, 0.799] * 2, images=MANY)
    plant("b/one", *[0.795, 0.797, 0.796, 0.797] * 2, salt=1, images=MANY)
    pair = pair_of(tmp_path, "a/one", "b/one", margin=0.03)
    assert pair.needed.high <= 8
    plant("c/one", 0.80, 0.815, images=MANY)
    plant("d/one", 0.81, 0.795, salt=1, images=MANY)
    assert "probably" not in sentence(pair_of(tmp_path, "c/one", "d/one", margin=0.03))


def test_twins_are_paired_by_seed_and_others_are_not(plant: Plant, tmp_path: Path) -> None:
    """Seeds that go up and down together cancel between a variant and its baseline, and nowhere else."""
    shifts = [0.0, 0.03, -0.03]
    plant("a/good", *[0.81 + shift for shift in shifts], images=MANY)
    plant("a/plain", *[0.80 + shift for shift in shifts], images=MANY)
    plant("b/other", *[0.81 + shift for shift in shifts], images=MANY)
    plant("a/good", *[0.81 + shift for shift in shifts], images=MANY, backbone="vit")
    rows = rows_of(["a/good backbone=resnet18", "a/good backbone=vit", "a/plain", "b/other"], tmp_path)
    found = {(p.first.split()[0], p.first[-3:] == "vit", p.second): p for p in Comparison.all_of(rows).pairs}
    twin, elsewhere, other = (
        found["a/good", False, "a/plain"],
        found["a/good", True, "a/plain"],
        next(p for p in Comparison.all_of(rows).pairs if (p.first, p.second) == ("a/plain", "b/other")),
    )
    assert twin.twins
    assert twin.claimed
    assert not elsewhere.twins
    assert not other.twins
    assert not other.claimed
    assert "both paired" in twin.difference.over
    assert "images paired" in other.difference.over


def test_unpaired_pairs_use_the_pool_of_all_that_are_compared(plant: Plant, tmp_path: Path) -> None:
    planted = {"a/x": (0.80, 0.81, 0.82), "b/x": (0.78, 0.79, 0.78), "c/x": (0.70, 0.70, 0.72)}
    for place, (label, accuracies) in enumerate(planted.items()):
        plant(label, *accuracies, salt=place)
    rows = rows_of(list(planted), tmp_path)
    pool = Pool.of([row.correct for row in rows])
    assert pool.freedom == 6
    for pair, (one, other) in zip(Comparison.all_of(rows).pairs, [(0, 1), (0, 2), (1, 2)], strict=True):
        assert pair.p == Difference.of(rows[one].correct, rows[other].correct, pool).p_value()


def test_against_adjusts_for_the_pairs_asked_for(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place, label in enumerate(("a/x", "b/x", "c/x", "d/x")):
        plant(label, 0.8, 0.82, 0.81, salt=place)
    compare(["a/x", "b/x", "c/x"], tmp_path, "json", against="d/x")
    found = json.loads(capsys.readouterr().out)
    assert [(one["first"], one["second"]) for one in found] == [("a/x", "d/x"), ("b/x", "d/x"), ("c/x", "d/x")]
    least = min(found, key=lambda one: one["p"])
    assert least["p_holm"] == pytest.approx(min(1, 3 * least["p"]))
    assert {one["family"] for one in found} == {"each name given against d/x"}
    compare(["a/x"], tmp_path, "text", against="d/x")
    assert "Holm: adjusted for 1 pair, each name given against d/x" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(UsageError, match="--against another"):
        compare(["a/x"], tmp_path, "text")


def test_intervals_beside_adjusted_claims_are_said_to_be_unadjusted(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant("a/x", 0.8, 0.82)
    plant("a/plain", 0.8, 0.82, salt=1)
    compare(["a/x", "a/plain"], tmp_path, "md")
    assert "not adjusted for the number of pairs" in capsys.readouterr().out
    assert any("95 % each, not adjusted" in note for note in footnotes(group_of(tmp_path)))


def test_the_same_trials_under_two_names_count_once(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.82, 0.81)
    for folder in Store(tmp_path).finished():
        folder.add_labels([Label.of("z/same")])
    plant("b/x", 0.8, 0.79, 0.81, salt=1)
    plant("c/x", 0.81, 0.79, 0.81, salt=2)
    comparison = Comparison.all_of(rows_of(["a/x", "z/same", "b/x", "c/x"], tmp_path))
    assert len(comparison.pairs) == 5
    assert comparison.tests == 3
    by_names = {(pair.first, pair.second): pair for pair in comparison.pairs}
    assert by_names["a/x", "b/x"].p_holm == by_names["z/same", "b/x"].p_holm
    least = min(comparison.pairs, key=lambda pair: pair.p)
    assert least.p_holm == pytest.approx(min(1, 3 * least.p))
    assert len(comparison.refused) == 1


def test_leaderboard_report_and_compare_claim_the_same(plant: Plant, tmp_path: Path) -> None:
    names = ["a/x", "a/plain", "b/x", "b/plain"]
    for place, label in enumerate(names):
        plant(label, *(0.78 + 0.02 * place + 0.01 * np.array([0, 1, -1])), salt=place)
    group = group_of(tmp_path)
    asked = {frozenset(pair.ids): pair for pair in Comparison.all_of(rows_of(names, tmp_path)).pairs}
    assert len(asked) == len(group.compared.pairs) == 6
    for pair in group.compared.pairs:
        assert pair.p_holm == pytest.approx(asked[frozenset(pair.ids)].p_holm)
    notes = footnotes(group)
    assert "claims: Holm: adjusted for 6 pairs, all pairs of the rows" in notes
    assert [sentence(pair) for pair in group.differences] == notes[:2]
    assert {pair.ids for pair in group.differences} <= {pair.ids for pair in group.compared.pairs}


def test_more_rows_than_are_compared_have_their_baselines_too(plant: Plant, tmp_path: Path) -> None:
    for place in range(COMPARED + 1):
        plant(f"t{place}/x", 0.9 - 0.01 * place, salt=place)
    plant("t0/plain", 0.5)
    group = group_of(tmp_path)
    assert group.compared.tests == COMPARED * (COMPARED - 1) // 2 + 1
    assert group.compared.family == f"all pairs of the best {COMPARED} rows, and each row against its baseline"


def test_a_seed_far_off_is_named_where_its_row_is(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant("a/good", 0.8, 0.81, 0.3, 0.8)
    plant("a/plain", 0.7, 0.71, 0.7, 0.72)
    words = "seed 2 of a/good lies far off: 30.0 %, the others 80.0 to 81.0 %; the interval presumes that such seeds are not rare"
    assert f"  {words}" in sentences(Comparison.all_of(rows_of(["a/good", "a/plain"], tmp_path)))
    group = group_of(tmp_path)
    assert words in footnotes(group)
    assert f"S{words[1:]}." in _verdicts(group, Answer.of(group))
    (row,) = [row for row in group.rows if row.name == "a/good"]
    assert far_off(row.far_seed) == words
    compare(["a/good", "a/plain"], tmp_path, "json")
    assert json.loads(capsys.readouterr().out)[0]["far_seeds"] == [words]


def test_techniques_without_chance_are_tested_on_images_alone(plant: Plant, tmp_path: Path) -> None:
    for seed in range(3):
        store_trial(tmp_path, "a/fixed", seed, outcomes(0, 0.9))
        store_trial(tmp_path, "b/fixed", seed, outcomes(1, 0.8))
    pair = pair_of(tmp_path, "a/fixed", "b/fixed")
    assert pair.agree
    assert pair.p == pair.mcnemar[0]
    assert pair.claimed
    assert sentence(pair).endswith("(3 seeds that agree on all 400 images)")


def test_searched_and_unsearched_are_not_compared(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81)
    plant("b/x", 0.9, 0.91, protocol=Protocol(search=20))
    (line,) = sentences(Comparison.all_of(rows_of(["a/x", "b/x"], tmp_path)))
    assert line == (
        "a/x and b/x cannot be compared: other search budget: none against best of 20 configurations on validation"
    )


def test_the_report_says_the_three_answers_about_its_best_row(plant: Plant, tmp_path: Path) -> None:
    plant("a/best", 0.8021, 0.8020, 0.8022, 0.8021, images=MANY)
    plant("b/same", 0.8018, 0.8017, 0.8016, 0.8018, salt=1, images=MANY)
    plant("c/open", 0.805, 0.789, 0.797, 0.797, salt=2, images=MANY)
    plant("d/worse", 0.600, 0.601, 0.602, 0.600, salt=3, images=MANY)
    group = group_of(tmp_path)
    first, better, same, unknown, *_ = _verdicts(group, Answer.of(group))
    assert first.startswith("a/best has the highest test accuracy")
    assert better.startswith("It is better than d/worse (+20.1 points [")
    assert same.startswith("It is within 1.0 points of b/same (+0.0 points [")
    assert unknown.startswith("No difference can be claimed between it and c/open (+0.5 points [")


def test_leaderboard_and_report_take_the_margin_too(
    plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant("a/x", 0.800, 0.801, 0.802, images=2000)
    plant("a/plain", 0.801, 0.800, 0.801, images=2000)
    for margin, words in ((5.0, "a/x is within 5.0 points of a/plain"), (0.05, "nor that they are within 0.05 points")):
        print_leaderboard(tmp_path, "md", trials=False, margin=margin)
        assert words in capsys.readouterr().out
    report(tmp_path, tmp_path / "report.html", 0.05)
    assert words in (tmp_path / "report.html").read_text()
