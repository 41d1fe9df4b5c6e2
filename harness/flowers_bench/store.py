"""The run store: one folder per trial, plain JSON and Parquet, written atomically, merged by copying.

```
runs/<trial id>/config.json         the trial: what the id is a hash of
                run.json            where it ran from: paths, command (not part of the id)
                environment.json    machine, versions, kernel
                history.jsonl       a line per epoch
                checkpoint.pt       last finished epoch, until the trial is finished
                model.safetensors   the checkpoint chosen on validation
                predictions.parquet split, key, label, logits per image, validation and test; test images' shares of retrieval
                stress.parquet      kind, level, key, correct: test images under change, where `--stress` asked for it
                result.json         the figures; written last: its presence means the trial is finished
                attempts.jsonl      a line per attempt to run the trial: how long, and how it ended
                failure.json        why the last attempt failed; removed when the next one begins
                files.json          SHA-256 of each file, of a trial that was pushed to a URL
                log.txt             what the trial's process printed
                figures/            pictures
runs/search/                        a run store of its own: trials of `--search`, which have no test figures
```
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from flowers_bench.errors import UsageError
from flowers_bench.records import CONFIG, RESULT, SEARCHED, Form, problem
from flowers_bench.trial import Trial, config_id

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

#: Of `result.json` and `config.json`. Readers refuse a newer one.
SCHEMA_VERSION = 1
#: Of the changes that `--stress` makes to images; raised when an image would be changed otherwise. Figures of different
#: revisions are not comparable.
STRESS_REVISION = 1
#: Columns of `predictions.parquet` that a version before them did not write.
RETRIEVAL_SHARES = ("recall_at_1", "map_at_r")


def write_atomically(path: Path, write: Callable[[Path], object], *, durable: bool = True) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see the old file or the new one.

    Args:
        path: where the file shall stand.
        write: receives the temporary path.
        durable: also survive a power cut (fsync), not only the death of the process.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        if durable:
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, atomically. NaN and infinity are refused (they are not JSON)."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))


def file_name(words: str) -> str:
    """Words as a file's name: that of a technique or of a dataset among them may hold anything, and must not lead elsewhere."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in words)


def damaged(path: Path, what: str) -> UsageError:
    """The error for a file of a trial that is of no use, with the way out."""
    return UsageError(f"{path} {what}. Remove its folder to run that trial again.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; `UsageError` names the file when it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise damaged(path, "is not a JSON object")
    return value


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

    def finished(self) -> bool:
        """Whether there is a result."""
        return (self.path / "result.json").is_file()

    def stressed(self) -> bool:
        """Whether it is finished and was measured under changes as this version makes them (`--stress`)."""
        return self.finished() and self.result().get("stress_revision") == STRESS_REVISION

    def complete(self, *, stress: bool) -> bool:
        """Whether nothing is left to do for it."""
        return self.stressed() if stress else self.finished()

    def config(self) -> dict[str, Any]:
        """The trial's `facts()`."""
        return _supported(self.path / "config.json", CONFIG)

    def is_of_its_config(self) -> bool:
        """Whether the folder's name and the id in `config.json` are what that file describes: neither was edited."""
        config = self.config()
        return bool(self.id == config.get("id") == config_id(config))

    def run(self) -> dict[str, Any]:
        """Where the trial ran from: paths, command, the variant it is to be compared with."""
        return read_json(self.path / "run.json")

    def result(self) -> dict[str, Any]:
        """The figures, of a finished trial."""
        config, path = self.config(), self.path / "result.json"
        if config["protocol"]["report"] == "none":
            return _supported(path, SEARCHED)
        result, classes = _supported(path, RESULT), config["dataset"]["classes"]
        if len(result["class_names"]) != classes:
            raise damaged(path, f"is damaged: it names {len(result['class_names'])} classes of {classes}")
        return result

    def environment(self) -> dict[str, Any]:
        """The machine, versions and kernel of a finished trial."""
        return read_json(self.path / "environment.json")

    def weights(self) -> Path:
        """The file of the chosen checkpoint of a finished trial; fetched, where the store is a mirror of one at a URL.
        Raises `UsageError` where it cannot be had."""
        path = self.path / "model.safetensors"
        if not path.is_file():
            from flowers_bench.remote import pull_weights

            pull_weights(self)
        return path

    def failure(self) -> dict[str, Any] | None:
        """Why the last attempt failed, or None."""
        path = self.path / "failure.json"
        return read_json(path) if path.is_file() else None

    def history(self) -> list[dict[str, Any]]:
        """A dictionary per finished epoch, in order."""
        return _lines(self.path / "history.jsonl", {"epoch"})

    def attempts(self) -> list[dict[str, Any]]:
        """Every time that the trial was run: `seconds` until its process ended, and its `state` then."""
        return _lines(self.path / "attempts.jsonl", {"seconds", "state"})

    def note_attempt(self, seconds: float, state: str) -> None:
        """Add to `attempts`: whole or not at all, and beside other runs that had to do with the same trial."""
        path = self.path / "attempts.jsonl"
        line = json.dumps({"seconds": round(seconds, 3), "state": state}) + "\n"
        with FileLock(self.path / ".attempts-lock"):  # without a second dot, unlike half files
            text = (path.read_text(encoding="utf-8") if path.exists() else "") + line
            write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), durable=False)

    def remove_half_files(self) -> None:
        """Remove what killed processes did not finish writing. For the process that has the trial to itself: whoever
        prepares the trial meanwhile writes these two files."""
        for path in self.path.glob(".*.*"):
            if not path.name.startswith((".config.json.", ".run.json.")):
                path.unlink(missing_ok=True)

    def discard_leftovers(self) -> None:
        """Remove what a finished trial has no use for: the checkpoint, and the weights that a search does not keep."""
        (self.path / "checkpoint.pt").unlink(missing_ok=True)
        if self.config()["protocol"]["report"] == "none":
            (self.path / "model.safetensors").unlink(missing_ok=True)

    def predictions(self) -> pd.DataFrame:
        """Columns split, key, label, prediction, logits (a list of C floats): validation and test images of a finished
        trial."""
        import pandas as pd

        table = pd.read_parquet(self.path / "predictions.parquet")
        return table.drop(columns=list(RETRIEVAL_SHARES), errors="ignore")  # see below: older versions have none

    def stress(self) -> pd.DataFrame:
        """Columns kind, level, value, key, correct: each test image under each change, of a trial with `--stress`.
        Raises `UsageError` where the file is missing or damaged."""
        import pandas as pd
        import pyarrow as pa

        path = self.path / "stress.parquet"
        try:
            return pd.read_parquet(path)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise damaged(path, f"cannot be read: {error}") from error

    def scores(self, split: str = "test") -> Scores:
        """The predictions of one split as arrays, images in order of their keys: many times quicker than
        `predictions`. Raises `UsageError` where the file is missing or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.path / "predictions.parquet"
        try:
            table = pq.read_table(path, columns=["key", "label", "logits"], filters=[("split", "=", split)])
            table = table.sort_by("key").combine_chunks()
            logits = table.column("logits").combine_chunks().flatten().to_numpy().reshape(len(table), -1)
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            raise damaged(path, f"cannot be read: {error}") from error
        return Scores(tuple(table.column("key").to_pylist()), table.column("label").to_numpy(), logits)

    def retrieval_shares(self) -> Mapping[str, np.ndarray]:
        """By `recall_at_1` and `map_at_r`, float64 (N,): each test image's share of the figure, in order of the images'
        keys. Empty where it was not measured, or by a version that did not store it. Raises `UsageError` where the file
        is missing or damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path, names = self.path / "predictions.parquet", RETRIEVAL_SHARES
        try:
            if not set(names) <= set(pq.read_schema(path).names):
                return {}
            table = pq.read_table(path, columns=["key", *names], filters=[("split", "=", "test")]).sort_by("key")
            return {name: table.column(name).to_numpy() for name in names}
        except (OSError, pa.ArrowException, ValueError, KeyError) as error:
            raise damaged(path, f"cannot be read: {error}") from error


