"""The run store: one folder per trial, plain JSON and Parquet, written atomically, merged by copying.

```
runs/<trial id>/config.json         the trial: the id is a hash of this
                labels/             a file for each of its names: technique, variant, baseline (not part of the id)
                run.json            where it ran from: paths, command (not part of the id)
                environment.json    machine, versions, kernel
                history.jsonl       a line per epoch
                checkpoint.pt       last finished epoch, until the trial is finished
                model.safetensors   the checkpoint chosen on validation
                predictions.parquet split, key, label, logits per image, validation and test; test images' shares of retrieval metrics
                stress.parquet      kind, level, key, correct: changed test images, of trials with `--stress`
                result.json         the metrics; written last: its presence means the trial is finished
                attempts.jsonl      a line per attempt to run the trial: how long, and how it ended
                failure.json        why the last attempt failed; removed when the next one begins
                files.json          SHA-256 of each file, of a trial that was pushed to a URL
                log.txt             what the trial's process printed
                figures/            pictures
runs/.index/                        what was computed of the trials; may be removed at any time
runs/decisions/                     plans of `--decide`, by which seeds were added
runs/search/                        a run store of its own: trials of `--search`, which have no test metrics
```
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from flowers_bench.store import tables
from flowers_bench.store.decisions import read_each_decision
from flowers_bench.store.identity import Label, Trial, config_id, short_hash, trial_from_config
from flowers_bench.store.index import Checked, Index
from flowers_bench.store.mirror import WEIGHTS, fetch_weights
from flowers_bench.store.reading import SCHEMA_VERSION, damaged, read_lines, read_record, read_versioned
from flowers_bench.store.records import (
    PLACES,
    Attempt,
    Config,
    Environment,
    Epoch,
    Failure,
    LabelRecord,
    Manifest,
    Result,
    Run,
    SearchedResult,
    StressLevel,
)
from flowers_bench.util.errors import Unreadable, UsageError
from flowers_bench.util.files import write_atomically, write_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import pyarrow as pa

#: Revision of the changes that `--stress` makes to images; raised when an image would be changed otherwise. Metrics of
#: different revisions are not comparable.
STRESS_REVISION = 1


@dataclass(frozen=True)
class Scores:
    """What a trial predicted for one split, in the order of the images' keys.

    Attributes:
        keys: N image names.
        labels: int (N,).
        logits: float32 (N, C).
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class TrialFolder:
    """The folder of one trial, and what is in it."""

    path: Path

    @property
    def id(self) -> str:
        """The trial's id: the folder's name."""
        return self.path.name

    @property
    def run_path(self) -> Path:
        """The file that `run` reads; messages name it."""
        return self.path / "run.json"

    @property
    def best_path(self) -> Path:
        """The file of the chosen checkpoint's weights, which may not exist; code that reads them calls `weights`."""
        return self.path / WEIGHTS

    @property
    def checkpoint_path(self) -> Path:
        """The file of the whole training state after the last epoch; it exists until the trial is finished."""
        return self.path / "checkpoint.pt"

    @property
    def log_path(self) -> Path:
        """What the trial's process printed."""
        return self.path / "log.txt"

    @property
    def lock_path(self) -> Path:
        """The file that is locked by the process that runs the trial."""
        return self.path / ".lock"

    @property
    def figures_path(self) -> Path:
        """The folder of the pictures that techniques drew."""
        return self.path / "figures"

    def prepared(self) -> bool:
        """Tell whether the folder says what its trial is: whether it has a `config.json`."""
        return (self.path / "config.json").is_file()

    def finished(self) -> bool:
        """Tell whether there is a result, readable or not."""
        return os.path.lexists(self.path / "result.json")

    def failed(self) -> bool:
        """Tell whether the last attempt failed, whether or not it can be read why."""
        return os.path.lexists(self.path / "failure.json")

    def changed(self) -> dict[str, float]:
        """Tell when what changes with each epoch, with a result and with a failure was written last, by the file's name."""
        found = {}
        for name in ("config.json", "history.jsonl", "result.json", "failure.json"):
            with contextlib.suppress(OSError):
                found[name] = (self.path / name).stat().st_mtime
        return found

    def stressed(self) -> bool:
        """Tell whether it is finished and was measured on changed images (`--stress`), changed as this version does
        it."""
        if not self.finished():
            return False
        result = self.any_result()
        return isinstance(result, Result) and result.stress_revision == STRESS_REVISION

    def complete(self, *, stress: bool) -> bool:
        """Tell whether nothing is left to do for it; with `stress`, this includes the measurement on changed images."""
        return self.stressed() if stress else self.finished()

    def config(self) -> Config:
        """Read `config.json`: what the trial is. Raises `Unreadable`."""
        path = self.path / "config.json"
        found = read_versioned(path, Config)
        if found.schema_version == 1 and (found.technique is None or found.variant is None):
            raise damaged(path, f"is damaged: it has no {'technique' if found.technique is None else 'variant'}")
        return found

    def labels(self) -> tuple[Label, ...]:
        """Read the trial's names, in alphabetical order. A trial without names (the folder `labels` was not copied with
        it) is called after its model and loss. Raises `Unreadable` for a damaged name."""
        config = self.config()
        if config.technique is not None and config.variant is not None:  # the trial has schema 1
            baseline = self.run().baseline
            return (Label(config.technique, config.variant, f"{config.technique}/{baseline}" if baseline else None),)
        return self.stored_labels() or (Label(config.model, config.loss),)

    def stored_labels(self) -> tuple[Label, ...]:
        """Read those of its names that have a file in `labels`, in alphabetical order. Raises `Unreadable`."""
        folder = self.path / "labels"
        if folder.is_symlink():
            raise damaged(folder, "is a link: a run store has plain files only")
        try:
            files = list(folder.iterdir()) if os.path.lexists(folder) else []
        except OSError as error:
            raise damaged(folder, f"cannot be read: {error.strerror or error}") from error
        found = [read_label(path) for path in files if path.suffix == ".json" and not path.name.startswith(".")]
        return tuple(sorted(found, key=lambda label: label.text))

    def add_labels(self, labels: Iterable[Label]) -> list[Label]:
        """Give the trial further names. Each is a file of its own, and a file that exists is never written again, so
        that other runs may do the same at the same time.

        Returns:
            the names that it did not have.
        """
        new = []
        for label in labels:
            path = self.path / "labels" / _label_file(label)
            if not os.path.lexists(path):
                path.parent.mkdir(exist_ok=True)
                write_json(path, LabelRecord(**dataclasses.asdict(label)).json())
                new.append(label)
        return new

    def described(self, label: Label | None = None) -> Config:
        """Read `config.json`, and set technique and variant to those of `label`, or of the trial's first name if
        None."""
        return under_name(self.config(), label or self.labels()[0])

    def trial(self) -> Trial:
        """Make the trial that `config.json` describes. Raises `UsageError` if its id does not match its content."""
        return trial_from_config(self.config().json())

    def _is_of(self, config: Config) -> bool:
        """Tell whether the folder's name and the id in `config.json` both match its content: neither was edited."""
        return self.id == config.id == config_id(config.json())

    def run(self) -> Run:
        """Read `run.json`: where the trial ran from (paths, command). Nothing of it is in the trial's id. The paths are
        for people to read: they are neither executed nor written to. Raises `Unreadable`."""
        return read_record(self.run_path, Run)

    def result(self) -> Result:
        """Read the result of a finished trial. Raises `UsageError` for a trial of a search, which does not report the
        test split, and `Unreadable` for a damaged result."""
        result = self.any_result()
        if isinstance(result, SearchedResult):
            raise UsageError(f"trial {self.id} is of a search, which never reads the test split.")
        return result

    def any_result(self) -> Result | SearchedResult:
        """Read the result of a finished trial, and check that it agrees with `config.json`. A trial of a search has
        metrics of validation only. Raises `Unreadable`."""
        config, path = self.config(), self.path / "result.json"
        result: Result | SearchedResult
        result = read_versioned(path, SearchedResult) if config.searched else read_versioned(path, Result)
        data = config.dataset
        agreeing: list[tuple[str, object, object]] = [
            ("id", result.id, config.id),
            ("seed", result.seed, config.seed),
            ("val.n", result.val.n, data.n_val),
        ]
        if isinstance(result, Result):
            agreeing.append(("test.n", result.test.n, data.n_test))
        if config.schema_version == 1:
            agreeing.append(("label", result.label, config.label))
        for name, found, expected in agreeing:
            if found != expected:
                raise damaged(path, f"is damaged: {name} is {found!r:.40}, and {expected!r:.40} in config.json")
        if isinstance(result, Result) and len(result.class_names) != data.classes:
            raise damaged(path, f"is damaged: it names {len(result.class_names)} classes of {data.classes}")
        if isinstance(result, Result) and len(result.descriptions or result.class_names) != data.classes:
            raise damaged(path, f"is damaged: it describes {len(result.descriptions or ())} classes of {data.classes}")
        return result

    def environment(self) -> Environment:
        """Read the machine, versions and kernel that a finished trial was measured with. Raises `Unreadable`."""
        return read_record(self.path / "environment.json", Environment)

    def weights(self) -> Path:
        """Find the file of a finished trial's chosen weights. It is downloaded first where the store is a mirror of one
        at a URL. Raises `UsageError` where it is missing or cannot be downloaded."""
        path = self.best_path
        if not os.path.lexists(path):
            fetch_weights(self.path, self.digests().get(WEIGHTS))
        if path.is_symlink() or not path.is_file():
            raise damaged(path, "is not a file")
        return path

    def refuse_links(self) -> None:
        """Refuse a folder that is, or contains, a link or a device, because whatever writes or copies would follow it.
        Raises `Unreadable`."""
        for path in [self.path, *self.path.rglob("*")]:
            # A file may be missing that another process has renamed since it was listed.
            with contextlib.suppress(FileNotFoundError):
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    raise damaged(path, "is a link or a device: a run store has plain files only")

    def failure(self) -> Failure | None:
        """Read why the last attempt failed; None if it did not fail. Raises `Unreadable`."""
        return read_record(self.path / "failure.json", Failure) if self.failed() else None

    def history(self) -> list[Epoch]:
        """Read every finished epoch, in order. Raises `Unreadable`."""
        path = self.path / "history.jsonl"
        found = read_lines(path, Epoch) if os.path.lexists(path) else []
        if [record.epoch for record in found] != list(range(1, len(found) + 1)):
            raise damaged(path, "is damaged: its epochs do not follow each other from 1 on")
        return found

    def attempts(self) -> list[Attempt]:
        """Read every attempt to run the trial, in order. Raises `Unreadable`."""
        path = self.path / "attempts.jsonl"
        return read_lines(path, Attempt) if os.path.lexists(path) else []

    def check(self) -> str | None:
        """Read every file of the trial except weights and pictures, and check that they agree with each other.

        Returns:
            a SHA-256 of the keys and labels of both splits' images; None for a trial without predictions.

        Raises:
            Unreadable: a file cannot be used; the message names the first one.
        """
        config = self.config()
        if not self._is_of(config):
            raise damaged(
                self.path / "config.json",
                f"is not of the trial that it describes ({config_id(config.json())}): its folder was renamed, or it was edited",
            )
        self.run()
        self.labels()
        epochs = len(self.history())
        self.attempts()
        self.failure()
        if os.path.lexists(self.path / "environment.json"):
            self.environment()
        self.digests()
        if not self.finished():
            return None
        result = self.any_result()
        if result.cost.epochs != epochs or result.best_epoch > epochs:
            text = f"has {epochs} epochs; result.json tells of epoch {result.best_epoch} of {result.cost.epochs}"
            raise damaged(self.path / "history.jsonl", f"is damaged: it {text}")
        if isinstance(result, SearchedResult):
            return None
        table = self._predictions()
        self._check_shares(result)
        if result.stress_revision is not None:
            self._check_stress(result, set(self.scores("test").keys))
        images = zip(*(table.column(name).to_pylist() for name in ("split", "key", "label")), strict=True)
        return hashlib.sha256(json.dumps(sorted(images)).encode()).hexdigest()

    def checked(self, index: Index) -> Checked:
        """Check the trial, and note in the store's index that it is whole. Raises `Unreadable`."""
        images, config = self.check(), self.config()
        result = self.any_result() if self.finished() else None
        data = config.dataset
        found = Checked(
            finished=result is not None,
            images=images,
            split=f"{data.split_checksum} {data.n_val} {data.n_test}",
            labels=[label.text for label in self.stored_labels()],
            searched=config.searched,
            stressed=isinstance(result, Result) and result.stress_revision == STRESS_REVISION,
            kind=config.memory_kind,
            peak=result.cost.peak_rss_bytes if result else None,
        )
        index.note(self.path, found)
        return found

    def digests(self) -> Mapping[str, str]:
        """Read the SHA-256 of its files, by name; empty for a trial that was never pushed to a URL. Raises
        `Unreadable`."""
        path = self.path / "files.json"
        return read_record(path, Manifest).sha256 if os.path.lexists(path) else {}

    def note_attempt(self, seconds: float, state: str) -> None:
        """Add an attempt of `seconds` to `attempts.jsonl`: completely or not at all, and also while other runs do the
        same. A damaged file is left as it is, because every command names it."""
        attempt = Attempt(seconds=round(seconds, 3), state=state)
        # The lock's name has no second dot, so that `remove_half_files` leaves it.
        with FileLock(self.path / ".attempts-lock"), contextlib.suppress(Unreadable):
            text = "".join(json.dumps(record.json()) + "\n" for record in (*self.attempts(), attempt))
            path = self.path / "attempts.jsonl"
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=False)

    def note_failure(self, kind: str, error: str) -> None:
        """Write what `failure` reads. Raises `OSError` where that is not possible, such as on a full disk."""
        write_json(self.path / "failure.json", Failure(kind=kind, error=error).json())

    def forget_failure(self) -> None:
        """Remove the failure of an earlier attempt, so that it is not taken for a later one's."""
        (self.path / "failure.json").unlink(missing_ok=True)

    def write_history(self, history: Sequence[Epoch]) -> None:
        """Write what `history` reads. A number that is not finite, such as the loss of scores that overflow on
        validation images, becomes null."""
        finite = [
            {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in record.json().items()}
            for record in history
        ]
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in finite)
        write_atomically(self.path / "history.jsonl", lambda path: path.write_text(text), durable=False)

    def write_predictions(self, table: pd.DataFrame) -> None:
        """Write what `predictions` reads."""
        write_atomically(self.path / "predictions.parquet", lambda path: table.to_parquet(path, index=False))

    def finish(self, result: Result | SearchedResult) -> None:
        """Write the result, which marks the trial as finished: everything else must have been written before."""
        if isinstance(result, Result):
            write_json(self.path / "environment.json", result.hardware.json())
        self.forget_failure()
        write_json(self.path / "result.json", result.json())
        self.discard_leftovers()

    def add_stress(
        self, table: pd.DataFrame, levels: Mapping[str, Sequence[StressLevel]], means: Mapping[str, float]
    ) -> None:
        """Write what `stress` reads; then add the accuracy by kind and level, and the `means` by kind, to the result of
        a finished trial."""
        write_atomically(self.path / "stress.parquet", lambda path: table.to_parquet(path, index=False))
        result = replace(self.result(), stress_revision=STRESS_REVISION, stress=levels, robustness=means)
        write_json(self.path / "result.json", result.json())
        self.forget_failure()

    def remove_half_files(self) -> None:
        """Remove the files that killed processes did not finish writing. Only the process that holds the trial's lock
        may call this. Files of `config.json` and `run.json` stay, because another process may be preparing the
        trial."""
        for path in self.path.glob(".*.*"):
            if not path.name.startswith((".config.json.", ".run.json.")):
                path.unlink(missing_ok=True)

    def discard_leftovers(self, *, searched: bool | None = None) -> None:
        """Remove what a finished trial no longer needs: the checkpoint, and the weights that a search does not keep. Whether it
        is of a search, `config.json` says where it is not known."""
        self.checkpoint_path.unlink(missing_ok=True)
        if self.config().searched if searched is None else searched:
            self.best_path.unlink(missing_ok=True)

    def predictions(self) -> pd.DataFrame:
        """Read the predictions on validation and test images of a finished trial: one row per image, with columns
        split, key, label, prediction and logits (a list of C floats). Raises `Unreadable` where the file is missing,
        damaged, or not of these images and classes."""
        return self._predictions().to_pandas(use_threads=False)

    def _predictions(self) -> pa.Table:
        import pyarrow.compute as pc

        path, data = self.path / "predictions.parquet", self.config().dataset
        sizes = {"val": data.n_val, "test": data.n_test}
        table = tables.read_table(path, tables.PREDICTIONS, sum(sizes.values()), classes=data.classes)
        for split, size in sizes.items():
            rows = table.filter(pc.equal(table.column("split"), split))
            if len(rows) != size:
                raise damaged(path, f"is damaged: it has {len(rows)} {split} images of {size}")
            if len(pc.unique(rows.column("key"))) != size:
                raise damaged(path, f"is damaged: a key stands twice among its {split} images")
        logits = table.column("logits").combine_chunks()
        if not pc.all(pc.equal(pc.list_value_length(logits), data.classes)).as_py():
            raise damaged(path, f"is damaged: it has images without {data.classes} logits, one for each class")
        for name in ("label", "prediction"):
            values = table.column(name) if name in table.column_names else []
            if len(values) and not 0 <= pc.min(values).as_py() <= pc.max(values).as_py() < data.classes:
                raise damaged(path, f"is damaged: it has a {name} that is none of {data.classes} classes")
        return table

    def stress(self) -> pd.DataFrame:
        """Read the predictions on changed test images of a trial with `--stress`: one row per image and change, with
        columns kind, level, value, key and correct. Raises `Unreadable` where the file is missing or damaged."""
        points = sum(map(len, (self.result().stress or {}).values()))
        most = points * self.config().dataset.n_test
        return tables.read_table(self.path / "stress.parquet", tables.STRESS, most, fewer=True).to_pandas(
            use_threads=False
        )

    def _check_stress(self, result: Result, keys: set[str]) -> None:
        """Check that the file has the result's kinds and levels, each with test images, the same at every level of a
        kind. Raises `Unreadable`."""
        path, table = self.path / "stress.parquet", self.stress()
        points = {kind: [point.level for point in levels] for kind, levels in (result.stress or {}).items()}
        for kind, levels in points.items():
            if levels != list(range(1, len(levels) + 1)):
                raise damaged(self.path / "result.json", f"is damaged: the levels of stress.{kind} are {levels}")
        found = {(kind, level): tuple(sorted(rows)) for (kind, level), rows in table.groupby(["kind", "level"])["key"]}
        wanted = {(kind, level) for kind, levels in points.items() for level in levels}
        if found.keys() != wanted:
            raise damaged(path, "is damaged: its kinds and levels are not those in result.json")
        for (kind, level), rows in found.items():
            # A dataset sets its own factors in some of its images only.
            right = keys.issuperset(rows) if str(kind).startswith("factor ") else keys == set(rows)
            if not right or len(set(rows)) != len(rows) or rows != found[kind, 1]:
                raise damaged(
                    path, f"is damaged: level {level} of {kind} is not of the test images that it should be of"
                )

    def scores(self, split: str = "test") -> Scores:
        """Read the predictions of one split as arrays, images in order of their keys. This is many times faster than
        `predictions`. Raises `Unreadable` where the file is missing or damaged."""
        import pyarrow.compute as pc

        table = self._predictions()
        table = table.filter(pc.equal(table.column("split"), split)).sort_by("key").combine_chunks()
        logits = table.column("logits").combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        labels = table.column("label").to_numpy()
        return Scores(tuple(table.column("key").to_pylist()), labels, logits)

    def retrieval_shares(self) -> Mapping[str, np.ndarray]:
        """Read each test image's share of `recall_at_1` and `map_at_r`: by metric, float64 (N,), in order of the
        images' keys. Empty where they were not measured, or by a version that did not store them. Raises `Unreadable`
        where the file is missing or damaged."""
        import numpy as np
        import pyarrow.compute as pc

        path = self.path / "predictions.parquet"
        data = self.config().dataset
        table = tables.read_table(path, tables.SHARES, data.n_val + data.n_test)
        table = table.filter(pc.equal(table.column("split"), "test")).sort_by("key")
        found = {name: table.column(name).to_numpy() for name in table.column_names if name not in ("split", "key")}
        for name, shares in found.items():
            if not np.isfinite(shares).all():  # a null has become NaN
                raise damaged(path, f"is damaged: it has test images whose {name} is missing")
        return {name: np.asarray(shares, np.float64) for name, shares in found.items()}

    def _check_shares(self, result: Result) -> None:
        """Check that the mean of the images' shares, where there are any, is the metric in the result. Raises
        `Unreadable`."""
        metrics, shares = result.retrieval.json() if result.retrieval else {}, self.retrieval_shares()
        if shares and shares.keys() != metrics.keys():
            what = f"is damaged: it has shares of {_named(shares)}; result.json has metrics of {_named(metrics)}"
            raise damaged(self.path / "predictions.parquet", what)
        for name, values in shares.items():
            if metrics[name] is None or abs(values.mean() - metrics[name]) > 1e-6:
                raise damaged(
                    self.path / "predictions.parquet", f"is damaged: the mean of {name} is not that in result.json"
                )


