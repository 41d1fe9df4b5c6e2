"""docs/debugging.md: its technique fails as it says, and its script takes the trial to the debugger."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "debugging.md").read_text()


def test_from_the_failure_to_the_debugger(flowers_bench, tmp_path: Path) -> None:
    for text in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text)
    (line,) = [line for line in re.findall(r"^flowers-bench (.*)$", PAGE, re.M) if "--seeds" in line]
    done = flowers_bench(*line.split(), OMP_NUM_THREADS="1")
    assert done.returncode == 1
    (folder,) = (tmp_path / "runs").iterdir()
    said = "IndexError: Target 5 is out of bounds."
    assert said in done.stdout + done.stderr
    assert said in PAGE
    assert json.loads((folder / "failure.json").read_text())["error"].startswith(said)
    assert "target + 1" in (folder / "log.txt").read_text()
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    debugger = subprocess.run(
        [sys.executable, "-m", "pdb", "-c", "continue", "debug.py", folder.name[:8]],
        cwd=tmp_path,
        env=environment,
        input="up\np target.max(), output.logits.shape\nq\n",
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert "(tensor(4), torch.Size([32, 5]))" in debugger.stdout, debugger.stdout + debugger.stderr