def _lines(path: Path, keys: set[str]) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, which have these keys; none of a file that is not there. `UsageError` names a
    damaged one."""
    try:
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not all(isinstance(record, dict) and keys <= record.keys() for record in found):
            raise ValueError(f"a line is not an object with {', '.join(sorted(keys))}")
        return found
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(path, f"cannot be read: {error}") from error


def _supported(path: Path, form: Form) -> dict[str, Any]:
    value = read_json(path)
    version = value.get("schema_version")
    if not isinstance(version, int) or version < 1:
        raise damaged(path, "is damaged: it has no schema version")
    if version > SCHEMA_VERSION:
        raise UsageError(
            f"{path} has schema version {version}; this flowers-bench reads up to {SCHEMA_VERSION}. Upgrade flowers-bench."
        )
    if lacking := problem(value, form):
        raise damaged(path, f"is damaged: {lacking}")
    return value


class Store:
    """A folder of trials."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, trial_id: str) -> TrialFolder:
        """The folder of that id, whether or not it exists."""
        return TrialFolder(self.root / trial_id)

    def prepare(self, trial: Trial, run: Mapping[str, Any]) -> TrialFolder:
        """Create the trial's folder, and note what the trial is and how it is run."""
        folder = self.folder(trial.id)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_json(
                folder.path / "config.json",
                {"schema_version": SCHEMA_VERSION, "id": trial.id, **trial.facts()},
            )
            write_json(folder.path / "run.json", dict(run))
        except OSError as error:
            raise UsageError(
                f"the run store {self.root} cannot be written: {error}. Choose another with --out."
            ) from error
        return folder

    def trials(self) -> Iterator[TrialFolder]:
        """Every trial folder, finished or not, by id."""
        if self.root.is_dir():
            for path in sorted(self.root.iterdir()):
                if (path / "config.json").is_file():
                    yield TrialFolder(path)

    def of_searches(self) -> Store:
        """The trials of `--search`, beside those that have a test accuracy; it may not exist."""
        return Store(self.root / "search")

    def finished(self) -> list[TrialFolder]:
        """Every finished trial."""
        return [folder for folder in self.trials() if folder.finished()]

    def finished_or_refuse(self) -> list[TrialFolder]:
        """`finished`, for commands that need some. Raises `UsageError` where there are none."""
        found = self.finished()
        if not found:
            raise UsageError(
                f"no finished trials in {self.root}. Run some: flowers-bench --plugin deformable --out {self.root}"
            )
        return found

    def find_trained(self, text: str) -> TrialFolder:
        """`find`, for commands that need its model. Raises `UsageError` where it is not finished."""
        folder = self.find(text)
        if not folder.finished():
            raise UsageError(f"trial {folder.id} is not finished: it has no model yet.")
        return folder

    def find(self, text: str) -> TrialFolder:
        """The one trial whose id begins with `text`. Raises `UsageError` for none or several."""
        found = [folder for folder in self.trials() if folder.id.startswith(text)]
        if len(found) == 1:
            return found[0]
        what = "no trial" if not found else f"{len(found)} trials"
        raise UsageError(
            f"{what} in {self.root} with an id that begins with {text!r}. List them: flowers-bench leaderboard --trials"
        )