def _named(names: Iterable[str]) -> str:
    return " and ".join(names) or "nothing"


@dataclass(frozen=True)
class Contents:
    """What is in a store, each trial read on its own.

    Attributes:
        finished, unfinished: trials of which every file can be read.
        damaged: an error for each of the others, and for each damaged plan of looks: which file cannot be read, why, and
            what to do.
        states: by id, the state of a trial's files before they were read, as `index.state_of` gives it.
    """

    finished: list[TrialFolder]
    unfinished: list[TrialFolder]
    damaged: list[Unreadable]
    states: dict[str, str | None] = field(default_factory=dict)


def read_each(folders: Iterable[TrialFolder]) -> Contents:
    """Sort trials into readable and damaged ones by `TrialFolder.check`. Trials on one split must also be about the
    same images: those that are not about the most frequent images are damaged, and all of them are where no images are
    more frequent than others."""
    contents = Contents([], [], [])
    images: dict[TrialFolder, str] = {}
    together: dict[str, list[TrialFolder]] = {}
    indexes: dict[Path, Index] = {}
    for folder in folders:
        index = indexes.setdefault(folder.path.parent, Index(folder.path.parent))
        try:
            found = index.known(folder.path) or folder.checked(index)
        except Unreadable as error:
            contents.damaged.append(error)
            continue
        (contents.finished if found.finished else contents.unfinished).append(folder)
        if found.images:
            images[folder] = found.images
            together.setdefault(found.split, []).append(folder)
    for index in indexes.values():
        contents.states.update(index.states)
        index.save()
    for alike in together.values():
        counts = Counter(images[folder] for folder in alike).most_common(2)
        usual = counts[0][0] if len(counts) == 1 or counts[0][1] > counts[1][1] else None
        for folder in alike:
            if images[folder] != usual:
                contents.finished.remove(folder)
                what = "is damaged: its keys and labels are not those of other trials with the same split"
                contents.damaged.append(damaged(folder.path / "predictions.parquet", what))
    return contents


