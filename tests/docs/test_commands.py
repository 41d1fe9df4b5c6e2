"""What the pages tell people to type is usage that the command line knows, of techniques that there are."""

from __future__ import annotations

import functools
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import typer

from flowers_bench.cli.app import app
from flowers_bench.contract.host import Registered, discover
from flowers_bench.contract.technique import Technique

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def lines() -> Iterator[tuple[str, str]]:
    """(page, command line) of each `flowers-bench ...` in a console block, continued lines joined."""
    for path in PAGES:
        for block in re.findall(r"```console\n(.*?)```", path.read_text(), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("flowers-bench "):
                    yield path.relative_to(ROOT).as_posix(), line


@functools.cache
def techniques() -> Mapping[str, Registered[Technique]]:
    """The installed ones."""
    return discover([]).techniques


def test_pages_show_commands() -> None:
    assert len({page for page, _ in lines()}) > 15


@pytest.mark.parametrize(("page", "line"), list(dict.fromkeys(lines())))
def test_the_command_is_understood(page: str, line: str) -> None:
    arguments = shlex.split(line)[1:]
    if arguments[0].startswith("-"):
        arguments = ["run", *arguments]
    command = typer.main.get_command(app)
    with command.make_context("flowers-bench", list(arguments)) as context:
        while hasattr(command, "resolve_command"):
            name, command, arguments = command.resolve_command(context, arguments)
            context = command.make_context(name, list(arguments), parent=context)
    if context.params.get("plugin") and name == "run":
        known = techniques()
        for wanted in context.params["plugin"].split(","):
            technique, _, variant = wanted.partition("/")
            if not wanted.endswith(".py") and technique != "poly":  # a plugin that the page writes
                assert technique in known, wanted
                assert not variant or variant in known[technique].value.variants, wanted
