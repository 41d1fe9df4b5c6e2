"""The real command in a process that has its imports already, so that a test can afford to start it hundreds of times."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import sys
from collections.abc import Collection, Sequence
from multiprocessing import forkserver, util
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

IMPORTS = ["flowers_bench.executors.preload", "flowers_bench.cli.run", "flowers_bench.report.leaderboard"]


def start(arguments: Sequence[str], folder: Path) -> ForkServerProcess:
    """`python -m flowers_bench ARGUMENTS` in `folder`, in a session of its own, with its caches there too."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    process = context.Process(target=_command, args=(arguments, folder))
    process.start()
    return process


def _command(arguments: Sequence[str], folder: Path) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nowhere, stream)
    _own_fork_server()
    sys.argv[1:] = arguments
    runpy.run_module("flowers_bench", run_name="__main__", alter_sys=True)


def _own_fork_server() -> None:
    """Start the executor's fork server as a fork of this process: the only thing that differs from the real start."""
    server = forkserver._forkserver  # type: ignore[attr-defined]
    server._forkserver_address = server._forkserver_alive_fd = server._forkserver_pid = None  # the test's own
    with mock.patch.object(util, "spawnv_passfds", _forked):
        forkserver.ensure_running()


def _forked(executable: str, arguments: Sequence[str], kept: Collection[int]) -> int:
    pid = os.fork()
    if pid:
        return pid
    for descriptor in map(int, os.listdir("/dev/fd")):
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):  # the one that listed them
                os.close(descriptor)
    exec(arguments[-1])
    os._exit(0)
