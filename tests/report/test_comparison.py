"""Comparisons: the right pairs, the right words, and refusals with their reasons."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from stored import outcomes, store_trial

from flowers_bench.cli.compare import compare, rows_of
from flowers_bench.report.comparison import Comparison
from flowers_bench.report.comparison_text import sentence, sentences
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import Protocol
from flowers_bench.util.errors import UsageError


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good` is clearly better than `plain`, `same` is not; `alone` has one seed, of its own."""
    root = tmp_path_factory.mktemp("stored")
    for seed in range(3):
        store_trial(root, "wise/good", seed, outcomes(seed, 0.80 + 0.002 * seed), seconds=90)
        store_trial(root, "wise/plain", seed, outcomes(seed, 0.70))
        store_trial(root, "odd/same", seed, outcomes(10 + seed, 0.70 + 0.01 * (seed - 1)))
    store_trial(root, "odd/alone", 7, outcomes(7, 0.70))
    return root


@pytest.fixture
def runs(stored: Path, tmp_path: Path) -> Path:
    """A copy that a test may add to."""
    return shutil.copytree(stored, tmp_path / "runs")


def test_a_clear_difference_is_claimed_with_its_cost(runs: Path) -> None:
    (pair,) = Comparison.all_of(rows_of(["wise/good", "wise/plain"], runs)).pairs
    assert pair.claimed
    assert pair.difference.value == pytest.approx(0.101, abs=0.002)
    assert pair.won - pair.lost == pytest.approx(400 * pair.difference.value)
    assert pair.time_ratio == pytest.approx(1.5)
    assert "wise/good is better than wise/plain by 10.1 points [" in sentence(pair)
    assert "costs 1.5x the training time" in sentence(pair)


def test_what_trains_nothing_is_no_measure_of_cost(runs: Path) -> None:
    for seed in range(3):
        store_trial(runs, "wise/free", seed, outcomes(seed, 0.60), seconds=0.001)
    (pair,) = Comparison.all_of(rows_of(["wise/good", "wise/free"], runs)).pairs
    assert pair.time_ratio is None
    assert "training time" not in sentence(pair)


def test_the_worse_is_called_worse(runs: Path) -> None:
    (pair,) = Comparison.all_of(rows_of(["wise/plain", "wise/good"], runs)).pairs
    assert "wise/plain is worse than wise/good by 10.1 points [" in sentence(pair)


def test_no_difference_says_what_would_help(runs: Path) -> None:
    (pair,) = Comparison.all_of(rows_of(["odd/same", "wise/plain"], runs)).pairs
    assert not pair.claimed
    text = sentence(pair)
    assert "no difference can be claimed between odd/same and wise/plain, nor that they are within 1.0 points" in text
    assert re.search(r"to see 1\.0 points it takes \d+ to \d+ seeds in all", text)


def test_all_pairs_are_adjusted_together(runs: Path) -> None:
    comparison = Comparison.all_of(rows_of(["wise/good", "wise/plain", "odd/same"], runs))
    assert [(p.first, p.second) for p in comparison.pairs] == [
        ("wise/good", "wise/plain"),
        ("wise/good", "odd/same"),
        ("wise/plain", "odd/same"),
    ]
    assert min(p.p_holm for p in comparison.pairs) == pytest.approx(3 * min(p.p for p in comparison.pairs))


def test_a_trial_id_is_that_seed_alone(runs: Path) -> None:
    trials = {f.labels()[0].text: f.id for f in Store(runs).finished() if f.result().seed == 1}
    ids = [trials["wise/good"], trials["wise/plain"]]
    (pair,) = Comparison.all_of(rows_of([ids[0][:8], ids[1]], runs)).pairs
    assert pair.seeds == (1,)
    assert pair.p == pair.mcnemar[0] == pair.p_holm < 1e-6
    assert not pair.claimed
    assert re.match(
        r"this training of wise/good was right more often than this training of wise/plain on these images: "
        r"\+10\.[0-9] points \[",
        sentence(pair),
    )
    assert "nothing is claimed about the techniques" in sentence(pair)


