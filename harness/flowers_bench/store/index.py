"""What a store remembers beside its trials: which were found whole, and what was computed of them.

`<store>/.index/` is never the truth. Whatever stands there belongs to a state of the trials' files (size, times, inode)
and to this version's source; where either is another, the files are read. It may be removed at any time. Each file of it
is replaced as a whole and begins with a SHA-256 of the rest, so that several writers, a shared disk or a power cut cost a
reading at most; a store that cannot be written to works without. A copied store has other inodes, so that an index that
came with it, from whomever, is not believed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flowers_bench.util.files import read_regular, write_atomically

FOLDER = ".index"
#: A store with fewer trials is read as soon, and gets no index.
LEAST = 100
#: Nanoseconds for which a file may still change without another time or size: such a state is not believed later.
SETTLED = 2_000_000_000
#: Bytes of the largest file that is read here.
LARGEST = 1 << 30
#: The files that `TrialFolder.check` reads, beside those in `labels`.
CHECKED = (
    "config.json", "run.json", "history.jsonl", "attempts.jsonl", "failure.json", "environment.json", "files.json", "result.json",
    "predictions.parquet", "stress.parquet", "labels",
)  # fmt: skip


@dataclass(frozen=True)
class Checked:
    """What reading every file of a trial has told.

    Attributes:
        finished: whether it has a result.
        images: SHA-256 of both splits' keys and labels; None for a trial without predictions.
        split: which split they must be of.
        labels: its names that have a file in `labels`, as `technique/variant`.
        searched: whether it is of a search.
        stressed: whether it was measured on changed images, changed as this version does it.
        kind: what of its configuration decides how much memory it takes.
        peak: bytes of memory at its peak; None where it is not finished, or that was not measured.
    """

    finished: bool
    images: str | None
    split: str
    labels: Sequence[str]
    searched: bool
    stressed: bool
    kind: Sequence[str | int | None]
    peak: int | None


@dataclass
class Index:
    """The trials of one store that were found whole, each with the state of its files then.

    Attributes:
        root: the store.
        loaded: what the file said, and what was found since; None until it is needed.
        changed: whether there is something to write.
        states: of each trial that was looked at, as `state_of` gives it.
    """

    root: Path
    loaded: dict[str, tuple[str, Checked]] | None = None
    changed: bool = False
    states: dict[str, str | None] = field(default_factory=dict)

    def known(self, folder: Path) -> Checked | None:
        """Say what was found in a trial's folder, if its files are as they were then."""
        if self.loaded is None:
            self.loaded = _read_trials(self.root)
        state = self.states[folder.name] = state_of(folder)
        before, checked = self.loaded.get(folder.name, ("", None))
        return checked if state is not None and before == state else None

    def note(self, folder: Path, checked: Checked) -> None:
        """Keep what was found in a folder after `known` had looked at its state."""
        state = self.states.get(folder.name)
        if state is not None and self.loaded is not None:
            self.loaded[folder.name] = state, checked
            self.changed = True

    def save(self) -> None:
        """Write what has changed, where there are trials enough and the store can be written to."""
        if not self.changed or self.loaded is None or len(self.loaded) < LEAST:
            return
        there = {name: found for name, found in self.loaded.items() if os.path.lexists(self.root / name)}
        lines = {name: {"state": state, **asdict(one)} for name, (state, one) in there.items()}
        with contextlib.suppress(OSError):
            (self.root / FOLDER).mkdir(exist_ok=True)
            keep(self.root, "trials", code(), json.dumps(lines).encode())


