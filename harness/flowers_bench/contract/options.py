"""Options: the settings of parts and datasets. Each has a type, which is its default's; what is read of them has it too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from flowers_bench.util.errors import UsageError

#: What an option's value can be. JSON and TOML hold all of them.
OptionValue = bool | int | float | str
V = TypeVar("V", bool, int, float, str)
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_EXPECTED: Mapping[type, str] = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


@dataclass(frozen=True)
class Option:
    """One setting of a part or a dataset that `--set NAME=VALUE` may change.

    Attributes:
        default: its value otherwise; its type (bool, int, float or str) is the option's type.
        help: one line.
        choices: the only valid values, if not empty.
        minimum, maximum: inclusive bounds of a number.
        search: where `--search` looks: the bounds of a number (tried on a logarithmic scale where the upper one is at
            least ten times the lower), or the values to try; empty: it is not searched.
        formerly: the name that it had in earlier versions, which stored trials have and `--set` still takes; empty: none.
    """

    default: OptionValue
    help: str
    choices: tuple[OptionValue, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    search: tuple[OptionValue, ...] = ()
    formerly: str = ""

    def given(self, name: str, values: Mapping[str, object]) -> object:
        """Look its value up, under its name or its former one; the default where it is not given."""
        return values.get(name, values.get(self.formerly, self.default))

    def parse(self, name: str, value: object) -> OptionValue:
        """Convert `value` (text or a TOML value) to this option's type. Raises `UsageError` naming the valid choices."""
        bounded = math.isfinite(self.minimum) and math.isfinite(self.maximum)
        bounds = f" between {self.minimum:g} and {self.maximum:g}" if bounded else ""
        parsed = parse_like(self.default, name, value, bounds)
        if self.choices and parsed not in self.choices:
            raise UsageError(f"{name}={value}: valid choices are {', '.join(map(str, self.choices))}.")
        if isinstance(parsed, (int, float)) and not self.minimum <= parsed <= self.maximum:
            raise UsageError(f"{name}={value}: must be between {self.minimum:g} and {self.maximum:g}.")
        return parsed


class Options(dict[str, OptionValue]):
    """The values of a part's or dataset's options by name, every one parsed.

    A getter for each type gives a value that has it: `context.options.number("epsilon")` is a float. They raise `KeyError` for
    an option that was not declared, unless a default is given, and `TypeError` for one of another type.
    """

    def flag(self, name: str, default: bool | None = None) -> bool:
        """Get an option that is true or false."""
        return self._get(bool, name, default)

    def integer(self, name: str, default: int | None = None) -> int:
        """Get an option that is a whole number."""
        return self._get(int, name, default)

    def number(self, name: str, default: float | None = None) -> float:
        """Get an option that is a number, as a float."""
        value = self[name] if default is None else self.get(name, default)
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return self._get(float, name, default)

    def text(self, name: str, default: str | None = None) -> str:
        """Get an option that is text."""
        return self._get(str, name, default)

    def __missing__(self, name: str) -> OptionValue:
        raise KeyError(f"no option {name!r} was declared, only {', '.join(self) or 'none'}")

    def _get(self, kind: type[V], name: str, default: V | None) -> V:
        value = self[name] if default is None else self.get(name, default)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TypeError(f"option {name!r} is {value!r}, not {_EXPECTED[kind]}: its default's type decides")
        return value


class ReadsOptions:
    """Makes `Options` of a context's plain mapping, so that tests may write `LossContext(3, 8, {"epsilon": 0.3})`."""

    options: Options

    def __post_init__(self) -> None:
        if not isinstance(self.options, Options):
            object.__setattr__(self, "options", Options(self.options))  # the contexts are frozen


def parse_options(declared: Mapping[str, Option], given: Mapping[str, object], prefix: str = "") -> Options:
    """Give every declared option its value: the given one, parsed, or the default. Others that are given are passed over.

    Args:
        prefix: what stands before the names in an error, such as `data.`.

    Raises:
        UsageError: a value is not valid.
    """
    return Options(
        {name: option.parse(f"{prefix}{name}", option.given(name, given)) for name, option in declared.items()}
    )


def parse_like(example: OptionValue, name: str, value: object, bounds: str = "") -> OptionValue:
    """Convert `value` to the type of `example`. Raises `UsageError`, which names the type and the `bounds`, if it cannot."""
    text = str(value).strip()
    try:
        if isinstance(example, bool):
            return _TRUTH[text.lower()]
        if isinstance(example, int):
            return int(text)
        if isinstance(example, float):
            return finite(text)
    except (KeyError, ValueError):
        raise UsageError(f"{name}={value}: expected {_EXPECTED[type(example)]}{bounds}.") from None
    return text


def finite(text: str) -> float:
    """Convert text to a float. Raises `ValueError` for what is no number, infinite or NaN."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number
