"""Every technique, named alone, runs on drawn flowers without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowers_bench.contract.host import discover
from flowers_bench.models.weights import source
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.folder import Store

HOST = discover(only_built_in=True)
#: These start from a finished trial, whose id is given.
FROM_A_TRIAL = {"distillation", "fixres", "soup", "wise-ft"}
#: This starts from a file of another project's, which does not come with the package.
FROM_A_FILE = {"clip"}
#: These learn from images without labels, which `--shots` leaves out.
WITHOUT_LABELS = {"fixmatch"}
SMALL = {"data.species": "16", "data.train": "10", "data.val": "2", "data.test": "20", "data.size": "32"}
#: No name is looked up there, and nobody answers.
NOWHERE = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0", "http_proxy": "", "https_proxy": ""}


def refuse_download(repository: str, name: str) -> Path:
    raise AssertionError(f"{name} would be downloaded")


@pytest.mark.parametrize("technique", sorted(set(HOST.techniques) - FROM_A_TRIAL - FROM_A_FILE))
def test_a_bare_technique_is_planned_without_a_network(
    technique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_downloaded", refuse_download)
    monkeypatch.setattr(source, "_cached", lambda repository: None)
    shots = 2 if technique in WITHOUT_LABELS else None
    request = Request([technique], "petals", tmp_path, 1, settings=SMALL, store=tmp_path / "runs", shots=shots)
    found = plan(HOST, request, [])
    assert found


def run(tmp_path: Path, *arguments: str) -> None:
    script = Path(sys.executable).with_name("flowers-bench")
    small = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]
    command = [
        str(script),
        *arguments,
        *small,
        *([] if "--seeds" in arguments else ["--seeds=1"]),
        "--data-dir",
        str(tmp_path / "cache"),
    ]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, **NOWHERE}, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("technique", sorted(set(HOST.techniques) - FROM_A_TRIAL - FROM_A_FILE))
def test_a_bare_technique_runs_without_a_network(technique: str, tmp_path: Path) -> None:
    epochs = HOST.techniques[technique].value.recipe.epochs
    shots = ["--shots", "2"] if technique in WITHOUT_LABELS else []
    run(tmp_path, "--plugin", technique, *shots, *(["--set", "epochs=2"] if epochs else []))
    assert Store(tmp_path / "runs").finished()


@pytest.mark.slow
def test_a_student_of_a_finished_trial_runs_without_a_network(tmp_path: Path) -> None:
    run(tmp_path, "--plugin", "transfer/k0", "--set", "epochs=2")
    (teacher,) = Store(tmp_path / "runs").finished()
    run(tmp_path, "--plugin", "distillation", "--set", "epochs=2", "--set", f"teacher={teacher.id}")
    assert len(Store(tmp_path / "runs").finished()) == 3


@pytest.mark.slow
def test_a_network_trained_on_smaller_images_runs_without_a_network(tmp_path: Path) -> None:
    run(tmp_path, "--plugin", "transfer/k0", "--set", "epochs=2", "--set", "image_size=24")
    (smaller,) = Store(tmp_path / "runs").finished()
    run(tmp_path, "--plugin", "fixres", "--set", "epochs=2", "--set", "image_size=32", "--set", f"trained={smaller.id}")
    assert len(Store(tmp_path / "runs").finished()) == 3


@pytest.mark.slow
def test_averages_of_finished_trials_run_without_a_network(tmp_path: Path) -> None:
    run(tmp_path, "--plugin", "transfer/k0", "--set", "epochs=2", "--seeds", "2")
    ids = ",".join(folder.id for folder in Store(tmp_path / "runs").finished())
    run(tmp_path, "--plugin", "soup", "--set", f"ingredients={ids}")
    run(tmp_path, "--plugin", "text-probe/full", "--set", "epochs=2")
    (tuned,) = (f.id for f in Store(tmp_path / "runs").finished() if f.trial().model == "text-probe")
    run(tmp_path, "--plugin", "wise-ft/half", "--set", f"fine_tuned={tuned}")
    assert len(Store(tmp_path / "runs").finished()) == 6  # the greedy soup has its uniform twin
