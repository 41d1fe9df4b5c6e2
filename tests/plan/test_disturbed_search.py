"""A search of which a trial is kept from its end, by whatever it may be, ends once it is continued as if nothing had
happened; until then it chooses nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import TOY

from flowers_bench.cli import run as command
from flowers_bench.cli.options import Factors, RunOptions
from flowers_bench.contract.host import discover
from flowers_bench.executors import local, worker
from flowers_bench.executors.local import OnEvent, Outcome
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request, TrialPlan
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.records import Failure
from flowers_bench.training.events import Event, Starting
from flowers_bench.util.errors import TrialDisturbed, TrialFailed, UsageError
from flowers_bench.util.files import write_json

pytest.importorskip("optuna", reason='pip install "flowers-bench[search]"')
BUDGET = 3
#: What kills a trial's process at its first event, or that it gets no time.
DISTURBANCES = {"SIGKILL": signal.SIGKILL, "SIGTERM": signal.SIGTERM, "timeout": None}
TOYS = {"plugin": str(TOY), "factors": Factors("toy"), "settings": ["epochs=1", "warmup_epochs=0"]}
SMALL = ["data.species=3", "data.train=4", "data.val=4", "data.test=4", "image_size=16"]


class Command:
    """`run --search`, whose search trials run in processes of their own, and whose test trials are only noted.

    Attributes:
        disturb: says of a trial that is about to start what is to happen to it, if anything.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.chosen: list[TrialPlan] = []
        self.disturb: Callable[[TrialFolder], str | None] = lambda folder: None
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setattr(command, "execute", self._execute)
        monkeypatch.setattr(command, "run_all", self._run_all)

    def __call__(self, folder: Path, **changes: Any) -> int:
        self.chosen.clear()
        common = {"suite": None, "seeds": 2, "sweeps": [], "jobs": 1, "shard": "1/1", "search": BUDGET, **TOYS}
        asked = RunOptions.parse(**{**common, "data_dir": folder.parent, "store": str(folder), **changes})
        return command.run(asked, "text", 60)

    def _execute(self, planned: Sequence[TrialPlan], *arguments: Any) -> int:
        self.chosen += planned
        return 0

    def _run_all(
        self, folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float, asked: RunOptions, jobs: int
    ) -> list[Outcome]:
        return [self._run(folder, on_event, timeout) for folder in folders]

    def _run(self, folder: TrialFolder, on_event: OnEvent, timeout: float) -> Outcome:
        how = self.disturb(folder)

        def struck(folder: TrialFolder, event: Event) -> None:
            on_event(folder, event)
            if how and isinstance(event, Starting) and (number := DISTURBANCES[how]):
                for process in multiprocessing.active_children():
                    os.kill(process.pid or 0, number)

        (outcome,) = local.run_all([folder], struck, 1e-3 if how == "timeout" else timeout)
        return outcome


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(monkeypatch)


def finished(folder: Path) -> list[str]:
    return [trial.id for trial in Store(folder).of_searches().finished()]


def chosen(run: Command) -> list[tuple[str, dict[str, str], list[str]]]:
    return [(i.trial.id, i.run.search.settings, i.run.search.trials) for i in run.chosen]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[Any]]:
    """The trials of both searches that are finished then, and what they chose."""
    folder = tmp_path_factory.mktemp("calm") / "runs"
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = Command(monkeypatch)
        assert run(folder) == 0
        assert len(finished(folder)) == 2 * BUDGET
        return finished(folder), chosen(run)


@pytest.mark.parametrize("how", DISTURBANCES)
def test_each_trial_disturbed_once_leaves_the_result_as_it_is(
    tmp_path: Path, run: Command, capsys: pytest.CaptureFixture[str], how: str, undisturbed: tuple[list[str], list[Any]]
) -> None:
    store, struck = tmp_path / "runs", set[str]()

    def once_each(folder: TrialFolder) -> str | None:
        new = folder.id not in struck
        struck.add(folder.id)
        return how if new else None

    run.disturb = once_each
    for number in range(1, BUDGET + 1):
        assert run(store) == 1
        assert len(struck) == 2 * number, "a search went on after a trial that was disturbed"
        assert not run.chosen
        said = capsys.readouterr().err
        assert said.count(f"configuration {number} of {BUDGET} (") == 2
        assert "did not come to its end" in said
        assert "best of" not in said
        failures = [failure for trial in Store(store).of_searches().trials() if (failure := trial.failure())]
        assert [failure.kind for failure in failures] == ["timeout" if how == "timeout" else "killed"] * 2
    assert run(store) == 0
    assert capsys.readouterr().err.count(f"best of {BUDGET} configurations") == 2
    assert (finished(store), chosen(run)) == undisturbed


