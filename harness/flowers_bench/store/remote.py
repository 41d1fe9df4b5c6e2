"""Run stores at a URL: `s3://bucket/runs`, `gs://...`, whatever fsspec knows.

An object store has neither locks nor renames, so nothing runs there. Trials run in a local folder, the mirror; a finished
one is pushed, file by file, `result.json` last: its presence means that the trial is whole, there as in any run store.
`files.json`, pushed just before, holds the SHA-256 of every file, so that a trial which two machines pushed at the same
time is noticed and left out, and never a mixture of both. A trial's names are not among these: one may be added later, and
is then brought alone, both ways. What is at the URL is an ordinary run store when copied to a disk.

Weights, the bulk of a trial, are pulled when something asks for them (`TrialFolder.weights`, `mirror.fetch_weights`).
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from flowers_bench.store.decisions import bring_decisions
from flowers_bench.store.folder import Store, TrialFolder, leave_places_behind, read_label
from flowers_bench.store.mirror import WEIGHTS, FilesAt, is_url, make_mirror
from flowers_bench.store.reading import PLANS
from flowers_bench.store.records import Manifest
from flowers_bench.util.errors import Unreadable, UsageError
from flowers_bench.util.files import file_sha256, write_json
from flowers_bench.util.text import printable

_AT_ONCE = 8  # trials that are downloaded at the same time, which is waiting rather than work
_MANIFEST, _RESULT = "files.json", "result.json"
_PUSHED = ".pushed"  # a file in a trial's folder that says that the trial is, or was, at the URL too


def opened(text: str) -> Path:
    """Give the folder of a store. For one at a URL this is its mirror, brought up to date. Raises `UsageError` where
    the URL cannot be used."""
    if not is_url(text):
        return Path(text)
    from platformdirs import user_cache_path

    remote = RemoteStore(text, user_cache_path("flowers-bench"))
    remote.pull()
    return remote.mirror


class RemoteStore:
    """A run store at `url`, and its mirror under `cache`/stores.

    Raises:
        UsageError: from every method, where the URL cannot be used; the message says why.
    """

    def __init__(self, url: str, cache: Path) -> None:
        self.files = FilesAt(url)
        self.mirror = make_mirror(self.files.url, cache)

    @property
    def url(self) -> str:
        """Where it is, without a slash at the end."""
        return self.files.url

    def pull(self) -> None:
        """Download finished trials that the mirror lacks, without weights, and the plans of looks; remove trials that were
        removed at the URL. Raises `Unreadable` for a damaged plan: without it, looks that were taken would be forgotten."""
        with self.files.errors_said():
            # Listed before the URL is: a trial that another process pushes in between must not look removed.
            pushed = [folder for folder in Store(self.mirror).finished() if (folder.path / _PUSHED).exists()]
            there = self._listed()
            for folder in pushed:
                if folder.id not in there:
                    shutil.rmtree(folder.path)
            folders = [TrialFolder(self.mirror / trial_id) for trial_id in sorted(there)]
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                list(pool.map(self._pull_trial, [folder for folder in folders if not folder.finished()]))
            self._pull_labels()
            self._pull_decisions()

    def unpushed(self) -> list[TrialFolder]:
        """List the finished trials of the mirror that were never at the URL."""
        return [folder for folder in Store(self.mirror).finished() if not (folder.path / _PUSHED).exists()]

    def push(self, folder: TrialFolder) -> None:
        """Send a finished trial to the URL. If it is there already, that one stays, and only names that it lacks are
        added."""
        with self.files.errors_said():
            names = _names(folder.path) - {_MANIFEST, _RESULT}
            labels = sorted(name for name in names if _is_label(name))
            if self.files.system.exists(self.files.place(folder.id, _RESULT)):
                self._put(
                    folder, [name for name in labels if not self.files.system.exists(self.files.place(folder.id, name))]
                )
            else:
                others = sorted(names.difference(labels))
                digests = {name: file_sha256(folder.path / name) for name in [*others, _RESULT]}
                write_json(folder.path / _MANIFEST, Manifest(sha256=digests).json())
                self._put(folder, [*labels, *others, _MANIFEST, _RESULT])
        (folder.path / _PUSHED).touch()

    def push_decision(self, decision_id: str) -> None:
        """Send a plan of looks to the URL, in place of what is there."""
        with self.files.errors_said():
            self._put_file(self.mirror / PLANS / f"{decision_id}.json", PLANS, f"{decision_id}.json")

    def _put(self, folder: TrialFolder, names: Sequence[str]) -> None:
        for name in names:
            self._put_file(folder.path / name, folder.id, name)

    def _put_file(self, path: Path, *names: str) -> None:
        place = self.files.place(*names)
        if self.files.has_folders:
            self.files.system.makedirs(place.rpartition("/")[0], exist_ok=True)
        self.files.system.put_file(str(path), place)

    def _pull_labels(self) -> None:
        """Download the names that trials of the mirror have only at the URL."""
        for path in self.files.system.glob(self.files.place("*", "labels", "*.json")):
            _, trial_id, _, name = path.rsplit("/", 3)
            folder = Store(self.mirror).folder(trial_id)
            place = folder.path / "labels" / name
            if not (_is_label(f"labels/{name}") and folder.finished()) or place.exists():
                continue
            with tempfile.TemporaryDirectory(dir=self.mirror, prefix=".pull-") as temporary:
                arrived = Path(temporary) / trial_id / "labels" / name
                arrived.parent.mkdir(parents=True)
                self.files.system.get_file(path, str(arrived))
                try:
                    folder.add_labels([read_label(arrived)])
                except Unreadable as error:
                    sys.stderr.write(
                        printable(f"warning: {self.url}/{trial_id}/labels/{name} is left out: {error}") + "\n"
                    )

    def _pull_decisions(self) -> None:
        """Download the plans of looks; of one that the mirror has too, that with more looks stays."""
        with tempfile.TemporaryDirectory(dir=self.mirror, prefix=".pull-") as temporary:
            arrived = Path(temporary) / PLANS
            arrived.mkdir()
            for path in self.files.system.glob(self.files.place(PLANS, "*.json")):
                name = path.rpartition("/")[2]
                if re.fullmatch(r"[0-9a-f]{16}\.json", name):
                    self.files.system.get_file(path, str(arrived / name))
            bring_decisions([arrived.parent], self.mirror)

    def _listed(self) -> set[str]:
        try:
            names = self.files.system.ls(self.files.place(), detail=False)
        except FileNotFoundError:  # nothing was pushed yet; the first push reports a bucket that does not exist
            return set()
        return {name for path in names if re.fullmatch("[0-9a-f]{16}", name := path.rstrip("/").rpartition("/")[2])}

    def _pull_trial(self, folder: TrialFolder) -> None:
        """Download a finished trial into a temporary folder, check it, and move it into the mirror, `result.json` last.
        Nothing is done for a trial that runs at the moment."""
        if not self.files.system.exists(self.files.place(folder.id, _RESULT)):
            return
        folder.path.mkdir(exist_ok=True)
        with (
            contextlib.suppress(Timeout),
            FileLock(folder.lock_path, timeout=0),
            tempfile.TemporaryDirectory(dir=self.mirror, prefix=".pull-") as temporary,
        ):
            arrived = Path(temporary) / folder.id
            try:
                names = self._download(folder.id, arrived)
                reason = _unfit(arrived)
            except (
                FileExistsError,
                IsADirectoryError,
                NotADirectoryError,
            ) as error:  # a file's name is also that of a folder
                reason = str(error)
            if reason:
                text = f"warning: {self.url}/{folder.id} is left out: {reason}"
                sys.stderr.write(printable(text) + "\n")
                return
            leave_places_behind(TrialFolder(arrived))
            for name in sorted(names, key=lambda name: name == _RESULT):
                (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
                (arrived / name).replace(folder.path / name)
            folder.discard_leftovers()
            (folder.path / _PUSHED).touch()

    def _download(self, trial_id: str, target: Path) -> list[str]:
        prefix = self.files.place(trial_id) + "/"
        names = []
        for path in self.files.system.find(prefix.rstrip("/")):
            name = "/" + path.lstrip("/")
            name = name.removeprefix("/" + prefix.lstrip("/"))
            # These names are not trusted: whoever may write to the URL chooses them.
            if name == WEIGHTS or name.startswith(("/", ".")) or "\\" in name or ".." in name.split("/"):
                continue
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            self.files.system.get_file(path, str(target / name))
            names.append(name)
        return names


class Pusher:
    """While active, pushes trials in the background as they finish, and when it ends waits for the last one.

    Attributes:
        failed: why pushes failed, by trial id; the results are in the mirror still.
    """

    def __init__(self, remote: RemoteStore) -> None:
        self._remote = remote
        self._pool = ThreadPoolExecutor(1)
        self._pushes: dict[str, Future[None]] = {}
        self.failed: dict[str, UsageError] = {}

    def push(self, folder: TrialFolder) -> None:
        """Send a trial to the URL as soon as those before it are there."""
        self._pushes[folder.id] = self._pool.submit(self._remote.push, folder)

    def __enter__(self) -> Pusher:
        for folder in self._remote.unpushed():
            self.push(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        for trial_id, push in self._pushes.items():
            if not push.cancelled() and isinstance(reason := push.exception(), UsageError):
                self.failed[trial_id] = reason


def _is_label(name: str) -> bool:
    return re.fullmatch(r"labels/[0-9a-f]{16}\.json", name) is not None


def _names(folder: Path) -> set[str]:
    """List every file of a finished trial, except hidden ones, by its path within the folder."""
    paths = (path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    names = (path.relative_to(folder).as_posix() for path in paths)
    return {name for name in names if not name.startswith(".") and "/." not in name}


def _unfit(folder: Path) -> str | None:
    """Say why a downloaded trial cannot be used; None if it can. Its weights were not downloaded."""
    trial = TrialFolder(folder)
    try:
        for name, expected in trial.digests().items():
            path = folder / name
            if name.startswith("/") or ".." in name.split("/"):
                return f"files.json names {name!r}."
            if name != WEIGHTS and not (path.is_file() and file_sha256(path) == expected):
                return (
                    f"{name} is not what was pushed with it; two machines pushed this trial at once. Remove it there."
                )
        trial.check()
    except Unreadable as error:
        return str(error).removeprefix(f"{folder}/")
    return None
