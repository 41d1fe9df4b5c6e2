"""A virtual environment for a test, on top of the running one's packages, so that nothing large is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

import flowers_bench
import flowers_bench_plugins

#: Commands that the running environment has and the new one is given, as modules.
COMMANDS = {"flowers-bench": "flowers_bench", "pip": "pip", "pytest": "pytest"}


def own_environment(folder: Path) -> Callable[..., str]:
    """A function that runs a command line in `folder`, in the new environment, and returns what it printed.

    It fails unless the command exits with `code` (0). Packages are built and installed without an index.
    """
    home = folder / "environment"
    venv.create(home)  # with_pip would bring a setuptools of its own, too old to build with
    (site,) = (home / "lib").glob("python*/site-packages")
    sources = [str(Path(module.__file__ or "").parents[1]) for module in (flowers_bench, flowers_bench_plugins)]
    (site / "borrowed.pth").write_text("\n".join([*sources, sysconfig.get_path("purelib")]))
    for name, module in COMMANDS.items():
        script = home / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{home}/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(path for path in sources if path in sys.path),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip reads it as --no-build-isolation
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }

    def run(line: str, code: int = 0, cwd: Path = folder) -> str:
        done = subprocess.run(
            line, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        assert done.returncode == code, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run