def test_one_seed_claims_in_no_format(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However clear the difference, and whichever way."""
    store_trial(runs, "lone/best", 7, outcomes(7, 0.95))
    names = ["odd/alone", "lone/best"]
    words = "this training of odd/alone was right less often than this training of lone/best on these images"
    for format in ("text", "md", "csv", "json"):
        compare(names, runs, format)
        printed = capsys.readouterr().out
        assert words in printed
        assert "is better than" not in printed
        assert "is worse than" not in printed
        if format == "json":
            (record,) = json.loads(printed)
            assert record["claimed"] is False
            assert record["p_holm"] < 1e-6
        if format == "csv":
            (line,) = csv.DictReader(io.StringIO(printed))
            assert line["claimed"] == "False"


def test_of_two_that_guess_nothing_is_said_of_more_seeds(tmp_path: Path) -> None:
    for seed in range(3):
        for number, name in enumerate(("wise/one", "wise/two")):
            store_trial(tmp_path, name, seed, outcomes(10 * number + seed, 0.01))
    (pair,) = Comparison.all_of(rows_of(["wise/one", "wise/two"], tmp_path)).pairs
    assert pair.at_chance
    text = sentence(pair)
    assert ("neither is shown to be better than guessing" in text) is not pair.within
    assert "would probably have been seen" not in text


def test_equal_techniques_of_one_seed_are_never_claimed_to_differ(tmp_path: Path) -> None:
    """Two trainings of one technique, on 6,000 images, that differ by more than images explain."""
    store_trial(tmp_path, "wise/one", 0, outcomes(0, 0.82, 6000))
    store_trial(tmp_path, "wise/two", 0, outcomes(1, 0.80, 6000))
    (pair,) = Comparison.all_of(rows_of(["wise/one", "wise/two"], tmp_path)).pairs
    assert pair.p_holm < 0.05
    assert not pair.claimed
    assert "is better than" not in sentence(pair)


def test_only_common_seeds_are_paired(runs: Path) -> None:
    store_trial(runs, "wise/good", 5, outcomes(5, 0.99))
    (pair,) = Comparison.all_of(rows_of(["wise/good", "wise/plain"], runs)).pairs
    assert pair.seeds == (0, 1, 2)
    assert pair.difference.value == pytest.approx(0.101, abs=0.002)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": {"name": "garden"}}, "other dataset: meadow against garden"),
        ({"dataset": {"split_checksum": "6" * 64}}, "other split"),
        ({"dataset": {"notes": ["64 px copies"]}}, "other images: as they are against 64 px copies"),
        ({"dataset": {"fingerprint": "e" * 64}}, "the pixels are not"),
        ({"protocol": Protocol(search=20)}, "other search budget: none against best of 20"),
        ({"dataset": {"n_train": 8}, "protocol": Protocol(shots=2)}, "other split: 40 train"),
        ({"protocol": Protocol(shots=10)}, "shots 10"),  # all that there are: the sizes are the same
    ],
)
def test_what_is_not_comparable_is_refused_with_the_reason(runs: Path, change: dict, words: str) -> None:
    for seed in range(3):
        store_trial(runs, "far/away", seed, outcomes(seed, 0.7), **change)
    comparison = Comparison.all_of(rows_of(["wise/plain", "far/away", "odd/same"], runs))
    assert len(comparison.pairs) == 1
    assert len(comparison.refused) == 2
    assert words in comparison.refused[0].reasons[0]
    assert any("wise/plain and far/away cannot be compared" in line for line in sentences(comparison))
    with pytest.raises(UsageError, match="cannot be compared"):
        compare(["wise/plain", "far/away"], runs, "text")


def test_without_a_common_seed_there_is_no_pair(runs: Path) -> None:
    with pytest.raises(UsageError, match="no seed in common: 7 against 0, 1, 2"):
        compare(["odd/alone", "odd/same"], runs, "text")


def test_other_recipes_are_said(runs: Path) -> None:
    for seed in range(3):
        store_trial(runs, "long/run", seed, outcomes(seed, 0.7), recipe={"epochs": 9}, backbone="vit")
    lines = sentences(Comparison.all_of(rows_of(["long/run", "wise/plain"], runs)))
    assert "not the technique alone: backbone vit / resnet18, epochs 9 / 3" in lines[1]


def test_ambiguous_names_list_what_to_type(runs: Path) -> None:
    for seed in range(3):
        store_trial(runs, "wise/good", seed, outcomes(seed, 0.9), recipe={"epochs": 9})
    with pytest.raises(UsageError, match="names 2 configurations") as error:
        rows_of(["wise/good", "wise/plain"], runs)
    assert "'wise/good epochs=9'" in str(error.value)
    rows = rows_of(["wise/good epochs=9", "wise/good epochs=3"], runs)
    assert [row.name for row in rows] == ["wise/good epochs=9", "wise/good epochs=3"]


def test_of_several_datasets_the_common_one_is_meant(runs: Path) -> None:
    store_trial(runs, "wise/good", 0, outcomes(0, 0.9), dataset={"name": "garden"})
    rows = rows_of(["wise/good", "wise/plain"], runs)
    assert {row.config.dataset.name for row in rows} == {"meadow"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["wise/good"], "two names or more"),
        (["wise/good", "wise/goood"], "Did you mean 'wise/good'"),
        (["wise/good", "wise"], "names 2 variants: wise/good, wise/plain"),
        (["wise/good", "wise/good"], "are the same"),
        (["wise/good", "wise/plain epochs=8"], "was not run with epochs=8"),
        (["wise/good", "deadbeef"], "unknown technique"),
    ],
)
def test_mistakes_are_explained(runs: Path, names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        compare(names, runs, "text")


def test_a_bare_name_is_its_only_variant(runs: Path) -> None:
    store_trial(runs, "lone/one", 0, outcomes(0, 0.9))
    assert [row.name for row in rows_of(["lone", "wise/good"], runs)] == ["lone/one", "wise/good"]


def test_formats_agree(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["wise/good", "wise/plain", "odd/alone"]
    printed = {}
    for format in ("text", "md", "csv", "json"):
        compare(names, runs, format)
        printed[format] = capsys.readouterr().out
    first, *rest = json.loads(printed["json"])
    assert len(rest) == 2
    assert "refused" in rest[0]
    (line, *_) = csv.DictReader(io.StringIO(printed["csv"]))
    assert float(line["difference"]) == first["difference"]
    assert line["mcnemar_p"].split() == [str(p) for p in first["mcnemar_p"]]
    for format in ("text", "md"):
        assert first["sentence"] in printed[format]
        assert "no seed in common" in printed[format]
    with pytest.raises(UsageError, match="unknown format"):
        compare(names, runs, "pdf")


def test_names_from_plugins_stay_text(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in range(2):
        store_trial(runs, "=bad/<b>|x", seed, outcomes(seed, 0.7))
    compare(["=bad/<b>|x", "wise/good"], runs, "md")
    assert "<b>" not in capsys.readouterr().out
    compare(["=bad/<b>|x", "wise/good"], runs, "csv")
    assert "'=bad/<b>|x" in capsys.readouterr().out


def test_leaderboard_compares_each_row_with_its_baseline(runs: Path) -> None:
    (group,) = Leaderboard.of(Store(runs).finished()).groups
    assert [(pair.first, pair.second) for pair in group.differences] == [("wise/good", "wise/plain")]


def test_configurations_of_other_code_are_other_rows(runs: Path) -> None:
    store_trial(runs, "wise/good", 0, outcomes(0, 0.9))
    store_trial(runs, "wise/good", 0, outcomes(0, 0.9), code={"common": "flowers-bench 0.2.0"})
    (group,) = Leaderboard.of(Store(runs).finished()).groups
    assert len({row.name for row in group.rows}) == len(group.rows) == 5
    assert all(len(set(row.seeds)) == len(row.seeds) for row in group.rows)


def test_reading_results_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from flowers_bench.cli.compare import compare\n"
        f"compare(['wise/good', 'wise/plain'], Path({str(runs)!r}), 'text'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_scores_are_the_stored_predictions(runs: Path) -> None:
    folder = Store(runs).finished()[0]
    table = folder.predictions()
    table = table[table["split"] == "test"]
    scores = folder.scores()
    assert list(scores.keys) == list(table["key"])
    assert np.array_equal(scores.logits, np.stack(list(table["logits"])))
    (folder.path / "predictions.parquet").write_bytes(b"PAR1 damaged")
    with pytest.raises(UsageError, match=r"predictions\.parquet cannot be read"):
        folder.scores()
