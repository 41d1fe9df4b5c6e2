"""Records that say by their types what a file may hold.

A run store may come from anywhere: its files are data, and are believed only as far as they were checked. A subclass of
`Record` is the schema of a JSON object: each field's type says what may stand there, in the terms of this module (`Number`,
`Text`, ... as annotations). From the type come both the check (`form_of`) and the record itself, so that what is read has
typed attributes and no second description. Whatever a schema does not name may be there and be anything (fields are added
within a schema version); it is kept, and written again with the record.

    class Attempt(Record):
        seconds: Annotated[float, Number(0)]    must be there
        state: Annotated[str, Text(1000)] | None    may be missing or null

`records.py` has the records of a trial, `reading.py` the one way in which files are read.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol, TypeVar, Union, get_args, get_origin, get_type_hints

#: Of any number: sums and squares of smaller ones stay finite, so that no table has an infinite mean.
HUGE = 1e100


class Form(Protocol):
    """What a value must be."""

    def fault(self, value: object, name: str) -> str | None:
        """What is wrong with the value that stands at `name`, in words; None if nothing is."""


@dataclass(frozen=True)
class Number:
    """A number between two bounds, both allowed; `whole` for an integer."""

    low: float = -HUGE
    high: float = HUGE
    whole: bool = False

    def fault(self, value: object, name: str) -> str | None:
        kinds = int if self.whole else (int, float)
        if isinstance(value, kinds) and not isinstance(value, bool) and self.low <= value <= self.high:
            return None
        bounds = [f"{word} {bound:g}" for word, bound in (("from", self.low), ("to", self.high)) if abs(bound) < 2**31]
        return f"{name} is {_shown(value)}, not {' '.join(['a whole number' if self.whole else 'a number', *bounds])}"


@dataclass(frozen=True)
class Text:
    """A text, not longer than `longest` characters, that matches `pattern` where there is one."""

    longest: int = 1_000_000
    pattern: str | None = None

    def fault(self, value: object, name: str) -> str | None:
        if not isinstance(value, str) or (self.pattern and not re.fullmatch(self.pattern, value)):
            return f"{name} is {_shown(value)}" + ("" if isinstance(value, str) else ", not a text")
        return f"{name} has {len(value)} characters" if len(value) > self.longest else None


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def fault(self, value: object, name: str) -> str | None:
        return None if isinstance(value, bool) else f"{name} is {_shown(value)}, not true or false"


@dataclass(frozen=True)
class Plain:
    """Anything that is no list and no object."""

    def fault(self, value: object, name: str) -> str | None:
        return f"{name} is {_shown(value)}, not a single value" if isinstance(value, (list, dict)) else None


@dataclass(frozen=True)
class Anything:
    """Any JSON value."""

    def fault(self, value: object, name: str) -> str | None:
        return None


@dataclass(frozen=True)
class OrNull:
    """Null, or what `form` is."""

    form: Form

    def fault(self, value: object, name: str) -> str | None:
        return None if value is None else self.form.fault(value, name)


@dataclass(frozen=True)
class Each:
    """A list of `least` or more of `form`."""

    form: Form
    least: int = 0

    def fault(self, value: object, name: str) -> str | None:
        if not isinstance(value, list):
            return f"{name} is {_shown(value)}, not a list"
        if len(value) < self.least:
            return f"{name} has {len(value)} entries, not {self.least} or more"
        return next(filter(None, (self.form.fault(item, f"{name}[{i}]") for i, item in enumerate(value))), None)


@dataclass(frozen=True)
class ByName:
    """An object with names of any kind, the value of each of `form`."""

    form: Form

    def fault(self, value: object, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} is {_shown(value)}, not an object"
        return next(filter(None, (self.form.fault(item, _within(name, key)) for key, item in value.items())), None)


@dataclass(frozen=True)
class Fields:
    """An object with these fields. One whose name ends with `?` may be missing or null; others may be there too."""

    fields: Mapping[str, Form]

    def fault(self, value: object, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} is {_shown(value)}, not an object" if name else "it is not a JSON object"
        for key, form in self.fields.items():
            own = key.removesuffix("?")
            if own not in value and own == key:
                return f"it has no {_within(name, own)}"
            if own not in value or (value[own] is None and own != key):
                continue
            if found := form.fault(value[own], _within(name, own)):
                return found
        return None


@dataclass(frozen=True)
class AtLeast:
    """Beside a sequence's type: how many entries it must have."""

    entries: int


