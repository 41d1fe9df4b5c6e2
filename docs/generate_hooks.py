"""Writes docs/hooks.md from the hook specs and the values' own docstrings: `python docs/generate_hooks.py`."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from flowers_bench import hookspecs
from flowers_bench.contract import technique
from flowers_bench.contract.dataset import DataRequest, Dataset, DatasetSource, Split
from flowers_bench.contract.drawing import DrawsParameters, ImageParameters
from flowers_bench.contract.optimizer import Optimizer, OptimizerContext, Schedule
from flowers_bench.contract.pictures import FigureContext
from flowers_bench.contract.predictor import Features, Predictor, PredictorContext, ViewsContext
from flowers_bench.contract.step import Batch, Step, StepContext
from flowers_bench.contract.technique import (
    Augmentation,
    AugmentationContext,
    Loss,
    LossContext,
    Model,
    ModelContext,
    Option,
    Recipe,
    Technique,
    Variant,
)
from flowers_bench.nn import Output
from flowers_bench.training.finished import FinishedTrial

TARGET = Path(__file__).with_name("hooks.md")
VALUES = {
    "What a model, a loss and an augmentation are": (
        Model, Loss, Augmentation, Option, ModelContext, LossContext, AugmentationContext, Output,
    ),
    "What an augmentation can state as parameters": (ImageParameters, DrawsParameters),
    "What a predictor is": (Predictor, PredictorContext, Features, ViewsContext),
    "What a step is": (Step, StepContext, Batch),
    "What an optimiser and a schedule are": (Optimizer, OptimizerContext, Schedule),
    "What a technique is": (Technique, Variant, Recipe),
    "What a dataset is": (DatasetSource, DataRequest, Dataset, Split),
    "What figures are drawn from": (FigureContext,),
    "What a model can build on": (FinishedTrial,),
}  # fmt: skip


def document() -> str:
    """The whole of docs/hooks.md."""
    introduction = (hookspecs.__doc__ or "").strip()
    parts = [
        "# Hooks",
        "*Generated from the code by `python docs/generate_hooks.py`; a test compares. [plugins.md](plugins.md) is the "
        f"tutorial. This is plugin API {hookspecs.PLUGIN_API}.*",
        introduction,
        "## The hooks",
        *(_hook(function) for function in _hooks()),
        "## Needs",
        "What parts say that they need and provide, in `needs` and `provides`:",
        _needs(),
    ]
    for title, classes in VALUES.items():
        parts += [f"## {title}", *(_value(cls) for cls in classes)]
    return "\n\n".join(parts) + "\n"


def _hooks() -> Iterator[Callable[..., Any]]:
    marked = (
        f for _, f in inspect.getmembers(hookspecs, inspect.isfunction) if hasattr(f, f"{hookspecs.PROJECT}_spec")
    )
    return iter(sorted(marked, key=lambda function: function.__code__.co_firstlineno))


def _hook(function: Callable[..., Any]) -> str:
    return f"### `{function.__name__}`\n\n```python\ndef {_signature(function)}: ...\n```\n\n{inspect.getdoc(function)}"


def _signature(function: Callable[..., Any]) -> str:
    return f"{function.__name__}{inspect.signature(function)}".replace("'", "")


def _needs() -> str:
    source = inspect.getsource(technique)
    block = source[source.index("Need = Literal[") :].partition("\n]")[0]
    return "\n".join(f"- `{name}`: {meaning}" for name, meaning in re.findall(r'"(\w+)",  # (.*)', block))


def _value(cls: type) -> str:
    """The docstring, its attributes as a list, and every field with its type and default."""
    summary, _, attributes = (inspect.getdoc(cls) or "").partition("\n\nAttributes:\n")
    known = dataclasses.is_dataclass(cls)
    fields = "\n".join(map(_field, dataclasses.fields(cls))) if known else "\n\n\n".join(_members(cls))
    described = re.sub(r"^    (\w[\w, ]*): ", r"- `\1`: ", attributes, flags=re.M)
    described = re.sub(r"\n {5,}", " ", described)
    return "\n\n".join(
        part for part in (f"### `{cls.__name__}`", summary, described, f"```python\n{fields}\n```") if part
    )


def _members(cls: type) -> Iterator[str]:
    """Give every method with its docstring, as code; the properties are among the attributes."""
    for name, function in vars(cls).items():
        if inspect.isfunction(function) and not name.startswith("_"):
            words = "\n    ".join((inspect.getdoc(function) or "").splitlines())
            yield f'def {_signature(function)}:\n    """{words}"""'


def _field(field: dataclasses.Field[Any]) -> str:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if default is dataclasses.MISSING:
        return f"{field.name}: {field.type}"
    if isinstance(default, frozenset) and default:
        shown = f"frozenset({{{', '.join(map(repr, sorted(default)))}}})"
    else:
        shown = getattr(default, "__name__", None) or repr(dict(default) if isinstance(default, Mapping) else default)
    return f"{field.name}: {field.type} = {shown}".replace("'", '"')


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
