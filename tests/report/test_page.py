"""The page as text: complete, self-contained, and nothing in it taken for markup that was a name."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from stored import add_stress, outcomes, store_trial

from flowers_bench.cli.report import report
from flowers_bench.report.disagreement import Disagreement, vote
from flowers_bench.report.explorer import hardest
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.plots import curve, reliability, sweeps
from flowers_bench.store.folder import Store
from flowers_bench.store.records import Epoch
from flowers_bench.util.errors import UsageError


@pytest.fixture(scope="module")
def text(page_file: Path) -> str:
    return page_file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data(text: str) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1))


def test_every_trial_is_there_with_its_command(text: str, runs: Path) -> None:
    for folder in Store(runs).finished():
        assert folder.id in text
    assert "flowers-bench --plugin wise/good" in text


def test_the_share_of_time_that_waits_for_data_is_a_cost(text: str, data: dict) -> None:
    assert "waiting for data %" in html.unescape(text)
    costs = [row["costs"]["data_wait_share"] for group in data.values() for row in group["rows"]]
    assert set(costs) == {0.0123, 0.2}
    assert re.search(r"<td[^>]*>\s*1\.2\s*</td>", text)


def test_failed_trials_are_not_hidden(text: str) -> None:
    assert "wise/broken" in text
    assert "the loss is nan" in text


def test_failed_attempts_and_searches_are_in_the_total(tmp_path: Path) -> None:
    done, failed = (store_trial(tmp_path, f"wise/{name}", 0, outcomes(0, 0.8)) for name in ("good", "broken"))
    (failed.path / "result.json").unlink()
    tried = store_trial(Store(tmp_path).of_searches().root, "wise/good", 0, outcomes(0, 0.8))
    done.note_attempt(30, "failed")
    done.note_attempt(20, "done")
    failed.note_attempt(7, "failed")
    tried.note_attempt(4, "done")
    report(tmp_path, tmp_path / "report.html")
    assert "61.0 s of work in all, failed attempts and searches included" in (tmp_path / "report.html").read_text()


def test_names_are_never_markup(text: str) -> None:
    assert "<img src=x" not in text
    assert "<script>window" not in text
    assert html.escape("<img src=x onerror=window.hacked=1>") in text


def test_nothing_refers_to_elsewhere(text: str) -> None:
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert not re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', markup)
    assert "default-src 'none'" in markup
    assert "@import" not in markup
    assert "url(" not in markup


def test_plots_have_the_stored_figures(data: dict) -> None:
    (group,) = [g for g in data.values() if any(row["stress"] for row in g["rows"])]
    row = next(row for row in group["rows"] if row["name"] == "wise/good")
    assert row["stress"]["rotation"]["levels"] == [0, 1, 2, 3, 4, 5]
    assert row["stress"]["rotation"]["mean"][:2] == pytest.approx([0.8, 0.695])
    assert row["curves"]["train_loss"]["mean"] == [2.0, 1.0, 0.6667]
    assert row["costs"]["seconds"] == 90
    assert row["reliability"]["raw"] is None, "trials with a temperature and no ECE have no probabilities before it"
    assert sum(row["reliability"]["scaled"]["n"]) == 2 * 400


def test_examples_show_what_they_say(data: dict, runs: Path) -> None:
    (group,) = [g for g in data.values() if any(row["stress"] for row in g["rows"])]
    row = next(row for row in group["rows"] if row["name"] == "wise/good")
    folder = next(f for f in Store(runs).finished() if f.labels()[0].text == "wise/good" and f.result().stress)
    scores = folder.scores()
    predicted = dict(zip(scores.keys, scores.logits.argmax(1), strict=True))
    labels = dict(zip(scores.keys, scores.labels, strict=True))
    assert row["wrong"]
    assert all(predicted[image["key"]] != labels[image["key"]] for image in row["wrong"])
    assert all(predicted[image["key"]] == labels[image["key"]] for image in row["right"])
    assert all(labels[key] == pair["label"] for pair in row["confused"] for key in pair["mistaken"])
    recognised = [predicted[key] == 1 for key in scores.keys if labels[key] == 1]
    assert row["per_class"][1][0] == len(recognised)
    assert row["per_class"][1][1] == pytest.approx(sum(recognised) / len(recognised), abs=0.1), "one of its two seeds"
    assert group["images"][row["wrong"][0]["key"]].startswith("data:image/webp;base64,")


def test_without_the_images_the_page_says_so(tmp_path: Path) -> None:
    store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.8))
    report(tmp_path, tmp_path / "report.html")
    assert "the images are not at hand: nowhere is not there" in (tmp_path / "report.html").read_text()


def test_mistakes_are_explained(tmp_path: Path, runs: Path) -> None:
    with pytest.raises(UsageError, match="no finished trials"):
        report(tmp_path, tmp_path / "report.html")
    with pytest.raises(UsageError, match="there is no folder"):
        report(runs, tmp_path / "not" / "there.html")


def test_one_seed_colours_nothing_and_is_marked(tmp_path: Path) -> None:
    """Nor does it end up in the answer as a claim."""
    for label, accuracy in (("wise/good", 0.95), ("wise/plain", 0.6)):
        store_trial(tmp_path, label, 0, outcomes(0, accuracy))
    report(tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    matrix = re.search(r'<table class="matrix">(.*?)</table>', text, re.S).group(1)
    assert re.findall(r'<td class="(\w+)" data-column="\d" style="--strength: (\d+)%">', matrix) == [("open", "0")] * 2
    assert matrix.count("<span>one seed</span>") == 2
    assert "nothing is claimed about the techniques" in text
    verdicts = re.search(r"The answer</h3>(.*?)</div>", text, re.S).group(1)
    assert "This training of it was right more often than this training of wise/plain (" in verdicts
    assert "which claims nothing about the techniques" in verdicts
    assert "better" not in verdicts


def test_several_seeds_colour_what_is_claimed(text: str) -> None:
    matrices = re.findall(r'<table class="matrix">(.*?)</table>', text, re.S)
    assert any('<td class="won"' in matrix and '<td class="lost"' in matrix for matrix in matrices)


def test_an_unreadable_picture_does_not_stop_the_page(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(runs, tmp_path / "runs")
    next(copy.glob("*/figures/sampling.png")).write_bytes(b"no picture")
    assert report(copy, tmp_path / "report.html") == 1
    assert "sampling.png cannot be read: it is no PNG" in capsys.readouterr().err
    assert 'alt="sampling' not in re.sub(r"<script.*?</script>", "", (tmp_path / "report.html").read_text(), flags=re.S)


def test_curve_of_seeds_that_stopped_at_different_epochs() -> None:
    histories = [
        [Epoch.read({"epoch": 1, "val_nll": value}) for value in values] for values in ([1.0, 3.0, None], [2.0])
    ]
    assert curve(histories, lambda epoch: epoch.val_nll) == {"mean": [1.5, 3.0], "low": [1.0, 3.0], "high": [2.0, 3.0]}
    assert curve([[]], lambda epoch: epoch.val_nll) == {"mean": [], "low": [], "high": []}


def test_hardest_images_are_of_several_classes(runs: Path) -> None:
    rows = next(g.rows for g in Leaderboard.of(Store(runs).finished()).groups if g.title.startswith("meadow"))
    found = hardest(rows)
    assert [image.share for image in found][:4] == ["0"] * 4
    assert max(Counter(image.label for image in found).values()) == 2


def test_reliability_counts_every_prediction_once(runs: Path) -> None:
    (row,) = [r for g in Leaderboard.of(Store(runs).finished()).groups for r in g.rows if r.name == "wise/plain"]
    raw = reliability(row)["raw"]
    assert sum(raw["n"]) == row.confidence.size
    weighted = sum(n * a for n, a in zip(raw["n"], raw["accuracy"], strict=True) if n)
    assert weighted / row.confidence.size == pytest.approx(row.top1.value, abs=1e-3)


def test_bins_of_a_reliability_diagram_are_alike_and_have_wilsons_interval(tmp_path: Path) -> None:
    store_trial(tmp_path, "wise/good", 0, outcomes(0, 0.8))
    ((row,),) = [group.rows for group in Leaderboard.of(Store(tmp_path).finished()).groups]
    raw = reliability(row)["raw"]
    assert raw["n"] == [40] * 10
    assert raw["confidence"] == sorted(raw["confidence"])
    for n, share, low, high in zip(raw["n"], raw["accuracy"], raw["low"], raw["high"], strict=True):
        wilson = binomtest(round(n * share), n).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((wilson.low, wilson.high), abs=1e-3)


def test_seeds_vote_and_the_first_decides() -> None:
    predicted = np.array([[0, 1, 2, 3], [1, 1, 0, 2], [1, 2, 1, 2]])
    assert vote(predicted).tolist() == [1, 1, 2, 2]


def test_the_hardest_images_are_kept_where_not_all_fit(runs: Path) -> None:
    rows = next(g.rows for g in Leaderboard.of(Store(runs).finished()).groups if g.title.startswith("meadow"))
    everything, some = Disagreement.of(rows, 1 << 20), Disagreement.of(rows, 3000)
    assert everything.kept["of"] == len(everything.places) == 400
    assert 20 < len(some.places) < 200
    assert sum(map(len, (*some.kept["keys"], some.kept["labels"], *some.votes[0].values()))) < 3000
    share = np.mean([row.correct.mean(0) for row in rows], axis=0)
    assert share[some.places].max() <= np.delete(share, some.places).min()


def test_two_stores_make_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seeds in (("one", (0, 1)), ("two", (1, 2))):
        for seed in seeds:
            store_trial(tmp_path / name, "wise/good", seed, outcomes(seed, 0.8))
    store_trial(tmp_path / "two", "wise/plain", 0, outcomes(0, 0.7))
    stores = {"the second": tmp_path / "two"}
    assert report(tmp_path / "one", tmp_path / "report.html", store="the first", beside=stores) == 0
    assert "report.html: 4 trials" in capsys.readouterr().out
    text = (tmp_path / "report.html").read_text()
    (group,) = json.loads(re.search(r'id="data">(.*?)</script>', text, re.S).group(1)).values()
    assert [(row["name"], row["seeds"]) for row in group["rows"]] == [("wise/good", 3), ("wise/plain", 1)]
    details = re.search(r'<details class="row" id="g0r0".*?</details>', text, re.S).group()
    assert re.findall(r"<td>(the \w+)</td>", details) == ["the first", "the first", "the second"]


def test_of_a_trial_in_two_stores_the_richer_one_is_shown(tmp_path: Path) -> None:
    for name in ("one", "two"):
        folder = store_trial(tmp_path / name, "wise/good", 0, outcomes(0, 0.8))
    add_stress(folder)
    report(tmp_path / "one", tmp_path / "report.html", beside={"two": tmp_path / "two"})
    assert "Under stress" in (tmp_path / "report.html").read_text()


def test_two_stores_that_disagree_about_a_trial_are_refused(tmp_path: Path) -> None:
    for name, accuracy in (("one", 0.8), ("two", 0.7)):
        store_trial(tmp_path / name, "wise/good", 0, outcomes(0, accuracy))
    with pytest.raises(UsageError, match=r"other predictions in .*two \(test 70.00 %\) than in .*one \(test 80.00 %\)"):
        report(tmp_path / "one", tmp_path / "report.html", beside={"two": tmp_path / "two"})


def test_rows_that_differ_in_one_number_are_a_sweep(tmp_path: Path) -> None:
    for length in (50, 5, 10):
        options = {"prompt_length": length, "deep": False}
        store_trial(tmp_path, f"prompt/p{length}", 0, outcomes(0, 0.6 + length / 500), options=options)
    store_trial(tmp_path, "prompt/deep", 0, outcomes(0, 0.9), options={"prompt_length": 10, "deep": True})
    store_trial(tmp_path, "other/x", 0, outcomes(0, 0.9), options={"prompt_length": 99, "deep": False})
    (group,) = Leaderboard.of(Store(tmp_path).finished()).groups
    (sweep,) = sweeps(group.rows)
    assert sweep["factor"] == "prompt: prompt_length"
    assert sweep["x"] == [5, 10, 50]
    assert [round(100 * top1[1]) for top1 in sweep["top1"]] == [61, 62, 70]


def test_the_page_is_small_before_its_images(text: str) -> None:
    assert len(re.sub(r"data:image/[^\"]*", "", text)) < 1_500_000


def test_a_page_without_images_needs_no_torch(tmp_path: Path) -> None:
    for name in ("rose/plain", "rose/double"):
        store_trial(tmp_path / "runs", name, 0, outcomes(0, 0.7, 60))
    code = (
        "import sys; from pathlib import Path; from flowers_bench.cli.report import report\n"
        f"code = report(Path({str(tmp_path / 'runs')!r}), Path({str(tmp_path / 'page.html')!r}))\n"
        "sys.exit(code or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the images are not at hand" in (tmp_path / "page.html").read_text()