@dataclass
class Lines:
    """A file of the index with a line for each of many things: its name, the state for which the line holds, and JSON text.

    Attributes:
        lines: state and text by name; neither name nor state has a space.
        changed: whether there is something to write.
    """

    root: Path
    file: str
    lines: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    changed: bool = False

    @classmethod
    def of(cls, root: Path, file: str) -> Lines:
        """Read the file; where there is none that can be believed, there are no lines."""
        lines = {}
        with contextlib.suppress(ValueError):  # of another form: as if there were none
            for line in (kept(root, file, code()) or b"").splitlines():
                name, state, text = line.split(b" ", 2)
                lines[name.decode()] = state.decode(), text
        return cls(root, file, lines)

    def get(self, name: str, state: str | None) -> bytes | None:
        """Give the JSON text of what is of this name, if it is of this state."""
        before, text = self.lines.get(name, ("", b""))
        return text if state is not None and before == state else None

    def put(self, name: str, state: str | None, value: object) -> None:
        """Keep a JSON value; not where its state cannot be told, or its name has something else than letters and digits."""
        if state is not None and name.isalnum():
            self.lines[name] = state, json.dumps(value, separators=(",", ":")).encode()
            self.changed = True

    def save(self, there: Callable[[str], bool]) -> None:
        """Write what has changed, without the lines of names that are not `there` any more."""
        if self.changed:
            lines = [(name, *line) for name, line in self.lines.items() if there(name)]
            content = b"".join(b"%s %s %s\n" % (name.encode(), state.encode(), text) for name, state, text in lines)
            keep(self.root, self.file, code(), content)


def _read_trials(root: Path) -> dict[str, tuple[str, Checked]]:
    content = kept(root, "trials", code())
    with contextlib.suppress(
        ValueError, TypeError, KeyError, AttributeError, RecursionError
    ):  # of another form: as if there were none
        lines = json.loads(content or b"{}")
        return {name: (line.pop("state"), Checked(**line)) for name, line in lines.items()}
    return {}


def state_of(folder: Path) -> str | None:
    """Compute a digest of the sizes, times and inodes of the files of a trial; None where they cannot be told, or were
    changed just now."""
    found: list[tuple[str, int, int, int, int, int]] = []
    prefix = os.fspath(folder) + os.sep
    try:
        names = [*CHECKED, *(f"labels{os.sep}{name}" for name in sorted(_listed(f"{prefix}labels")))]
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                s = os.lstat(prefix + name)
                found.append((name, s.st_mode, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino))
    except OSError:
        return None
    if max((one[4] for one in found), default=0) > time.time_ns() - SETTLED:
        return None
    return hashlib.sha256(repr(found).encode()).hexdigest()


def _listed(folder: str) -> list[str]:
    try:
        return os.listdir(folder) if stat.S_ISDIR(os.lstat(folder).st_mode) else []
    except FileNotFoundError:
        return []


@cache
def code() -> str:
    """Compute a digest of what computes: this package's sources, by their sizes and times, and the libraries' versions."""
    package = Path(__file__).resolve().parents[1]
    found: list[object] = []
    for path in sorted(package.rglob("*.py")):
        s = path.stat()
        found.append((str(path), s.st_size, s.st_mtime_ns))
    for name in ("numpy", "scipy", "pandas", "pyarrow"):
        with contextlib.suppress(PackageNotFoundError):
            found.append((name, version(name)))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def key_of(states: Iterable[tuple[str, str | None]], *more: object) -> str | None:
    """Compute the key of something that follows from trials in these states (by id), this version's source, and `more`;
    None where a state cannot be told."""
    found = list(states)
    if any(state is None for _, state in found):
        return None
    return hashlib.sha256(repr((code(), found, more)).encode()).hexdigest()


def keep(root: Path, name: str, key: str | None, content: bytes) -> None:
    """Keep `content` for `key` under a name, in the place of what it had; only where the store has an index."""
    body = f"{key}\n".encode() + content
    if key is None or len(body) > LARGEST - 32 or not (root / FOLDER).is_dir():
        return
    with contextlib.suppress(OSError):
        path = root / FOLDER / name
        write_atomically(
            path, lambda temporary: temporary.write_bytes(hashlib.sha256(body).digest() + body), durable=False
        )


def kept(root: Path, name: str, key: str | None) -> bytes | None:
    """Give what is kept for `key` under a name; None where it is of another key, damaged or not there."""
    if key is None:
        return None
    try:
        content = read_regular(root / FOLDER / name, LARGEST, follow_links=False)
    except OSError:
        return None
    digest, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != digest or not body.startswith(f"{key}\n".encode()):
        return None
    return body[len(key) + 1 :]
