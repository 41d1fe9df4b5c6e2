"""docs/cli.md has every command and every option, and none that is gone."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_cli", DOCS / "generate_cli.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = generator()
SECTIONS = dict(
    re.findall(r"^## ([\w ]+)\n\n```text\n(.*?)\n```", (DOCS / "cli.md").read_text(encoding="utf-8"), re.M | re.S)
)


def options(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text))


def test_every_command_has_a_section() -> None:
    assert list(SECTIONS) == [" ".join(command) for command in GENERATOR.commands()]


@pytest.mark.parametrize("command", list(GENERATOR.commands()), ids=" ".join)
def test_its_options_are_those_of_the_command(command: tuple[str, ...]) -> None:
    assert options(SECTIONS[" ".join(command)]) == options(GENERATOR.help_of(command))
