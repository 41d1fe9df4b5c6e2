"""Writes docs/cli.md from what the commands say with --help: `python docs/generate_cli.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main

from flowers_bench.cli.app import app

TARGET = Path(__file__).with_name("cli.md")
HEAD = """\
# Commands and options

What each command says with `--help`, written by `python docs/generate_cli.py`; a test says when an option is missing here.
`flowers-bench --plugin ...` without a command is `flowers-bench run --plugin ...`, and `flowers-bench --data FOLDER` alone is `flowers-bench start FOLDER`. Exit codes: 0 done, 1 a
trial failed or is damaged, 2 bad usage, 130 interrupted.
"""


def commands(group: Any = None, path: Sequence[str] = ()) -> Iterator[tuple[str, ...]]:
    """List all commands, such as `("plugin", "check")`."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        elif not command.hidden:
            yield (*path, name)


def help_of(command: Sequence[str]) -> str:
    """Give what a command says with --help, on 100 columns."""
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "flowers_bench", *command, "--help"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def page() -> str:
    """Give the page's text."""
    found = [f"## {' '.join(command)}\n\n```text\n{help_of(command)}\n```\n" for command in commands()]
    return "\n".join([HEAD, *found])


if __name__ == "__main__":
    TARGET.write_text(page(), encoding="utf-8")
