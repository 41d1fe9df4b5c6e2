"""What configurations are called: `technique/variant`, and after it exactly what tells one from others of that name.

A name is for people, and belongs to one table: whatever is looked up is looked up by `configuration_id`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from flowers_bench.store.identity import determining, short_hash
from flowers_bench.store.records import Config
from flowers_bench.store.schema import Record
from flowers_bench.util.text import printable

#: The value of a setting that a configuration does not have.
ABSENT = "absent"
#: What one table's configurations differ in beyond what was chosen: seeds, and how the files are written.
_NOT_CONFIGURED = ("schema_version", "id", "seed")

Facts = Mapping[str, str]


def configuration_id(config: Config) -> str:
    """16 hexadecimal digits that trials of one name have in common if they differ in nothing but the seed."""
    facts = config.json()
    if config.schema_version != 1:
        facts = {**determining(facts), "technique": config.technique, "variant": config.variant}
    return short_hash({key: value for key, value in facts.items() if key not in _NOT_CONFIGURED})


def kinds(config: Config) -> list[dict[str, str]]:
    """All that may tell one configuration from another, as text, in the order in which names say it.

    Backbone; weights, by their name, then by their file; data and protocol; settings: parts, recipe fields and options
    by their own names; code; the dataset's images; what all of these have in common, `row`.
    """
    protocol = config.protocol.json()
    about = {
        "data": config.dataset.name,
        "shots": protocol.pop("shots", "all"),
        **_under("data", config.data_options),
        **_under("protocol", protocol),
    }
    nested = ("dataset", "weights", "protocol", "data_options", "options", "recipe", "code")
    code = {"harness_revision": config.harness_revision, **_under("code", config.code)}
    apart = {*_NOT_CONFIGURED, *nested, "backbone", *code, *about, "row"}
    settings = {key: value for key, value in config.json().items() if key not in apart} | config.recipe.json()
    taken = {*apart, *settings}
    settings |= {f"options.{key}" if key in taken else key: value for key, value in config.options.items()}
    found: list[Mapping[str, object]] = [
        {"backbone": config.backbone},
        {"weights": config.weights.name},
        _under("weights", _without_name(config.weights)),
        about,
        settings,
        code,
        _under("dataset", _without_name(config.dataset)),
        {"row": configuration_id(config)},
    ]
    return [{one_line(key): _text(value) for key, value in kind.items()} for kind in found]


def factors(config: Config) -> dict[str, str]:
    """What was chosen for a trial, flat and as text; neither the dataset's images, which follow from it, nor `row`."""
    return merged(kinds(config)[:-2])


def facts_without(config: Config, *keys: str) -> list[dict[str, str]]:
    """`kinds`, but for these keys."""
    return [{key: value for key, value in kind.items() if key not in keys} for kind in kinds(config)]


def merged(found: Sequence[Facts]) -> dict[str, str]:
    """Facts of several kinds as one dictionary."""
    return {key: value for kind in found for key, value in kind.items()}


def distinct_names(configs: Sequence[Config]) -> list[str]:
    """`technique/variant` of each, with whatever it takes to tell it from the others: no two names are equal, unless two
    configurations are."""
    return told_apart([config.label for config in configs], list(map(kinds, configs)))


def told_apart(
    names: Sequence[str], found: Sequence[Sequence[Facts]], write: Callable[[str, str], str] = " {}={}".format
) -> list[str]:
    """The names as single lines, each followed by the facts that tell it from others of the same name.

    Args:
        found: of each name its facts by kind. A kind is written only where those before it leave two names equal. The
            last one must tell any two apart.
        write: a fact as text.
    """
    told = list(map(one_line, names))
    by_kind = list(zip(*found, strict=True))
    # The last kind twice: a name may have been made to look like another with its facts.
    for facts in (*by_kind, *by_kind[-1:]):
        for twins in _alike(told):
            for place, text in zip(twins, _differences([facts[place] for place in twins], write), strict=True):
                told[place] += text
    return told


def _alike(names: Sequence[str]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return [twins for twins in places.values() if len(twins) > 1]


def _differences(facts: Sequence[Facts], write: Callable[[str, str], str]) -> list[str]:
    """Of each its facts that others do not share; what it lacks is said only where another has all of its own."""
    keys = sorted({key for own in facts for key in own if any(other.get(key) != own[key] for other in facts)})
    shown = [{key: own[key] for key in keys if key in own} for own in facts]
    lacking = [any(own.items() < other.items() for other in shown) for own in shown]
    return [
        "".join(write(key, own.get(key, ABSENT)) for key in keys if key in own or lacks)
        for own, lacks in zip(shown, lacking, strict=True)
    ]


def read_name(text: str) -> tuple[str, dict[str, str]]:
    """A name as people type it, `NAME[/VARIANT] [KEY=VALUE ...]`: what stands first, and the facts. Values may have
    spaces."""
    label, *rest = re.split(r"\s+(?=[^\s=]+=)", text.strip())
    return label, dict(item.partition("=")[::2] for item in rest)


def one_line(text: str) -> str:
    """Printable, without line breaks and without spaces that HTML would not show."""
    return " ".join(printable(text).split())


def _without_name(record: Record) -> dict[str, object]:
    return {key: value for key, value in record.json().items() if key != "name"}


def _under(prefix: str, values: Mapping[str, object]) -> dict[str, object]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _text(value: object) -> str:
    """Eight digits of a checksum are enough."""
    text = one_line(str(value))
    return text[:8] if re.fullmatch("[0-9a-f]{64}", text) else text
