"""Unites run stores of several machines.

Everything is looked at before anything is written: two finished trials of one id must have the same predictions,
and no folder may have a link in it or a name that is not the trial's. Each trial then arrives whole, by a rename.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flowers_bench.errors import UsageError
from flowers_bench.store import Store, TrialFolder
from flowers_bench.trial import config_id


@dataclass(frozen=True)
class Merged:
    """How many trials were `taken` from the sources, `present` in the target as good as theirs, and there in `total`;
    those of searches included."""

    taken: int
    present: int
    total: int


def merge_stores(sources: Sequence[Path], target: Path) -> Merged:
    """Bring every trial of `sources` into `target`, a store or a folder yet to be made; those of their searches too.

    Of a trial that several have, the finished one is taken, rather with `--stress` than without, or else the one with most epochs behind it.

    Raises:
        UsageError: a source is no store; a trial is damaged, has links in it, or contradicts another of its id.
    """
    searches = [search.root for root in sources if any((search := Store(root).of_searches()).trials())]
    parts = [_Part.of(sources, target)]
    if searches:
        parts.append(_Part.of(searches, Store(target).of_searches().root))
    for part in parts:
        part.target.mkdir(parents=True, exist_ok=True)
        for folder in part.new:
            _bring(folder, part.target)
    return Merged(*(sum(count) for count in zip(*((len(p.new), p.present, p.total) for p in parts), strict=True)))


@dataclass(frozen=True)
class _Part:
    """What is to be brought into one store: `new` trials, beside `present` ones, which makes a `total`."""

    target: Path
    new: list[TrialFolder]
    present: int
    total: int

    @classmethod
    def of(cls, sources: Sequence[Path], target: Path) -> _Part:
        chosen: dict[str, TrialFolder] = {}
        present = 0
        for root in dict.fromkeys([*([target] if target.exists() else []), *sources]):
            for folder in _checked(root, may_be_empty=root == target):
                other = chosen.get(folder.id)
                chosen[folder.id] = folder if other is None else _better(other, folder)
                present += other is not None
        new = [folder for folder in chosen.values() if folder.path.parent != target]
        return cls(target, new, present, len(chosen))


def _checked(root: Path, *, may_be_empty: bool) -> list[TrialFolder]:
    found = list(Store(root).trials())
    if not found and not may_be_empty:
        raise UsageError(f"{root} is not a run store: no folder in it has a config.json.")
    for folder in found:
        if not folder.is_of_its_config():
            raise UsageError(
                f"{folder.path} is not the trial that its config.json describes ({config_id(folder.config())}): it was renamed or "
                "edited. Remove it, or run it again."
            )
        for path in [folder.path, *folder.path.rglob("*")]:
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise UsageError(f"{path} is a link or a device: a run store has plain files only. Remove it.")
    return found


def _better(first: TrialFolder, second: TrialFolder) -> TrialFolder:
    if first.finished() and second.finished():
        _refuse_contradiction(first, second)
    rank = [(folder.finished(), folder.stressed(), len(folder.history())) for folder in (first, second)]
    return second if rank[1] > rank[0] else first


def _refuse_contradiction(first: TrialFolder, second: TrialFolder) -> None:
    results = [folder.result() for folder in (first, second)]
    split = (
        "test" if "test" in results[0] else "val"
    )  # a trial of a search reads no test split, and keeps no predictions
    if first.predictions().equals(second.predictions()) if split == "test" else results[0]["val"] == results[1]["val"]:
        return
    accuracy = [f"{split} {100 * result[split]['top1']:.2f} %" for result in results]
    raise UsageError(
        f"trial {first.id} has other predictions in {second.path.parent} ({accuracy[1]}) than in {first.path.parent} "
        f"({accuracy[0]}): machines that calculate differently gave one trial two results. Keep one of them."
    )


def _bring(folder: TrialFolder, target: Path) -> None:
    """Copy beside its place, then rename; locks and half-written files stay behind."""
    place = target / folder.id
    with tempfile.TemporaryDirectory(dir=target, prefix=".merging-") as temporary:
        copy = Path(temporary) / "new"
        shutil.copytree(folder.path, copy, ignore=shutil.ignore_patterns(".*"))
        if place.exists():
            place.rename(Path(temporary) / "old")
        copy.rename(place)