def test_the_other_searches_go_on(
    tmp_path: Path, run: Command, capsys: pytest.CaptureFixture[str], undisturbed: tuple[list[str], list[Any]]
) -> None:
    run.disturb = lambda folder: "SIGTERM" if folder.labels()[0].variant == "plain" else None
    assert run(tmp_path / "runs") == 1
    assert {item.label for item in run.chosen} == {"toy/short"}
    assert chosen(run) == [found for found in undisturbed[1] if found[0] in {i.trial.id for i in run.chosen}]
    said = capsys.readouterr().err
    assert "toy/plain: configuration 1 of 3" in said
    assert said.count("best of 3 configurations") == 1


def test_a_configuration_that_cannot_be_trained_is_counted_and_said(
    tmp_path: Path, run: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first: list[str] = []

    def one_fails(
        folders: Sequence[TrialFolder], on_event: OnEvent, timeout: float, asked: RunOptions, jobs: int
    ) -> list[Outcome]:
        first.append(folders[0].id)
        if folders[0].id == first[0]:
            return [Outcome(folders[0], "failed", "the loss is nan", "TrialFailed")]
        return local.run_all(folders, on_event, timeout)

    monkeypatch.setattr(command, "run_all", one_fails)
    few = {"plugin": "transfer/scratch", "factors": Factors("petals"), "settings": [*SMALL, "epochs=1"]}
    assert run(tmp_path / "runs", **few) == 0
    assert len(first) == BUDGET
    assert "best of 3 configurations (1 could not be trained)" in capsys.readouterr().err
    assert run.chosen[0].run.search.failed == 1
    assert run.chosen[0].run.search.chosen != first[0]


def test_what_cannot_be_told_apart_is_not_counted_as_more(
    tmp_path: Path, run: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing can be searched of a technique that trains nothing and has its only option given."""
    assert run(tmp_path / "runs", plugin="knn/untrained", factors=Factors("petals"), settings=SMALL) == 0
    assert len(finished(tmp_path / "runs")) == 1
    assert "best of 3 configurations (1 different)" in capsys.readouterr().err


def trial(tmp_path: Path, name: str = "toy/short") -> TrialFolder:
    request = Request([name], "toy", tmp_path / "cache", seeds=1)
    (item,) = plan(discover([TOY]), request, [TOY])
    return Store(tmp_path / "runs").prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (TrialFailed("the loss is nan"), "TrialFailed"),
        (TrialDisturbed("lost", "the devices lost each other"), "lost"),
        (UsageError("the images changed"), "UsageError"),
        (OSError(28, "No space left on device"), "crash"),
        (MemoryError(), "crash"),
        (torch.OutOfMemoryError("CUDA out of memory"), "crash"),
        (SystemExit(65), "crash"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_only_a_trial_that_failed_by_itself_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, kind: str
) -> None:
    def fails(*arguments: Any) -> None:
        raise raised

    folder = trial(tmp_path)
    monkeypatch.setattr("flowers_bench.training.trial.run_trial", fails)
    code = worker._run(folder, lambda event: None)
    outcome = local._outcome(folder, code, None)
    assert (outcome.state, outcome.kind) == ("failed", kind)
    assert outcome.untrainable == (kind == "TrialFailed")
    assert folder.failure() == Failure(kind=kind, error=outcome.reason)


def test_the_executor_tells_the_kind_of_a_failure(tmp_path: Path) -> None:
    (outcome,) = local.run_all([trial(tmp_path, "toy/explode")], lambda *event: None, 60)
    assert outcome.untrainable
    assert "the loss is" in outcome.reason


def test_a_failure_of_an_earlier_attempt_is_not_taken_for_this_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = trial(tmp_path)
    write_json(folder.path / "failure.json", {"kind": "TrialFailed", "error": "the loss is nan"})

    def disk_full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    def kill(folder: TrialFolder, event: Event) -> None:
        for process in multiprocessing.active_children():
            process.kill()

    monkeypatch.setattr(TrialFolder, "note_failure", disk_full)
    (outcome,) = local.run_all([folder], kill, 60)
    assert outcome.kind == "killed"
    assert folder.failure() is None


def test_a_failure_is_known_where_it_cannot_be_stored(tmp_path: Path) -> None:
    folder = trial(tmp_path)
    outcome = local._outcome(folder, worker.UNTRAINABLE, None)
    assert outcome.untrainable
    assert "log.txt" in outcome.reason
    assert not local._outcome(folder, worker.FAILED, None).untrainable
