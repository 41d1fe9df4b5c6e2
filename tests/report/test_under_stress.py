"""Who stands change better: the difference, how it grows, and who must not be asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from stored import outcomes, store_trial

from flowers_bench.cli.compare import compare, rows_of
from flowers_bench.report.leaderboard import Leaderboard
from flowers_bench.report.plots import series
from flowers_bench.report.robustness import records, sentences, sheet, under_stress
from flowers_bench.report.text import markdown
from flowers_bench.store.folder import Store

CLEAN = 0.8


def stressed(root: Path, label: str, seed: int, loss: float, revision: int = 1, sweep: bool = True) -> None:
    """A trial that loses `loss` of its accuracy from one level of rotation to the next, and none under blur."""
    names = [f"test/{i:05}" for i in range(400)]
    tables, points = [], {}
    kinds = {"rotation": (400, loss), "blur": (400, 0.0), **({"factor elastic": (100, loss)} if sweep else {})}
    for kind, (count, step) in kinds.items():
        points[kind] = []
        for level in range(1, 6):
            correct = outcomes(seed, CLEAN - level * step)[:count]
            tables.append(
                pd.DataFrame({"kind": kind, "level": level, "value": 1.0, "key": names[:count], "correct": correct})
            )
            points[kind].append({"level": level, "label": f"{level}", "top1": float(correct.mean())})
    result: dict[str, Any] = {
        "stress_revision": revision,
        "stress": points,
        "robustness": {"rotation": 0.5, "blur": CLEAN},
    }
    folder = store_trial(root, label, seed, outcomes(seed, CLEAN), result=result)
    table = pd.concat(tables).sample(frac=1, random_state=0)
    table.to_parquet(folder.path / "stress.parquet", index=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("stressed")
    for seed in range(3):
        stressed(root, "wise/good", seed, 0.02)
        stressed(root, "wise/plain", seed, 0.08)
        store_trial(root, "wise/unmeasured", seed, outcomes(seed, 0.7))
    stressed(root, "wise/older", 0, 0.02, revision=0)
    return root


def test_who_loses_less_gains_on_the_other(runs: Path) -> None:
    found = under_stress(*rows_of(["wise/good", "wise/plain"], runs))
    assert found is not None
    rotation, blur, elastic = found.kinds
    assert (rotation.weakest, rotation.strongest) == ("none", "5")
    assert rotation.difference.value == pytest.approx(3 * 0.06, abs=0.01)
    assert rotation.growth.value == pytest.approx(5 * 0.06, abs=0.01)
    assert rotation.growth.low > 0
    assert rotation.claimed
    assert blur.growth.value == blur.difference.value == 0
    assert not blur.claimed
    assert elastic.weakest == "1", "a factor is never absent"
    assert elastic.growth.n_images == 100
    assert sentences(found)[0].startswith("from none to 5 of rotation, wise/good gains 30.0 points on wise/plain [")


def test_the_difference_is_taken_image_by_image(runs: Path) -> None:
    """Against the same figure written out from the tables."""
    found = under_stress(*rows_of(["wise/good", "wise/plain"], runs))
    assert found is not None
    tables = {folder.labels()[0].text: [] for folder in Store(runs).finished()}
    for folder in Store(runs).finished():
        if folder.stressed():
            tables[folder.labels()[0].text].append(folder.stress())
    means = [
        np.mean([t[t["kind"] == "rotation"]["correct"].mean() for t in tables[label]])
        for label in ("wise/good", "wise/plain")
    ]
    assert found.kinds[0].difference.value == pytest.approx(means[0] - means[1])


def test_what_was_not_measured_alike_is_not_compared(runs: Path) -> None:
    assert under_stress(*rows_of(["wise/good", "wise/unmeasured"], runs)) is None
    assert under_stress(*rows_of(["wise/good", "wise/older"], runs)) is None


def test_figures_of_another_revision_are_as_if_not_measured(runs: Path) -> None:
    (group,) = Leaderboard.of(Store(runs).finished()).groups
    rows = {row.name: row for row in group.rows}
    assert rows["wise/older"].mean("robustness", "rotation") is None
    assert series(rows["wise/older"])["stress"] == {}
    assert rows["wise/good"].mean("robustness", "rotation") == 0.5


def test_one_seed_gives_intervals_over_images_and_claims_nothing(tmp_path: Path) -> None:
    for label, loss in (("wise/good", 0.02), ("wise/plain", 0.08)):
        stressed(tmp_path, label, 0, loss, sweep=False)
    found = under_stress(*rows_of(["wise/good", "wise/plain"], tmp_path))
    assert found is not None
    rotation, blur = found.kinds
    assert rotation.p_holm < 0.001
    assert not rotation.claimed
    assert "one seed" in rotation.growth.over
    assert rotation.growth.low > 0
    assert blur.growth.low == blur.growth.high == 0 or blur.growth.low < 0 < blur.growth.high
    (line,) = sentences(found)
    assert line.startswith("of no kind of change can it be claimed that wise/good or wise/plain stands it better")
    assert "run at least 3" in line
    assert any("nothing is claimed about the techniques" in note for note in sheet(found).notes)
    assert not any(record["claimed"] for record in records(found))


def test_compare_and_leaderboard_say_it(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compare(["wise/good", "wise/plain"], runs, "text")
    printed = capsys.readouterr().out
    assert "wise/good against wise/plain under stress" in printed
    assert "gains 30.0 points" in printed
    compare(["wise/good", "wise/plain"], runs, "json")
    (pair,) = json.loads(capsys.readouterr().out)
    assert pair["stress"][0]["growth"] == pytest.approx(0.3, abs=0.01)
    compare(["wise/good", "wise/unmeasured"], runs, "md")
    assert "under stress" not in capsys.readouterr().out
    text = markdown(Leaderboard.of(Store(runs).finished()))
    # Wilson's for 200 and 320 of 400: the seeds agree, other images might not.
    assert "| wise/good | resnet18 | 3 | 50.0 [45.1, 54.9] | 80.0 [75.8, 83.6] |" in text
    assert "stress.parquet" in text
