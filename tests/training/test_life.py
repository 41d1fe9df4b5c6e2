"""A trial's life: it repeats bit for bit, survives being killed, and fails honestly."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lives import ignore, run_once_interrupted, training_of

from flowers_bench.contract.host import discover
from flowers_bench.executors.local import run_all
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request, TrialPlan
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.loop import Training
from flowers_bench.training.process import Interrupted
from flowers_bench.training.trial import run_trial
from flowers_bench.util.errors import TrialDisturbed, TrialFailed, UsageError

TOY = Path(__file__).parents[1] / "toy.py"
Prepare = Callable[..., TrialFolder]


def planned(tmp_path: Path, *names: str, seeds: int = 1, **settings: str) -> list[TrialPlan]:
    host = discover([TOY])
    return plan(host, Request(list(names), "toy", tmp_path / "cache", seeds, settings=settings), [TOY])


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    def make(store: str, name: str = "toy/plain", **settings: str) -> TrialFolder:
        (item,) = planned(tmp_path, name, **settings)
        return Store(tmp_path / store).prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)

    return make


def outcome(folder: TrialFolder) -> tuple[Any, ...]:
    """What must be bit-equal between two runs: predictions, history without times, figures without times."""
    history = [
        {k: v for k, v in record.json().items() if "seconds" not in k and "joules" not in k}
        for record in folder.history()
    ]
    table = folder.predictions()
    result = folder.result()
    return (np.stack(list(table["logits"])).tobytes(), history, result.test, result.val, result.best_epoch)


def test_two_runs_are_bit_equal_and_leave_a_complete_folder(prepare: Prepare) -> None:
    first, second = prepare("a"), prepare("b")
    for folder in (first, second):
        run_trial(folder, ignore)
    assert outcome(first) == outcome(second)
    names = {path.name for path in first.path.iterdir()}
    assert {
        "config.json",
        "run.json",
        "environment.json",
        "history.jsonl",
        "predictions.parquet",
        "result.json",
    } <= names
    assert "checkpoint.pt" not in names
    assert not [name for name in names if name.startswith(".") and name != ".lock"]


def test_a_result_has_quality_by_class_and_the_cost_of_predicting(prepare: Prepare) -> None:
    folder = prepare("a", epochs="2", **{"data.noise": "200"})
    run_trial(folder, ignore)
    result, table = folder.result(), folder.predictions()
    test, cost = result.test, result.cost
    rows = table[table["split"] == "test"]
    right = rows["label"] == rows["prediction"]
    assert test.per_class.n == [10] * 4
    assert test.per_class.recall == pytest.approx(right.groupby(rows["label"]).mean().tolist())
    assert sum(pair.images for pair in test.confused) == (~right).sum()
    assert test.calibrated.nll < test.nll + 0.1
    assert result.temperature > 0
    # Two convolutions and a linear layer, written out.
    assert cost.flops == 2 * (8 * 8 * 8 * 3 * 9 + 4 * 4 * 16 * 8 * 9 + 16 * 4)
    assert cost.flops_uncounted == []
    speed = cost.inference.float32
    assert 0 < speed.latency.p50_ms.value <= speed.latency.p95_ms.value
    assert speed.throughput.images_per_second > 0


def test_interrupted_and_continued_equals_undisturbed(prepare: Prepare) -> None:
    undisturbed, disturbed = prepare("a"), prepare("b")
    run_trial(undisturbed, ignore)
    for _ in range(3):
        with pytest.raises(Interrupted):
            run_once_interrupted(disturbed)
    run_trial(disturbed, ignore)
    assert outcome(undisturbed) == outcome(disturbed)


def test_killed_at_random_moments_and_rerun_is_bit_equal(prepare: Prepare) -> None:
    """Moments are counted in events, not seconds: a quick machine is killed as often as a slow one."""
    undisturbed, disturbed = prepare("a", epochs="12"), prepare("b", epochs="12")
    run_all([undisturbed], ignore, timeout=120)
    rng = random.Random(0)
    killed = 0
    for _ in range(30):
        (end,) = run_all([disturbed], kill_after(rng.randint(1, 14)), timeout=120)
        if end.state == "done":
            break
        killed += "SIGKILL" in end.reason
        for path in disturbed.path.glob("*.json"):
            json.loads(path.read_text())
    run_all([disturbed], ignore, timeout=120)
    assert killed > 1
    assert outcome(undisturbed) == outcome(disturbed)


def kill_after(events: int) -> Callable[..., None]:
    """A listener that kills the trial's process, for real, at its `events`-th event."""
    left = [events]

    def on_event(folder: TrialFolder, event: dict[str, Any]) -> None:
        left[0] -= 1
        if left[0] == 0:
            for process in multiprocessing.active_children():
                process.kill()

    return on_event


