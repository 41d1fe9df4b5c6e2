"""The answer, on planted stores: what it says first, what it never says, and what it advises."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stored import outcomes, store_trial

from flowers_bench.cli.answer import answer as answer_command
from flowers_bench.cli.report import report
from flowers_bench.report.answer import Answer, answers, steps
from flowers_bench.report.comparison_text import what_would_help
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.text import footnotes
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import Label
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import write_json

MANY = 10_000
GLOSSARY = (Path(__file__).parents[2] / "docs" / "glossary.md").read_text()


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., list[TrialFolder]]:
    """Store a technique's seeds with these accuracies; other `salt`, other images are right."""

    def store(label: str, *accuracies: float, salt: int = 0, images: int = 400, **given: object) -> list[TrialFolder]:
        return [
            store_trial(tmp_path, label, seed, outcomes(100 * salt + seed, accuracy, images), **given)
            for seed, accuracy in enumerate(accuracies)
        ]

    return store


Plant = Callable[..., list[TrialFolder]]


def untrained(folders: list[TrialFolder], **cost: object) -> None:
    """Make trials of a network that has learned nothing of them; `cost` is added to theirs."""
    for folder in folders:
        (folder.path / "history.jsonl").unlink()
        result = json.loads((folder.path / "result.json").read_text())
        result |= {"best_epoch": 0, "cost": {**result["cost"], "epochs": 0, **cost}}
        write_json(folder.path / "result.json", result)


def answer_of(root: Path, **given: str) -> Answer:
    contents = Store(root).read()
    assert not contents.damaged
    (found,) = answers(Leaderboard.of(contents.finished), contents.unfinished, **given)
    return found


def test_one_row_has_nothing_beside_it(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81, 0.82)
    found = answer_of(tmp_path)
    (only,) = found.sentences()
    assert re.fullmatch(
        r"a/x has the highest test accuracy: 81\.0 % \[7.*\] \(3 seeds x 400 test images\); nothing else was run that it "
        r"can be compared with\.",
        only,
    )
    assert found.cheapest is None


def test_one_seed_claims_nothing_and_asks_for_more(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.9)
    plant("b/x", 0.6)
    plant("c/x", 0.895)
    found = answer_of(tmp_path)
    assert {one.verdict for one in found.against} == {"open"}
    text = " ".join(found.sentences())
    assert "better" not in text
    assert "This training of it was right more often than this training of b/x (+30.0 points [" in text, (
        "what was seen is said, of these trainings"
    )
    assert "which claims nothing about the techniques" in text
    assert "No difference can be claimed between it and c/x (+0.5 points [" in text
    assert "--seeds 3" in found.steps[0].command


def test_equal_techniques_are_said_to_be_the_same(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8021, 0.8020, 0.8022, 0.8021, images=MANY, seconds=100.0)
    plant("b/x", 0.8018, 0.8017, 0.8016, 0.8018, salt=1, images=MANY, seconds=50.0)
    found = answer_of(tmp_path)
    assert [one.verdict for one in found.against] == ["within"]
    assert found.cheapest is not None
    assert found.cheapest.name == "b/x"
    _, same, cheap, claims = found.sentences()
    assert same.startswith("It is within 1.0 points of b/x (+0.0 points [")
    assert ", a claimed difference)" in same, "many images see a difference that does not matter"
    assert cheap == "The cheapest of these is b/x: 50.0 s of training; a/x takes 100.0 s."
    assert claims == "Claims: Holm: adjusted for 1 pair, all pairs of the rows."


def test_a_clear_winner_is_named_with_what_it_wins_by(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.90, 0.91, 0.90)
    plant("b/x", 0.70, 0.71, 0.70, salt=1)
    plant("c/x", 0.50, 0.51, 0.50, salt=2)
    found = answer_of(tmp_path)
    assert [one.verdict for one in found.against] == ["better", "better"]
    assert found.cheapest is None
    assert re.match(r"It is better than all others: b/x \(\+20\.0 points \[\+1.*\]\), c/x \(\+40", found.sentences()[1])
    assert found.steps[0].command == f"flowers-bench predict {found.best.trial} PHOTO.jpg"


def test_a_tie_goes_with_its_cheapest_and_what_would_decide_it(plant: Plant, tmp_path: Path) -> None:
    plant("slow/x", 0.815, 0.800, 0.805, images=MANY, seconds=600.0)
    plant("quick/x", 0.809, 0.795, 0.811, salt=1, images=MANY, seconds=3.0)
    found = answer_of(tmp_path)
    (against,) = found.against
    assert against.verdict == "open"
    _, undecided, cheap, _ = found.sentences()
    assert what_would_help(against.pair) in undecided
    assert re.search(r"it takes \d+ (to \d+ )?seeds", undecided)
    assert cheap == "The cheapest of these is quick/x: 3.0 s of training; slow/x takes 10.0 min."
    words = shlex.split(found.steps[0].command)
    assert words[-2] == "--seeds", "the two come from two commands, of which --decide would be about neither pair"
    assert 3 < int(words[-1]) <= 30
    chosen = next(step for step in found.steps if "predict" in step.command)
    assert found.cheapest is not None
    assert found.cheapest.trial in chosen.command