def _within(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key


def _shown(value: object) -> str:
    return f"{value!r:.40}"


R = TypeVar("R", bound="Record")


@dataclass(frozen=True)
class Record:
    """An object of a JSON file. Subclasses are dataclasses, frozen and with keywords only, in the order of the file.

    A field that may be None may be missing or null in a file. Written anew, it is null then, or with a default left out.
    A type that must be there and may be null is annotated with `OrNull`.

    Attributes:
        source: the object that it was read from, with whatever else stands there; None of a new record.
    """

    source: Mapping[str, object] | None = field(default=None, kw_only=True, repr=False, compare=False)

    @classmethod
    def read(cls: type[R], value: Mapping[str, object]) -> R:
        """Make a record of an object that is of `form_of(cls)`."""
        record = cls.__new__(cls)
        # Not by the constructor, which takes a frozen record three times as long: a store has many.
        found = record.__dict__
        found["source"] = value
        for name, make in _plan(cls).makers:
            found[name] = value.get(name) if make is None else make(value.get(name))
        return record

    def has(self, name: str) -> bool:
        """Tell whether the file names this field, which may be null there."""
        return name in (self.source or {})

    def json(self) -> dict[str, Any]:  # as `json.loads` gives it: for files, hooks and programs of others
        """Give what is written: what it was read from, with the fields as they are now."""
        found = dict(self.source or {})
        for name, left_out in _plan(type(self)).left_out:
            value = _plain(getattr(self, name))
            if value is not None:
                found[name] = value
            elif found.get(name) is not None:
                del found[name]
            elif self.source is None and not left_out:
                found[name] = None
        return found


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.json()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


#: Makes what a field holds of what stands in the file; None where that is the same.
_Maker = Callable[[Any], object] | None


@dataclass(frozen=True)
class _Plan:
    """What follows from a record's fields and their types, by their names.

    Attributes:
        makers: of each field.
        left_out: whether it is left out of a new record where it is None.
    """

    form: Fields
    makers: tuple[tuple[str, _Maker], ...]
    left_out: tuple[tuple[str, bool], ...]


_PLANS: dict[type[Record], _Plan] = {}


def _plan(record: type[Record]) -> _Plan:
    if record not in _PLANS:
        hints = get_type_hints(record, include_extras=True)
        own = [found for found in dataclasses.fields(record) if found.name != "source"]
        makers = tuple((found.name, _maker(hints[found.name])) for found in own)
        left_out = tuple((found.name, found.default is None) for found in own)
        forms = {f"{found.name}{_mark(hints[found.name])}": _form(hints[found.name]) for found in own}
        _PLANS[record] = _Plan(Fields(forms), makers, left_out)
    return _PLANS[record]


def form_of(record: type[Record]) -> Fields:
    """The form of the objects that this record is read from."""
    return _plan(record).form


def _mark(hint: object) -> str:
    return "" if _without_none(hint) is hint else "?"


def _without_none(hint: Any) -> object:
    """`T` of `T | None`; any other type as it is."""
    if get_origin(hint) not in (Union, types.UnionType) or len(get_args(hint)) != 2:
        return hint
    one, other = get_args(hint)
    return one if other is type(None) else hint


def _form(hint: Any) -> Form:
    if (inner := _without_none(hint)) is not hint:
        return OrNull(_form(inner))
    if get_origin(hint) is Annotated:
        base, note = get_args(hint)
        form: Form = Each(_form(get_args(base)[0]), note.entries) if isinstance(note, AtLeast) else note
        return form
    if hint is bool:
        return Flag()
    if isinstance(hint, type) and issubclass(hint, Record):
        return form_of(hint)
    if get_origin(hint) is collections.abc.Sequence:
        return Each(_form(get_args(hint)[0]))
    if get_origin(hint) is collections.abc.Mapping:
        return ByName(_form(get_args(hint)[1]))
    raise TypeError(f"{hint} says nothing of what may stand in a file")


def _maker(hint: Any) -> _Maker:
    hint = _without_none(hint)
    if get_origin(hint) is Annotated:
        return _maker(get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, Record):
        return _unless_none(hint.read)
    inner = _maker(get_args(hint)[-1]) if get_args(hint) else None
    if inner is None:
        return None
    if get_origin(hint) is collections.abc.Mapping:
        return _unless_none(lambda value: {key: inner(item) for key, item in value.items()})
    return _unless_none(lambda value: tuple(map(inner, value)))


def _unless_none(make: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda value: None if value is None else make(value)
