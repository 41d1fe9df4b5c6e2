"""A trial's identity: exactly what determines its outcome, and an id that is a hash of that."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flowers_bench.contract.options import Options, ReadsOptions
from flowers_bench.contract.technique import EMA_WARMUP, Recipe
from flowers_bench.util.errors import UsageError

#: Bumped when the same configuration would give other numbers (a changed loop, sampler or preprocessing).
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

    def facts(self) -> dict[str, Any]:
        """Plain JSON values. What was not asked for has no key: without it, ids are as ever."""
        found: dict[str, Any] = {"train": self.train, "select": self.select, "report": self.report}
        if self.search:
            found["search"] = self.search
        return found if self.shots is None else {**found, "shots": self.shots}


@dataclass(frozen=True)
class Trial(ReadsOptions):
    """technique/variant x dataset x backbone + weights x recipe x seed, with every name resolved.

    Attributes:
        technique, variant: what the user asked for.
        model, loss, augmentation, sampler, predictor: names of the parts in use.
        options: every option of the parts, with its value.
        dataset: `Dataset.facts()`.
        data_options: the dataset's options.
        backbone: timm model name.
        weights: `{"name": ..., "sha256": ... or None}`: where the initial values come from.
        recipe: how it is trained.
        seed: from which every random number of the trial is derived.
        code: identity of each plugin whose parts are in use.
        protocol: which split does what.
    """

    technique: str
    variant: str
    model: str
    loss: str
    augmentation: str
    sampler: str
    predictor: str
    options: Options
    dataset: Mapping[str, Any]
    data_options: Mapping[str, Any]
    backbone: str
    weights: Mapping[str, Any]
    recipe: Recipe
    seed: int
    code: Mapping[str, str]
    protocol: Protocol = field(default_factory=Protocol)

    @property
    def label(self) -> str:
        """`technique/variant`, as the user writes it."""
        return f"{self.technique}/{self.variant}"

    @property
    def id(self) -> str:
        """16 hexadecimal digits of the SHA-256 over `facts()`, without the dataset's notes, which are for people."""
        return config_id(self.facts())

    def facts(self) -> dict[str, Any]:
        """Plain JSON values: what is hashed, and what `config.json` holds."""
        return {
            "harness_revision": HARNESS_REVISION,
            "technique": self.technique,
            "variant": self.variant,
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
        }


def trial_from_config(config: Mapping[str, Any]) -> Trial:
    """The trial that a `config.json` describes. Of one that averaged its weights before that average warmed up, the id
    here is another: it can be read, but this version would not train it so. Raises `UsageError` if its id does not match its
    content."""
    facts = {k: v for k, v in config.items() if k not in ("schema_version", "id", "harness_revision")}
    try:
        trial = Trial(
            **{
                **facts,
                "recipe": Recipe.from_facts(facts["recipe"]),
                "protocol": Protocol(**facts["protocol"]),
            }
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"config.json of trial {config.get('id')} is damaged: {error}. Remove its folder.") from error
    described = trial.facts()
    if EMA_WARMUP not in facts["recipe"]:
        described["recipe"].pop(EMA_WARMUP, None)
    if config_id(described) != config.get("id"):
        raise does_not_match(config, config_id(described))
    return trial


def does_not_match(config: Mapping[str, Any], id: str) -> UsageError:
    """The error for a `config.json` of a trial that has another id here."""
    return UsageError(
        f"config.json of trial {config.get('id')} does not match its id (it hashes to {id}): it was edited, or "
        "written by another version. Remove its folder."
    )


def config_id(config: Mapping[str, Any]) -> str:
    """The id of the trial that a `config.json` (or `Trial.facts()`) describes, whichever version wrote it."""
    facts = {key: value for key, value in config.items() if key not in ("schema_version", "id")}
    facts["dataset"] = {key: value for key, value in facts.get("dataset", {}).items() if key != "notes"}
    canonical = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def derive_seed(seed: int, *axes: str | int) -> int:
    """A 63-bit seed for one purpose, hashed from the trial's seed and named axes.

    The technique is not an axis: trials that are compared share data order and, epoch by epoch, augmentation draws.
    """
    text = json.dumps([seed, *axes])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