def test_techniques_of_one_command_are_decided_by_it(plant: Plant, tmp_path: Path) -> None:
    ran = {"run": {"command": ["--plugin", "slow/x,quick/x", "--seeds=3", "--out", "old", "--set", "lr=1"]}}
    plant("slow/x", 0.815, 0.800, 0.805, images=MANY, **ran)
    plant("quick/x", 0.809, 0.795, 0.811, salt=1, images=MANY, **ran)
    more = [step.command for step in answer_of(tmp_path, store="else where").steps if "more seeds" in step.purpose]
    assert more == ["flowers-bench --plugin slow/x,quick/x --set lr=1 --decide 1 --store 'else where'"]


def test_the_floor_is_named_as_what_it_is(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.9, 0.9, 0.91)
    untrained(plant("knn/untrained", 0.35, 0.36, 0.35, salt=1))
    text = " ".join(answer_of(tmp_path).sentences())
    assert "It is better than knn/untrained, a network that has learned nothing, (+55.0 points [" in text


def test_what_is_built_of_finished_trials_has_learned_something(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.9, 0.9, 0.91)
    untrained(plant("soup/uniform", 0.35, 0.36, 0.35, salt=1), inherited={"0" * 16: 3.0})
    assert "learned nothing" not in " ".join(answer_of(tmp_path).sentences())


def test_at_chance_nothing_is_best(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.26, 0.25, 0.25)
    plant("b/x", 0.24, 0.25, 0.25, salt=1)
    found = answer_of(tmp_path)
    assert found.nothing_learned
    assert found.cheapest is None
    first = found.sentences()[0]
    assert first.startswith("Nothing is shown to have learned anything: a/x has the highest test accuracy, 25.3 % [")
    assert first.endswith("who always names the most frequent class is right in 25.0 %.")
    assert not any("predict" in step.command for step in found.steps)


def test_what_does_not_beat_the_floor_has_learned_nothing(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.41, 0.40, 0.40)
    untrained(plant("knn/untrained", 0.40, 0.41, 0.40, salt=1))
    found = answer_of(tmp_path).sentences()
    assert found[0].startswith("Nothing is shown to have learned anything")
    assert not any("cheapest" in sentence for sentence in found)


def test_others_at_chance_are_named(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81, 0.8)
    plant("b/x", 0.25, 0.25, 0.26, salt=1)
    assert "b/x is not shown to be better than a guess (25.0 %)." in answer_of(tmp_path).sentences()


def test_failed_and_unfinished_trials_are_counted(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81, 0.8)
    for folder in plant("b/broken", 0.8, 0.8):
        (folder.path / "result.json").unlink()
        write_json(folder.path / "failure.json", {"kind": "TrialFailed", "error": "the loss is nan"})
    (waiting,) = plant("c/waiting", 0.8)
    (waiting.path / "result.json").unlink()
    plant("d/elsewhere", 0.8, dataset={"name": "garden"})[0].path.joinpath("result.json").unlink()
    found = answer_of(tmp_path)
    assert found.missing == (
        "Not in this answer, because they failed: b/broken (2 trials).",
        "Not in this answer, because they are not finished: c/waiting (1 trial).",
    )


def test_each_dataset_has_an_answer_of_its_own(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81, 0.8)
    plant("a/x", 0.7, 0.71, 0.7, dataset={"name": "garden"})
    plant("b/x", 0.9, 0.91, 0.9, dataset={"name": "garden"})
    board = Leaderboard.of(Store(tmp_path).finished())
    found = {one.title.partition(":")[0]: one for one in answers(board)}
    assert {name: one.best.name for name, one in found.items()} == {"garden": "b/x", "meadow": "a/x"}
    together = steps(list(found.values()), "runs")
    assert sum("report" in step.command for step in together) == 1


def test_one_training_of_two_names_is_one(plant: Plant, tmp_path: Path) -> None:
    for folder in plant("a/x", 0.9, 0.91, 0.9):
        folder.add_labels([Label.of("z/same")])
    plant("b/x", 0.6, 0.61, 0.6)
    found = answer_of(tmp_path)
    assert found.best.name == "a/x = z/same"
    assert [one.other.name for one in found.against] == ["b/x"]


def test_a_seed_far_off_is_named(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81, 0.3, 0.8)
    plant("a/plain", 0.5, 0.51, 0.5, 0.5)
    assert any(text.startswith("Seed 2 of a/x lies far off") for text in answer_of(tmp_path).sentences())


