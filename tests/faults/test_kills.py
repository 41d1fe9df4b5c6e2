"""SIGKILL at 200 random moments: of a trial's process, of its whole process group, of the executor, of the executor with
everything that it started. Whatever ran again afterwards ends bit-equal to an undisturbed run, and no file is ever half
there."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import warm
from lives import TOY

from flowers_bench.store.folder import Store, TrialFolder

PARTS, MOMENTS = 4, 50  # so many in each part; the parts can run side by side
EPOCHS = 20
ARGUMENTS = ["--plugin", f"{TOY},toy/plain", "--data", "toy", "--seeds", "1", "--threads", "1"]
ARGUMENTS += ["--set", f"epochs={EPOCHS}"]
VOLATILE = ("seconds", "joules", "rate")
VICTIMS = ("trial", "group", "executor", "everything")
#: What has happened when the random wait before a kill begins: so that every stage of a trial is struck often, however
#: long it takes on the machine at hand.
STAGES: dict[str, Callable[[TrialFolder], bool]] = {
    "begun": lambda trial: True,
    "checkpoint": lambda trial: (trial.path / "checkpoint.pt").exists(),
    "trained": lambda trial: len(trial.history()) == EPOCHS,
    "evaluated": lambda trial: (trial.path / "predictions.parquet").exists(),
}


def the_trial(folder: Path) -> TrialFolder | None:
    return next(iter(Store(folder / "runs").trials()), None)


def trial_processes(executor: ForkServerProcess) -> list[psutil.Process]:
    """Those of the executor's processes that hold a trial's lock: from then on there is something to disturb."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(executor.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if any(Path(file.path).name == ".lock" for file in process.open_files()):
                    found.append(process)
    return found


def reached(stage: str, executor: ForkServerProcess, folder: Path) -> bool:
    trial = the_trial(folder)
    return trial is not None and STAGES[stage](trial) and bool(trial_processes(executor))


def kill(victim: str, executor: ForkServerProcess) -> None:
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if victim == "executor":
            executor.kill()
        elif victim == "everything":
            for process in [*psutil.Process(executor.pid).children(recursive=True), executor]:
                process.kill()
        else:
            for process in trial_processes(executor):
                process.kill() if victim == "trial" else os.killpg(process.pid, signal.SIGKILL)


def assert_whole(trial: TrialFolder) -> None:
    """Every file that has its own name, and not that of a temporary one, can be read to its end."""
    from safetensors.torch import load_file

    for path in trial.path.glob("*.json"):
        json.loads(path.read_text())
    trial.history()
    trial.attempts()
    if (trial.path / "model.safetensors").exists():
        load_file(trial.path / "model.safetensors")
    if (trial.path / "predictions.parquet").exists():
        trial.predictions()
    if (trial.path / "checkpoint.pt").exists():
        import torch

        torch.load(trial.path / "checkpoint.pt", weights_only=True)


def files(trial: TrialFolder) -> set[str]:
    """But for the executor's own record of attempts, and its lock: one that is killed adds nothing to it."""
    return {path.name for path in trial.path.iterdir()} - {"attempts.jsonl", ".attempts-lock"}


def outcome(trial: TrialFolder) -> tuple[Any, ...]:
    def lasting(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if not any(word in key for word in VOLATILE)}

    result = trial.result().json()
    logits = np.stack(list(trial.predictions()["logits"])).tobytes()
    history = [lasting(record.json()) for record in trial.history()]
    return (
        logits,
        history,
        result["val"],
        result["test"],
        result["best_epoch"],
        (trial.path / "model.safetensors").read_bytes(),
    )


def undisturbed(folder: Path) -> TrialFolder:
    """A trial run by the command itself, as a user starts it."""
    folder.mkdir()
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "flowers_bench", *ARGUMENTS]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=240, check=True)
    trial = the_trial(folder)
    assert trial is not None
    return trial


def finish_under_fire(folder: Path, targets: list[tuple[str, str]], rng: random.Random) -> TrialFolder:
    """Start the command until its trial is finished, each time killing what the last of the `targets` says, which is
    taken from the list when it was struck. What is not struck must finish."""
    folder.mkdir()
    while True:
        executor = warm.start(ARGUMENTS, folder)
        left = len(targets)
        if targets:
            victim, stage = targets[-1]
            while executor.is_alive() and not reached(stage, executor, folder):
                time.sleep(0.02)
            executor.join(rng.uniform(0, 1.5))  # about half of what an undisturbed trial takes
            if trial_processes(executor):
                kill(victim, executor)
                targets.pop()
        executor.join(240)
        trial = the_trial(folder)
        assert trial is not None
        assert_whole(trial)
        if len(targets) == left:
            assert executor.exitcode == 0, trial.failure()
            assert trial.finished()
        if executor.exitcode == 0:
            return trial


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(PARTS))
def test_killed_at_two_hundred_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # read when the fork server imports torch
    rng = random.Random(part)
    pairs = list(itertools.product(VICTIMS, STAGES))
    targets = [pairs[moment % len(pairs)] for moment in range(MOMENTS)]
    rng.shuffle(targets)
    calm = undisturbed(tmp_path / "calm")
    number = 0
    while targets:
        number += 1
        trial = finish_under_fire(tmp_path / f"disturbed{number}", targets, rng)
        assert outcome(trial) == outcome(calm)
        assert files(trial) == files(calm)
