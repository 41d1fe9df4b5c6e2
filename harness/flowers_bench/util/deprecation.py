"""What of the public API is to go: who uses it is warned for at least one release, with what takes its place.

docs/plugin-api-policy.md says when. A name is announced by `moved`, a hook by `@hookspec(warn_on_impl=deprecated(...))`, which
pluggy shows with the line of the plugin that implements it.
"""

from __future__ import annotations

import contextlib
import importlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO


class Deprecated(FutureWarning):
    """A plugin uses something that a later release drops."""


@dataclass(frozen=True)
class Moved:
    """A public name that is to go.

    Attributes:
        module: where the value is now.
        instead: what to use instead, as a command to the plugin's author.
        dropped_in: the release of flowers-bench that drops the name.
    """

    module: str
    instead: str
    dropped_in: str


def deprecated(what: str, instead: str, dropped_in: str) -> Deprecated:
    """Make the warning for something that is to go.

    Args:
        what: its full name.
        instead: what to use instead, as a command: "use `flowers_bench.nn.Embedder`".
        dropped_in: the release of flowers-bench that drops it.
    """
    return Deprecated(f"{what} is deprecated, and flowers-bench {dropped_in} drops it: {instead}.")


def moved(owner: str, names: Mapping[str, Moved]) -> Callable[[str], object]:
    """Make a module's `__getattr__` that still gives names that it no longer has, with a warning at the caller's line.

    Args:
        owner: the module's name.
        names: what it gave before.
    """

    def get(name: str) -> object:
        if name not in names:
            raise AttributeError(f"module {owner!r} has no attribute {name!r}")
        found = names[name]
        warnings.warn(deprecated(f"{owner}.{name}", found.instead, found.dropped_in), stacklevel=2)
        return getattr(importlib.import_module(found.module), name)

    return get


@contextlib.contextmanager
def deprecations() -> Iterator[list[str]]:
    """Collect the `Deprecated` warnings that are given inside, each once, with file and line; others are shown as ever."""
    found: list[str] = []
    show = warnings.showwarning

    def collect(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if not issubclass(category, Deprecated):
            show(message, category, filename, lineno, file, line)
        elif (text := f"{message} ({filename}, line {lineno})") not in found:
            found.append(text)

    with warnings.catch_warnings():
        warnings.simplefilter("always", Deprecated)
        warnings.showwarning = collect
        yield found
