"""A trial's identity: exactly what determines its outcome, and an id that is a hash of that.

Names are no part of it. What a technique, a variant or a suite's row calls a trial is a `Label` beside it: two that mean one
training have one trial between them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from flowers_bench.contract.options import Options, OptionValue, ReadsOptions
from flowers_bench.contract.step import USUAL
from flowers_bench.contract.technique import Recipe, in_use
from flowers_bench.util.errors import UsageError

# Facts are `Any` inside here: the JSON of a `config.json`, of this version or an older one. `store.records` has its types.
V = TypeVar("V")
#: Raised when the same configuration would give other numbers (a changed loop, sampler or preprocessing).
HARNESS_REVISION = 1


@dataclass(frozen=True)
class Protocol:
    """Which split trains, which selects the checkpoint, which reports. The same for all techniques compared.

    Attributes:
        report: `test`, or `none` for a trial of a search, which must not know.
        search: how many configurations were tried, by their validation accuracy, to find the recipe; 0: it is as given.
        shots: training images of each class (`data.shots.few_shot`); None: all there are.
    """

    train: str = "train"
    select: str = "val"
    report: str = "test"
    search: int = 0
    shots: int | None = None

    def facts(self) -> dict[str, str | int]:
        """Give the protocol as plain JSON values. Unset fields are omitted, so that ids of trials from before they
        existed stay valid."""
        found: dict[str, str | int] = {"train": self.train, "select": self.select, "report": self.report}
        if self.search:
            found["search"] = self.search
        return found if self.shots is None else {**found, "shots": self.shots}


@dataclass(frozen=True)
class Label:
    """A name of a trial, for people. A trial may have several: each technique that has this very training among its variants,
    each suite that has it among its rows, calls it by a name of its own.

    Attributes:
        technique, variant: the name, in two halves.
        baseline: `technique/variant` that it is to be compared with under this name, or None.
    """

    technique: str
    variant: str
    baseline: str | None = None

    @classmethod
    def of(cls, text: str, baseline: str | None = None) -> Label:
        """Make the label that reads `technique/variant`."""
        technique, _, variant = text.partition("/")
        return cls(technique, variant, baseline)

    @property
    def text(self) -> str:
        """`technique/variant`, as the user writes it."""
        return f"{self.technique}/{self.variant}"


@dataclass(frozen=True)
class Trial(ReadsOptions):
    """One training with everything that determines its outcome, every name resolved. What people call it is a `Label`.

    Attributes:
        model, loss, augmentation, sampler, predictor, step: names of the parts in use.
        options: every option of the parts, with its value.
        dataset: `Dataset.facts()`; of a dataset that is not built in also its `options`, which its fingerprint may not cover.
        data_options: the dataset's options.
        backbone: timm model name.
        weights: `{"name": ..., "sha256": ... or None}`: where the initial values come from.
        recipe: how it is trained.
        seed: from which every random number of the trial is derived.
        code: identity of each plugin of others whose parts are in use, and every revision that is not the first.
        protocol: which split does what.
    """

    model: str
    loss: str
    augmentation: str
    sampler: str
    predictor: str
    options: Options
    dataset: Mapping[str, Any]
    data_options: Mapping[str, OptionValue]
    backbone: str
    weights: Mapping[str, Any]
    recipe: Recipe
    seed: int
    code: Mapping[str, str]
    protocol: Protocol = field(default_factory=Protocol)
    step: str = USUAL.name

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 over the `determining` fields of `facts()`."""
        return config_id(self.facts())

    def facts(self) -> dict[str, Any]:
        """Give the trial as plain JSON values: what `config.json` holds. The usual step is not named, so that ids of trials from
        before there were others stay valid."""
        return {
            "harness_revision": HARNESS_REVISION,
            "model": self.model,
            "loss": self.loss,
            "augmentation": self.augmentation,
            "sampler": self.sampler,
            "predictor": self.predictor,
            "options": dict(self.options),
            "dataset": dict(self.dataset),
            "data_options": dict(self.data_options),
            "backbone": self.backbone,
            "weights": dict(self.weights),
            "recipe": self.recipe.facts(),
            "seed": self.seed,
            "code": dict(self.code),
            "protocol": self.protocol.facts(),
            **({} if self.step == USUAL.name else {"step": self.step}),
        }


def trial_from_config(config: Mapping[str, Any]) -> Trial:
    """Make the trial that a `config.json` describes. Raises `UsageError` if its id does not match its content.

    The trial of another version may have another id here: it can be read, but this version would train it under its own id.
    """
    known = {field.name for field in fields(Trial)}
    facts = {key: value for key, value in config.items() if key in known}
    try:
        if (found := config_id(config)) != config.get("id"):
            raise does_not_match(config, found)
        recipe, protocol = Recipe.from_facts(facts["recipe"]), Protocol(**facts["protocol"])
        return Trial(**{**facts, "recipe": recipe, "protocol": protocol})
    except (KeyError, TypeError) as error:
        raise UsageError(f"config.json of trial {config.get('id')} is damaged: {error}. Remove its folder.") from error


def does_not_match(config: Mapping[str, object], id: str) -> UsageError:
    """Make the error for a `config.json` whose content has another id than it states."""
    return UsageError(
        f"config.json of trial {config.get('id')} does not match its id (it hashes to {id}): it was edited, or "
        "written by another version. Remove its folder."
    )


#: Fields of a `config.json` that do not determine the outcome: names, and what the dataset's hashes cover already.
_LEFT_OUT = ("schema_version", "id", "technique", "variant", "data_options")
#: Fields of a dataset that determine the outcome: its content, which name, notes and resolution only describe.
_CONTENT = ("classes", "n_train", "n_val", "n_test", "fingerprint", "split_checksum", "options", "n_unlabelled")


def determining(config: Mapping[str, Any]) -> dict[str, Any]:
    """Pick from a `config.json` (or `Trial.facts()`) what determines the trial's outcome: its id is a hash of this.

    In schema 1 that was everything except the dataset's notes, including the names of technique and variant and the version
    of flowers-bench.
    """
    if config.get("schema_version") == 1:
        facts = {key: value for key, value in config.items() if key not in ("schema_version", "id")}
        return {**facts, "dataset": _without(config.get("dataset", {}), "notes")}
    recipe = config["recipe"]
    return {
        **_without(config, *_LEFT_OUT),
        "dataset": {key: value for key, value in config["dataset"].items() if key in _CONTENT},
        "weights": config["weights"]["sha256"],
        "recipe": in_use(recipe, trained=recipe["epochs"] > 0),
    }


def config_id(config: Mapping[str, Any]) -> str:
    """Compute the id of the trial that a `config.json` (or `Trial.facts()`) describes, whichever version wrote it."""
    return short_hash(determining(config))


def short_hash(value: Any) -> str:
    """Hash plain JSON values: the first 16 hexadecimal digits of their SHA-256."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _without(values: Mapping[str, V], *names: str) -> dict[str, V]:
    return {key: value for key, value in values.items() if key not in names}


def derive_seed(seed: int, *axes: str | int) -> int:
    """Derive a 63-bit seed for one purpose from the trial's seed and named axes.

    The technique is not an axis: trials that are compared share data order and, epoch by epoch, augmentation draws.
    """
    text = json.dumps([seed, *axes])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
