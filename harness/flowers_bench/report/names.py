"""Name configurations: `technique/variant`, followed by exactly the facts that distinguish it from others of that name.

A name is for people, and belongs to one table. Programs look a configuration up by its `configuration_id`.
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
#: Fields that differ although the same configuration was chosen: the seed, and the version of the file format.
_NOT_CONFIGURED = ("schema_version", "id", "seed")

Facts = Mapping[str, str]


def configuration_id(config: Config) -> str:
    """Compute the configuration's id, 16 hexadecimal digits: equal for trials of one name that differ only in the seed."""
    facts = config.json()
    if config.schema_version != 1:
        facts = {**determining(facts), "technique": config.technique, "variant": config.variant}
    return short_hash({key: value for key, value in facts.items() if key not in _NOT_CONFIGURED})


def seedless_id(config: Config) -> str:
    """Compute the id of what determines a trial's outcome except the seed, 16 hexadecimal digits: equal for all seeds of a
    configuration, whatever it is called."""
    return short_hash({key: value for key, value in determining(config.json()).items() if key != "seed"})


def kinds(config: Config, configuration: str | None = None) -> list[dict[str, str]]:
    """Give all facts that may distinguish configurations, as text, by kind, in the order in which names use them.

    The kinds are: backbone; name of the weights; file of the weights; data and protocol; settings, which are parts, recipe
    fields and options; code; the images of the dataset; and the configuration's id, `row`.

    Args:
        configuration: that id, where it is known already.
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
        {"row": configuration or configuration_id(config)},
    ]
    return [{one_line(key): _text(value) for key, value in kind.items()} for kind in found]


def factors(config: Config) -> dict[str, str]:
    """Give everything that was chosen for a trial, as text by key; not the dataset's images, which follow from it, nor `row`."""
    return chosen(kinds(config))


def chosen(found: Sequence[Facts]) -> dict[str, str]:
    """Give those of the facts of `kinds` that `factors` has."""
    return merged(found[:-2])


def facts_without(config: Config, *keys: str) -> list[dict[str, str]]:
    """Give the facts of `kinds` without these keys."""
    return [{key: value for key, value in kind.items() if key not in keys} for kind in kinds(config)]


def merged(found: Sequence[Facts]) -> dict[str, str]:
    """Join the facts of several kinds in one dictionary."""
    return {key: value for kind in found for key, value in kind.items()}


def distinct_names(configs: Sequence[Config]) -> list[str]:
    """Name each configuration by `technique/variant` and the facts that distinguish it from the others.

    Two names are equal only if the configurations are.
    """
    return disambiguate([config.label for config in configs], list(map(kinds, configs)))


def disambiguate(
    names: Sequence[str], found: Sequence[Sequence[Facts]], write: Callable[[str, str], str] = " {}={}".format
) -> list[str]:
    """Add to each name, on one line, the facts that distinguish it from others of the same name.

    Args:
        found: for each name its facts by kind. A kind is used only if two names are still equal after the kinds before it.
            The last kind must distinguish all of them.
        write: a function that writes a fact, key and value, as text.
    """
    distinct = list(map(one_line, names))
    by_kind = list(zip(*found, strict=True))
    # The last kind is used twice, because somebody may have chosen a name that looks like another one with its facts.
    for facts in (*by_kind, *by_kind[-1:]):
        for twins in _alike(distinct):
            for place, text in zip(twins, _differences([facts[place] for place in twins], write), strict=True):
                distinct[place] += text
    return distinct


def _alike(names: Sequence[str]) -> list[list[int]]:
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return [twins for twins in places.values() if len(twins) > 1]


def _differences(facts: Sequence[Facts], write: Callable[[str, str], str]) -> list[str]:
    """Write for each the facts in which it differs from others.

    A fact that it does not have is written as `absent`, but only if another one has all of its facts and more.
    """
    keys = sorted({key for own in facts for key in own if any(other.get(key) != own[key] for other in facts)})
    shown = [{key: own[key] for key in keys if key in own} for own in facts]
    lacking = [any(own.items() < other.items() for other in shown) for own in shown]
    return [
        "".join(write(key, own.get(key, ABSENT)) for key in keys if key in own or lacks)
        for own, lacks in zip(shown, lacking, strict=True)
    ]


def read_name(text: str) -> tuple[str, dict[str, str]]:
    """Read a name as people type it, `NAME[/VARIANT] [KEY=VALUE ...]`: the label and the facts; values may have spaces."""
    label, *rest = re.split(r"\s+(?=[^\s=]+=)", text.strip())
    return label, dict(item.partition("=")[::2] for item in rest)


def one_line(text: str) -> str:
    """Make text printable, on one line, without spaces that HTML would not show."""
    return " ".join(printable(text).split())


def _without_name(record: Record) -> dict[str, object]:
    return {key: value for key, value in record.json().items() if key != "name"}


def _under(prefix: str, values: Mapping[str, object]) -> dict[str, object]:
    return {f"{prefix}.{key}": value for key, value in values.items()}


def _text(value: object) -> str:
    """Convert a value to text on one line; a checksum to its first eight digits."""
    text = one_line(str(value))
    return text[:8] if len(text) == 64 and re.fullmatch("[0-9a-f]{64}", text) else text
