"""What a part reads of its options has the type that was declared, whatever was given."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest

from flowers_bench import (
    AugmentationContext,
    DataRequest,
    DatasetSource,
    Loss,
    LossContext,
    Option,
    Options,
    UsageError,
)

DECLARED = {
    "soft": Option(False, "a flag"),
    "stage": Option(3, "a whole number", minimum=1, maximum=4),
    "margin": Option(0.2, "a number", minimum=0, maximum=1),
    "mining": Option("hard", "a word", choices=("hard", "random")),
}
PART = Loss("mine", "a loss", options=DECLARED, build=lambda context: lambda output, target: target)


@pytest.mark.parametrize("given", [{}, {"soft": "false", "stage": "3", "margin": "0.2", "mining": "hard"}])
def test_what_is_read_has_its_declared_type(given: dict[str, str]) -> None:
    options = LossContext(3, 8, PART.option_values(given)).options
    read = (options.flag("soft"), options.integer("stage"), options.number("margin"), options.text("mining"))
    assert [(type(value), value) for value in read] == [(bool, False), (int, 3), (float, 0.2), (str, "hard")]


@pytest.mark.parametrize(
    ("getter", "name", "words"),
    [
        ("flag", "stage", "3, not true or false"),
        ("integer", "soft", "False, not a whole number"),
        ("integer", "margin", "0.2, not a whole number"),
        ("number", "mining", "'hard', not a finite number"),
        ("number", "soft", "False, not a finite number"),
        ("text", "stage", "3, not text"),
    ],
)
def test_another_type_than_the_declared_one_is_refused(getter: str, name: str, words: str) -> None:
    with pytest.raises(TypeError, match=f"option '{name}' is {words}"):
        getattr(PART.option_values({}), getter)(name)


def test_an_undeclared_option_is_refused_unless_a_default_is_given() -> None:
    options = Options({"margin": 1})
    with pytest.raises(KeyError, match=r"no option 'margins' was declared, only margin"):
        options.number("margins")
    assert options.number("margins", 0.5) == 0.5
    assert type(options.number("margin")) is float


def test_options_are_a_mapping_as_they_were() -> None:
    """Plugins of version 1 read them by their names, and their tests give plain mappings."""
    context = AugmentationContext(32, 3, {"erase": 0.5, "mode": "box"})  # type: ignore[arg-type]
    assert context.options["erase"] == 0.5
    assert context.options == {"erase": 0.5, "mode": "box"}
    assert {**context.options, "more": 1} == {"erase": 0.5, "mode": "box", "more": 1}
    assert json.loads(json.dumps(context.options)) == context.options
    assert pickle.loads(pickle.dumps(context.options)).number("erase") == 0.5
    assert copy.deepcopy(context).options.text("mode") == "box"


def test_a_datasets_options_have_types_where_it_declares_them() -> None:
    def load(request: DataRequest) -> None: ...

    source = DatasetSource("mine", "images", load, {"side": Option(8, "pixels", minimum=1), "noise": 60.0})  # type: ignore[arg-type]
    assert source.defaults() == {"side": 8, "noise": 60.0}
    assert source.option_values({"side": "16", "noise": "30"}) == {"side": 16, "noise": "30"}
    with pytest.raises(UsageError, match=r"data\.side=0: must be between 1"):
        source.option_values({"side": "0"})
    request = DataRequest(Path(), None, 8, source.option_values({"side": "16"}))
    assert request.options.integer("side") == 16
