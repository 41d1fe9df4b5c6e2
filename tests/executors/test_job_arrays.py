"""The scripts for job arrays, with what a scheduler sets, and a stand-in for the command that shows its arguments."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SLURM = {"SLURM_CPUS_PER_TASK": "4", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": "8"}
PBS = {"PBS_O_WORKDIR": "/", "PBS_ARRAY_INDEX": "2", "SHARDS": "8", "ARGUMENTS": "--plugin knn", "NCPUS": "4"}


@pytest.mark.parametrize(
    ("script", "arguments", "variables"), [("slurm.sh", ["--plugin", "knn"], SLURM), ("pbs.sh", [], PBS)]
)
def test_a_job_of_an_array_takes_its_shard(
    tmp_path: Path, script: str, arguments: list[str], variables: dict[str, str]
) -> None:
    for name, text in {"srun": 'exec "$@"', "flowers-bench": 'echo "$OMP_NUM_THREADS $*"'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = {**variables, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": "/home/me"}
    command = ["bash", str(EXAMPLES / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    expected = "4 --plugin knn --shard 2/8 --store /home/me/flowers/runs --data-dir /home/me/flowers/cache\n"
    assert done.stdout == expected
