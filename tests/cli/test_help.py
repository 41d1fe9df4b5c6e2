"""Help for people in narrow terminals, and completion for their shells."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from terminal import in_terminal

from flowers_bench.cli.app import app


def commands() -> Mapping[str, Any]:
    found: Mapping[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    return found


def options(name: str) -> list[Any]:
    return [one for one in commands()[name].params if one.param_type_name == "option"]


def test_no_line_of_help_is_cut_at_80_columns(tmp_path: Path) -> None:
    shown = in_terminal("--help", columns=80, cwd=tmp_path)
    assert shown.code == 0
    assert "..." not in shown.text.replace("[OPTIONS] COMMAND [ARGS]...", "")
    assert max(map(len, shown.lines)) <= 80
    text = " ".join(shown.text.split())
    for name, command in commands().items():
        first = " ".join((command.help or "").split("\n\n")[0].split())
        assert first.partition(". ")[0].rstrip(".") in text, name


@pytest.mark.parametrize("name", ["run", "start", "compare", "report"])
def test_every_option_has_its_whole_help(tmp_path: Path, name: str) -> None:
    shown = in_terminal(name, "--help", columns=80, cwd=tmp_path)
    text = " ".join(shown.text.split())
    for parameter in options(name):
        if parameter.help:
            assert " ".join(parameter.help.split()) in text, parameter.name


@pytest.mark.parametrize(
    "name", [name for name in commands() if name not in ("list", "describe", "plugins", "merge", "plugin")]
)
def test_the_store_has_one_name_and_its_older_one(name: str) -> None:
    (option,) = [one for one in options(name) if "--store" in one.opts]
    assert option.opts == ["--store", "--out"]


def test_the_shell_completes_commands(flowers_bench) -> None:
    asked = {"_FLOWERS_BENCH_COMPLETE": "complete_bash", "COMP_WORDS": "flowers-bench an", "COMP_CWORD": "1"}
    assert flowers_bench(**asked).stdout.split() == ["answer"]