def test_killed_between_the_last_checkpoint_and_its_history(prepare: Prepare) -> None:
    undisturbed, disturbed = prepare("a"), prepare("b")
    run_trial(undisturbed, ignore)
    for _ in range(3):
        with pytest.raises(Interrupted):
            run_once_interrupted(disturbed)
    run_to_the_last_checkpoint(disturbed)
    assert len(disturbed.history()) == 0
    run_trial(disturbed, ignore)
    assert outcome(undisturbed) == outcome(disturbed)


def run_to_the_last_checkpoint(folder: TrialFolder) -> None:
    """What a process does that is killed right after its last checkpoint: no history line, no result."""
    training_of(folder).run(ignore)


def test_non_finite_loss_is_a_failure_with_the_step(prepare: Prepare) -> None:
    folder = prepare("a", "toy/explode")
    with pytest.raises(TrialFailed, match=r"epoch 1, step 1 of 3"):
        run_trial(folder, ignore)
    assert not folder.finished()


def test_damaged_checkpoint_is_refused_by_name(prepare: Prepare) -> None:
    folder = prepare("a")
    with pytest.raises(Interrupted):
        run_once_interrupted(folder)
    checkpoint = folder.path / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(TrialDisturbed, match=r"checkpoint\.pt cannot be used"):
        run_trial(folder, ignore)


def test_edited_configuration_is_refused(prepare: Prepare) -> None:
    folder = prepare("a")
    config = {**folder.config().json(), "seed": 5}
    (folder.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not match its id"):
        run_trial(folder, ignore)


def test_identity_depends_on_what_decides_the_outcome_and_nothing_else(tmp_path: Path) -> None:
    (base,) = planned(tmp_path, "toy/plain")
    (elsewhere,) = planned(tmp_path / "other", "toy/plain")
    assert base.trial.id == elsewhere.trial.id
    changed = [
        planned(tmp_path, "toy/plain", lr="0.02"),
        planned(tmp_path, "toy/short"),
        planned(tmp_path, "toy/plain", seeds=2)[1:],
    ]
    assert len({base.trial.id, *(items[0].trial.id for items in changed)}) == 4


def test_techniques_see_the_same_order_of_images(prepare: Prepare) -> None:
    orders = []
    for folder in (prepare("a"), prepare("a", "toy/short")):
        orders.append([batch.tolist() for batch in training_of(folder)._batches(1)])
    assert orders[0] == orders[1]


def test_bare_name_brings_its_baseline(tmp_path: Path) -> None:
    assert [item.label for item in planned(tmp_path, "toy", seeds=2)] == ["toy/plain", "toy/short"] * 2
    assert [item.label for item in planned(tmp_path, "toy/plain")] == ["toy/plain"]


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("toy/plian", {}, "Did you mean 'plain'"),
        ("toyy", {}, "Did you mean 'toy'"),
        ("toy", {"epoch": "3"}, "Did you mean 'epochs'"),
        ("toy", {"data.nois": "3"}, "Did you mean 'noise'"),
        ("toy", {"lr": "-1"}, "lr=-1"),
        ("toy", {"explode": "perhaps"}, "true or false"),
    ],
)
def test_mistakes_are_refused_before_anything_trains(
    tmp_path: Path, name: str, settings: dict[str, str], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        planned(tmp_path, name, **settings)


def test_test_split_is_not_read_while_training(prepare: Prepare) -> None:
    """The loop is not even given the test split."""
    assert {"train", "val"} <= set(Training.__dataclass_fields__)
    assert "test" not in Training.__dataclass_fields__