class Store:
    """A folder of trials."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, trial_id: str) -> TrialFolder:
        """Give the folder of that id, whether or not it exists."""
        return TrialFolder(self.root / trial_id)

    def prepare(self, trial: Trial, run: Run, labels: Iterable[Label] = ()) -> TrialFolder:
        """Create the trial's folder, and write what the trial is, what it is called and where it runs from. Raises
        `UsageError` where the store cannot be written."""
        folder = self.folder(trial.id)
        try:
            folder.refuse_links()  # the trial would write to where a link points
            folder.path.mkdir(parents=True, exist_ok=True)
            folder.add_labels(labels)
            write_json(folder.path / "config.json", config_of(trial).json())
            write_json(folder.run_path, run.json())
        except OSError as error:
            raise UsageError(
                f"the run store {self.root} cannot be written: {error}. Choose another with --store."
            ) from error
        return folder

    def trials(self) -> Iterator[TrialFolder]:
        """List every trial folder by id, finished or not, damaged or not. Raises `UsageError` where the store cannot be
        read."""
        try:
            paths = sorted(self.root.iterdir()) if self.root.is_dir() else []
        except OSError as error:
            raise UsageError(f"the run store {self.root} cannot be read: {error}.") from error
        for path in paths:
            named = re.fullmatch("[0-9a-f]{16}", path.name)
            if _there(path / "config.json") or (named and _there(path / "result.json")):
                yield TrialFolder(path)

    def read(self) -> Contents:
        """Read every trial of the store (see `read_each`) and every plan by which seeds were added."""
        contents = read_each(self.trials())
        contents.damaged.extend(read_each_decision(self.root)[1])
        return contents

    def of_searches(self) -> Store:
        """Give the store of the trials of `--search`, which have no test accuracy. It may not exist."""
        return Store(self.root / "search")

    def finished(self) -> list[TrialFolder]:
        """List the finished trials."""
        return [folder for folder in self.trials() if folder.finished()]

    def find_trained(self, text: str) -> TrialFolder:
        """Find a trial as `find` does, for commands that need its model. Raises `UsageError` where it is not finished,
        or is of a search."""
        folder = self.find(text)
        folder.check()
        if not folder.finished():
            raise UsageError(f"trial {folder.id} is not finished: it has no model yet.")
        if folder.config().searched:
            raise UsageError(f"trial {folder.id} is of a search, which keeps no models.")
        return folder

    def find(self, text: str) -> TrialFolder:
        """Find the one trial whose id begins with `text`. Raises `UsageError` for none or several."""
        found = [folder for folder in self.trials() if folder.id.startswith(text)]
        if len(found) == 1:
            return found[0]
        what = "no trial" if not found else f"{len(found)} trials"
        raise UsageError(
            f"{what} in {self.root} with an id that begins with {text!r}. List them: flowers-bench leaderboard --trials"
        )


def config_of(trial: Trial) -> Config:
    """Make the record that a trial's `config.json` holds."""
    return Config.read({"schema_version": SCHEMA_VERSION, "id": trial.id, **trial.facts()})


def under_name(config: Config, label: Label) -> Config:
    """Copy a trial's config, with the technique and variant of one of its names."""
    return replace(config, technique=label.technique, variant=label.variant, source=None)


def read_label(path: Path) -> Label:
    """Read one of a trial's names from its file. Raises `Unreadable` where the file is damaged, or its file name
    belongs to another name."""
    record = read_record(path, LabelRecord)
    label = Label(record.technique, record.variant, record.baseline)
    if path.name != _label_file(label):
        raise damaged(path, f"is damaged: it is called after another name than {label.text!r:.40}")
    return label


def _label_file(label: Label) -> str:
    """Name a label's file, the same in every store, so that names unite where folders are copied into each other."""
    return f"{short_hash(label.text)}.json"


def leave_places_behind(folder: TrialFolder) -> None:
    """Remove the paths of another machine from a trial's `run.json`. They are of no use here, and since no hash covers
    them, whoever passes a store on can choose them."""
    kept = {name: value for name, value in folder.run().json().items() if name not in PLACES}
    write_json(folder.run_path, kept, durable=False)


def _there(path: Path) -> bool:
    """Tell whether there is anything of that name, or an error that hides it: whoever reads it finds out why."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
