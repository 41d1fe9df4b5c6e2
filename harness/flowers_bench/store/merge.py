"""Unites run stores of several machines.

Everything is looked at before anything is written: each trial by the readers that every command has, and two finished
trials of one id must have the same predictions. A trial that is damaged, or has a link or a device in its folder, is left
out and named; plans of looks (`decisions.py`) come along. Each of the others arrives whole, by a rename, but without the places in its `run.json`, which are another
machine's. Names unite: a trial that is called otherwise in another store has both names.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers_bench.store.decisions import bring_decisions, read_decisions
from flowers_bench.store.folder import Contents, Store, TrialFolder, leave_places_behind, read_each
from flowers_bench.store.identity import Label
from flowers_bench.util.errors import Unreadable, UsageError


@dataclass(frozen=True)
class Merged:
    """How many trials were `taken` from the sources, were `present` in the target already, and are there in `total`,
    including those of searches. For each trial that was left out, `damaged` says why."""

    taken: int
    present: int
    total: int
    damaged: tuple[Unreadable, ...] = ()


def merge_stores(sources: Sequence[Path], target: Path) -> Merged:
    """Bring every trial of `sources` into `target`, a store or a folder yet to be made; those of their searches too.

    Where several stores have a trial, a finished one is taken (rather with `--stress` than without), or else the one with
    the most finished epochs.

    Raises:
        UsageError: a source is no store, a trial contradicts another of its id, or a plan of looks is damaged; nothing is
            written then.
    """
    for root in (*sources, target):
        read_decisions(root)  # without its plan no trial may come along, and nothing is written yet
    searches = [search.root for root in sources if any((search := Store(root).of_searches()).trials())]
    transfers = [_Transfer.of(sources, target)]
    if searches:
        transfers.append(_Transfer.of(searches, Store(target).of_searches().root))
    for transfer in transfers:
        transfer.target.mkdir(parents=True, exist_ok=True)
        for folder in transfer.new:
            _bring(folder, transfer.target)
        for trial_id, labels in transfer.labels.items():
            Store(transfer.target).folder(trial_id).add_labels(labels)
    bring_decisions(sources, target)
    return Merged(
        sum(len(transfer.new) for transfer in transfers),
        sum(transfer.present for transfer in transfers),
        sum(transfer.total for transfer in transfers),
        tuple(error for transfer in transfers for error in transfer.damaged),
    )


@dataclass(frozen=True)
class _Transfer:
    """What is brought into one store.

    Attributes:
        new: the trials to be copied.
        present: how many trials were found that the target or an earlier source has already.
        total: how many readable trials the target has afterwards.
        damaged: why others are left out.
        labels: of each trial, by id, the names that it has in any of the stores.
    """

    target: Path
    new: list[TrialFolder]
    present: int
    total: int
    damaged: list[Unreadable]
    labels: Mapping[str, Sequence[Label]]

    @classmethod
    def of(cls, sources: Sequence[Path], target: Path) -> _Transfer:
        chosen: dict[str, TrialFolder] = {}
        # What the target has stays, even if damaged: only the user may remove it.
        stays = {folder.id for folder in Store(target).trials()}
        present = 0
        damaged: list[Unreadable] = []
        found: list[TrialFolder] = []
        for root in dict.fromkeys([*([target] if target.exists() else []), *sources]):
            sound, left_out = _checked(root, may_be_empty=root == target)
            damaged += left_out
            found += sound
            for folder in sound:
                other = chosen.get(folder.id)
                chosen[folder.id] = folder if other is None else better_of(other, folder)
                present += other is not None
            if root == target:
                stays -= chosen.keys()
        for trial_id in stays & chosen.keys():
            del chosen[trial_id]
        new = [folder for folder in chosen.values() if folder.path.parent != target]
        return cls(target, new, present, len(chosen), damaged, _labels(chosen.values(), found))


def _labels(chosen: Iterable[TrialFolder], found: Iterable[TrialFolder]) -> dict[str, list[Label]]:
    """Collect, for each chosen trial, the names that it has in any of the stores."""
    labels: dict[str, list[Label]] = {folder.id: [] for folder in chosen}
    for folder in found:
        if folder.id in labels:
            labels[folder.id] += folder.stored_labels()
    return labels


def _checked(root: Path, *, may_be_empty: bool) -> tuple[list[TrialFolder], list[Unreadable]]:
    """Read a store: the trials that may be taken, by id, and why the others may not be. Raises `UsageError` where it
    has no trials, unless it `may_be_empty`."""
    found = list(Store(root).trials())
    if not found and not may_be_empty:
        raise UsageError(f"{root} is not a run store: no folder in it has a config.json.")
    contents = read_each(found)
    sound: list[TrialFolder] = []
    for folder in (*contents.finished, *contents.unfinished):
        try:
            folder.refuse_links()
            sound.append(folder)
        except Unreadable as error:
            contents.damaged.append(error)
    return sorted(sound, key=lambda folder: folder.id), contents.damaged


def united(stores: Iterable[Contents]) -> Contents:
    """Put the contents of several stores together, each trial once, as `merge_stores` would choose it; nothing is written.

    Raises:
        UsageError: two finished trials of one id have other predictions.
    """
    found = list(stores)
    chosen: dict[str, TrialFolder] = {}
    for folder in (folder for contents in found for folder in (*contents.finished, *contents.unfinished)):
        other = chosen.get(folder.id)
        chosen[folder.id] = folder if other is None else better_of(other, folder)
    together = read_each(chosen.values())  # once more: trials of one split must be about the same images in all stores
    together.damaged[:0] = [error for contents in found for error in contents.damaged]
    return together


def better_of(first: TrialFolder, second: TrialFolder) -> TrialFolder:
    """Choose of two folders of one trial the finished one, rather with `--stress`, or that with more epochs; the first, if they
    have the same. Raises `UsageError` where both are finished and their predictions differ."""
    if first.finished() and second.finished():
        _refuse_contradiction(first, second)
    rank = [(folder.finished(), folder.stressed(), len(folder.history())) for folder in (first, second)]
    return second if rank[1] > rank[0] else first


def _refuse_contradiction(first: TrialFolder, second: TrialFolder) -> None:
    if first.config().searched:  # such a trial reads no test split, and keeps no predictions
        split, metrics = "val", [folder.any_result().val for folder in (first, second)]
        same = metrics[0].json() == metrics[1].json()
    else:
        split, metrics = "test", [folder.result().test for folder in (first, second)]
        same = first.predictions().equals(second.predictions())
    if same:
        return
    accuracy = [f"{split} {100 * found.top1:.2f} %" for found in metrics]
    raise UsageError(
        f"trial {first.id} has other predictions in {second.path.parent} ({accuracy[1]}) than in {first.path.parent} "
        f"({accuracy[0]}): machines that calculate differently gave one trial two results. Keep one of them."
    )


def _bring(folder: TrialFolder, target: Path) -> None:
    """Copy a trial into a temporary folder of the target, then rename it. Locks and half-written files are not
    copied."""
    place = target / folder.id
    with tempfile.TemporaryDirectory(dir=target, prefix=".merging-") as temporary:
        copy = Path(temporary) / "new"
        shutil.copytree(folder.path, copy, symlinks=True, ignore=shutil.ignore_patterns(".*"))
        leave_places_behind(TrialFolder(copy))
        if place.exists():
            place.rename(Path(temporary) / "old")
        copy.rename(place)
