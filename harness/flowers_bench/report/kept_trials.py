"""Finished trials whose small files are read once: what they say stands in the store's index until one of them changes."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flowers_bench.report.aggregate import Finished, LabelsById, Records
from flowers_bench.report.names import configuration_id
from flowers_bench.store import index
from flowers_bench.store.folder import TrialFolder, under_name
from flowers_bench.store.identity import Label
from flowers_bench.store.records import Config, Result, Run

#: The file of the index.
_FILE = "records"
#: So many trials are parsed together: they share the names of their fields, and their text need not be there twice.
_TOGETHER = 500


@dataclass(frozen=True)
class _Known:
    """What is known of one trial: its records, and the id of the configuration that it is of under each of its own names."""

    state: str | None
    records: Records
    configurations: Mapping[tuple[str, str], str]

    def under(self, folder: TrialFolder, label: Label) -> Finished:
        configuration = self.configurations.get((label.technique, label.variant))
        return Finished.of(folder, self.records, label, configuration, self.state)


def load_each(
    folders: Iterable[TrialFolder],
    labels: LabelsById | None = None,
    states: Mapping[str, str | None] = MappingProxyType({}),
) -> list[Finished]:
    """Read every trial once for each of its names; a trial that is in `labels` only for the names given there.

    Args:
        states: by id, the state of a trial's files as `Contents.states` has it; of others it is looked up.

    Raises:
        Unreadable: a file of a trial that the index does not know cannot be read.
    """
    listed = list(folders)
    by_root: dict[Path, list[TrialFolder]] = {}
    for folder in listed:
        by_root.setdefault(folder.path.parent, []).append(folder)
    known: dict[TrialFolder, _Known] = {}
    for root, own in by_root.items():
        known |= _load(root, own, states)
    return [
        known[folder].under(folder, label)
        for folder in listed
        for label in ((labels or {}).get(folder.id) or known[folder].records.labels)
    ]


def _load(root: Path, folders: Sequence[TrialFolder], states: Mapping[str, str | None]) -> dict[TrialFolder, _Known]:
    """Read trials of one store: those that its index knows from there, the others from their files."""
    if not (root / index.FOLDER).is_dir():
        return {folder: _read(folder, None) for folder in folders}
    lines = index.Lines.of(root, _FILE)
    now = {f: states[f.id] if f.id in states else index.state_of(f.path) for f in folders}
    found = _known(lines, now)
    for folder, state in now.items():
        if folder not in found:
            found[folder] = _read(folder, state)
            lines.put(folder.id, state, _packed(found[folder]))
    lines.save(lambda trial: os.path.lexists(root / trial))
    return found


def _read(folder: TrialFolder, state: str | None) -> _Known:
    records = Records.read(folder)
    configurations = {
        (label.technique, label.variant): configuration_id(under_name(records.config, label))
        for label in records.labels
    }
    return _Known(state, records, configurations)


def _known(lines: index.Lines, states: Mapping[TrialFolder, str | None]) -> dict[TrialFolder, _Known]:
    """Give those trials whose files are in the state in which they were read."""
    texts = {folder: text for folder, state in states.items() if (text := lines.get(folder.id, state)) is not None}
    wanted, found = list(texts), dict[TrialFolder, _Known]()
    for start in range(0, len(wanted), _TOGETHER):
        some = wanted[start : start + _TOGETHER]
        # Not of the form that is written below: as if there were none.
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError, RecursionError):
            parsed = json.loads(b"[" + b",".join(texts[folder] for folder in some) + b"]")
            found |= {folder: _unpacked(states[folder], value) for folder, value in zip(some, parsed, strict=True)}
    return found


def _packed(known: _Known) -> dict[str, object]:
    """Write what the trial's files say, as JSON values."""
    records = known.records
    return {
        "labels": [
            (label.technique, label.variant, label.baseline, known.configurations[label.technique, label.variant])
            for label in records.labels
        ],
        "config": records.config.json(),
        "result": records.result.json(),
        "run": records.run.json(),
        "spent": records.spent,
    }


def _unpacked(state: str | None, value: Any) -> _Known:  # JSON that was checked before it was kept
    labels = [Label(technique, variant, baseline) for technique, variant, baseline, _ in value["labels"]]
    records = Records(
        labels=tuple(labels),
        config=Config.read(value["config"]),
        result=Result.read(value["result"]),
        run=Run.read(value["run"]),
        spent=float(value["spent"]),
    )
    return _Known(state, records, {(technique, variant): found for technique, variant, _, found in value["labels"]})