def test_times_of_different_machines_choose_no_cheapest(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.80, 0.81, 0.80, seconds=100.0)
    for folder in plant("b/x", 0.80, 0.80, 0.81, salt=1, seconds=50.0):
        path = folder.path / "result.json"
        result = json.loads(path.read_text())
        write_json(path, {**result, "hardware": {**result["hardware"], "processor": "Difference engine"}})
    found = answer_of(tmp_path)
    assert found.cheapest is None
    assert "Which of these is the cheapest is not known: they ran on different machines." in found.sentences()


def test_many_rows_are_few_words(plant: Plant, tmp_path: Path) -> None:
    for place in range(14):
        plant(f"t{place}/x", *(0.9 - 0.02 * place + 0.005 * np.array([0, 1, -1])), salt=place)
    found = answer_of(tmp_path)
    assert len(found.against) == 11
    assert len(found.apart) == 2
    assert "Not compared with it: t12/x, t13/x." in found.sentences()
    assert max(text.count(" points [") for text in found.sentences()) <= 6
    assert " more." in " ".join(found.sentences())


def test_nothing_is_said_twice(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81, 0.3, 0.8)
    plant("a/plain", 0.5, 0.51, 0.5, 0.5)
    plant("b/x", 0.6, 0.61, 0.6, 0.6, salt=1)
    plant("b/plain", 0.4, 0.41, 0.4, 0.4, salt=2)
    (group,) = Leaderboard.of(Store(tmp_path).finished()).groups
    found = answer_of(tmp_path)
    below = footnotes(group, found)
    assert [note.partition(" by ")[0] for note in below if "better than" in note] == ["b/x is better than b/plain"]
    assert not any(note.startswith("claims") or "far off" in note for note in below)
    said = [text.lower() for text in (*found.sentences(), *below)]
    assert len(set(said)) == len(said)


def test_every_answer_qualifies_its_best(plant: Plant, tmp_path: Path) -> None:
    """Whatever the accuracies: an interval and its basis stand beside the name, and each other row has a verdict."""
    rng = np.random.default_rng(0)
    for place in range(6):
        plant(f"t{place}/x", *rng.uniform(0.2, 0.95, 2), salt=place)
    found = answer_of(tmp_path)
    assert re.search(r"\d % \[\d+\.\d, \d+\.\d\] \(2 seeds x 400 test images\)", found.sentences()[0])
    text = " ".join(found.sentences()[1:])
    assert all(f"{one.other.name} (" in text for one in found.against)


def test_the_terms_are_in_the_glossary() -> None:
    terms = re.findall(r"^\| ([^|]+) \|", GLOSSARY, re.M)
    words = {word.strip() for term in terms for word in re.split(r"[,(]", term)}
    assert {"answer", "cannot be told apart", "point", "seed", "claimed", "within", "guess", "95 % interval"} <= words
    assert "Holm's correction" in words


@pytest.mark.parametrize("format", ["text", "md", "json"])
def test_the_command_prints_it(plant: Plant, tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str) -> None:
    plant("a/x", 0.9, 0.91, 0.9)
    plant("b/x", 0.6, 0.61, 0.6)
    assert answer_command(tmp_path, str(tmp_path), format) == 0
    printed = capsys.readouterr().out
    assert "a/x has the highest test accuracy: 90.3 % [" in printed
    assert f"report --store {tmp_path}" in printed
    if format == "json":
        (record,) = json.loads(printed)
        assert record["best"]["name"] == "a/x"
        assert [(one["name"], one["verdict"]) for one in record["compared"]] == [("b/x", "better")]
        assert record["compared"][0]["difference"] == pytest.approx(0.3, abs=0.01)


def test_an_empty_store_and_an_unknown_format_are_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no finished trials"):
        answer_command(tmp_path, "runs", "text")
    with pytest.raises(UsageError, match="unknown format"):
        answer_command(tmp_path, "runs", "pdf")


def test_the_page_begins_with_it(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.9, 0.91, 0.9)
    plant("b/x", 0.6, 0.61, 0.6)
    report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    place = page.index("The answer</h3>")
    assert "a/x has the highest test accuracy: 90.3 % [" in page[place : place + 300]
    assert place < page.index("-board") or page.index("<table") > place


def test_a_page_that_is_written_is_not_advised(plant: Plant, tmp_path: Path) -> None:
    plant("a/x", 0.8, 0.81, 0.82)
    found = [answer_of(tmp_path)]
    advised = [step.command for step in steps(found, "runs")]
    assert advised[-1] == "flowers-bench report -o report.html"
    assert [step.command for step in steps(found, "runs", reported=True)] == advised[:-1]
