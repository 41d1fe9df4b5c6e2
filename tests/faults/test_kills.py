"""SIGKILL at 200 random moments: of a trial's process, of its whole process group, of the executor with everything that
it started. Whatever ran again afterwards ends bit-equal to an undisturbed run, and no file is ever half there."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from lives import TOY

from flowers_bench.store import Store, TrialFolder

MOMENTS = 200
COMMAND = [sys.executable, "-m", "flowers_bench", "--plugin", f"{TOY},toy/plain", "--data", "toy", "--seeds", "1"]
VOLATILE = ("seconds", "joules", "rate")


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*COMMAND, "--set", "epochs=60"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def the_trial(folder: Path) -> TrialFolder | None:
    return next(iter(Store(folder / "runs").trials()), None)


def begun(folder: Path) -> bool:
    """Whether a trial's process holds its lock at the moment: from then on there is something to disturb."""
    trial = the_trial(folder)
    return trial is not None and bool(trial_processes(trial))


def trial_processes(trial: TrialFolder) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(Path(file.path) == trial.path / ".lock" for file in process.open_files()):
                found.append(process)
    return found


def kill(what: str, executor: subprocess.Popen[bytes], trial: TrialFolder) -> None:
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
        if what == "executor":
            executor.kill()
        elif what == "everything":
            for process in [*psutil.Process(executor.pid).children(recursive=True), executor]:
                process.kill()
        else:
            for process in trial_processes(trial):
                process.kill() if what == "trial" else os.killpg(process.pid, signal.SIGKILL)


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


def outcome(trial: TrialFolder) -> tuple[Any, ...]:
    def lasting(record: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in record.items() if not any(word in key for word in VOLATILE)}

    result = trial.result()
    logits = np.stack(list(trial.predictions()["logits"])).tobytes()
    history = [lasting(record) for record in trial.history()]
    return (
        logits,
        history,
        result["val"],
        result["test"],
        result["best_epoch"],
        (trial.path / "model.safetensors").read_bytes(),
    )


def disturbed(folder: Path, moments: int, rng: random.Random) -> int:
    """Run and kill until `moments` kills have struck; a trial that finished meanwhile is compared and begun anew."""
    (folder / "calm").mkdir(parents=True)
    assert start(folder / "calm").wait(timeout=240) == 0
    undisturbed = the_trial(folder / "calm")
    assert undisturbed is not None
    seconds = undisturbed.attempts()[0]["seconds"]
    struck = number = 0
    while struck < moments:
        number += 1
        place = folder / f"disturbed{number}"
        place.mkdir()
        while True:
            executor = start(place)
            while executor.poll() is None and not begun(place):
                time.sleep(0.01)
            trial = the_trial(place)
            assert trial is not None
            with contextlib.suppress(subprocess.TimeoutExpired):
                executor.wait(timeout=rng.uniform(0, 0.6 * seconds))
            if struck < moments and executor.poll() is None:
                kill(rng.choice(["trial", "group", "executor", "everything"]), executor, trial)
                struck += 1
            code = executor.wait(timeout=240)
            assert_whole(trial)
            if trial.finished() and code == 0:
                break
        assert outcome(trial) == outcome(undisturbed)
        assert not (trial.path / "checkpoint.pt").exists()
    return struck


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_at_two_hundred_random_moments(tmp_path: Path) -> None:
    assert disturbed(tmp_path, MOMENTS, random.Random(0)) == MOMENTS
