"""Mirrors: local folders of what run stores at a URL hold, and the files there, one by one.

What a trial is, this does not know: `folder` reads trials, also those in a mirror, and `remote` pulls and pushes them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flowers_bench.store.reading import damaged, read_record
from flowers_bench.store.records import Place
from flowers_bench.store.schema import Record
from flowers_bench.util.errors import UsageError
from flowers_bench.util.files import file_sha256, write_json

WEIGHTS = "model.safetensors"
#: Have no folders; to make one there would make a bucket of a misspelt name.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az"}
_ORIGIN = ".remote.json"  # in the mirror: the URL
#: Folders that hold mirrors of the user's own: what a `.remote.json` elsewhere says, such as in a store that came from
#: somebody else, is not acted upon.
_CACHES: set[Path] = set()


@dataclass(frozen=True, kw_only=True)
class _Origin(Record):
    """`.remote.json`: what a folder is the mirror of."""

    url: Place


def is_url(text: str) -> bool:
    """Tell whether a store is named by a URL, not by a path."""
    return "://" in text


def trust_cache(cache: Path) -> None:
    """Let this process fetch what the mirrors in `cache`/stores lack from where they are mirrors of."""
    _CACHES.add(cache.resolve())


def make_mirror(url: str, cache: Path) -> Path:
    """Make the folder under `cache`/stores that is the mirror of `url`, and trust that cache."""
    trust_cache(cache)
    mirror = _mirror(url, cache)
    mirror.mkdir(parents=True, exist_ok=True)
    write_json(mirror / _ORIGIN, _Origin(url=url).json())
    return mirror


def _mirror(url: str, cache: Path) -> Path:
    readable = re.sub(r"[^A-Za-z0-9.-]+", "-", url)[-60:]
    return cache / "stores" / f"{readable}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"


class FilesAt:
    """The files under a URL, of whatever kind of store fsspec knows.

    Attributes:
        url: without a slash at the end.
        system: fsspec's file system.
        has_folders: whether a folder must be made before a file is put into it.

    Raises:
        UsageError: the URL cannot be used; the message says why.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with self.errors_said():
            import fsspec

            self.system, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        protocol = self.system.protocol
        self.has_folders = _OBJECT_STORES.isdisjoint([protocol] if isinstance(protocol, str) else protocol)

    def place(self, *names: str) -> str:
        """Join names below the URL to what `system` takes."""
        return "/".join([self._root, *names])

    @contextlib.contextmanager
    def errors_said(self) -> Iterator[None]:
        """Within it, whatever goes wrong is raised as `UsageError`."""
        try:
            yield
        except UsageError:
            raise
        except ImportError as error:
            extra = ' Install it: pip install "flowers-bench[remote]"' if self.url.startswith("s3:") else ""
            raise UsageError(f"{self.url}: {error}.{extra}") from error
        except Exception as error:  # of every kind of store its own: no credentials, no bucket, no network
            raise UsageError(f"the run store {self.url} cannot be used: {type(error).__name__}: {error}") from error


def fetch_weights(trial: Path, sha256: str | None) -> None:
    """Bring `model.safetensors` of a trial's folder from where its store is a mirror of.

    Args:
        sha256: that it was pushed with; None: not known.

    Raises:
        Unreadable: the store is no mirror in a trusted cache, so that the file is just missing.
        UsageError: it cannot be fetched, or is not the one that was pushed.
    """
    from platformdirs import user_cache_path

    store = trial.resolve().parent
    trust_cache(user_cache_path("flowers-bench"))
    if (store / _ORIGIN).exists():
        url = read_record(store / _ORIGIN, _Origin).url
        if any(store == _mirror(url, cache) for cache in _CACHES):
            _download(FilesAt(url), trial, sha256)
            return
    raise damaged(trial / WEIGHTS, "is missing")


def _download(files: FilesAt, trial: Path, sha256: str | None) -> None:
    with files.errors_said(), tempfile.TemporaryDirectory(dir=trial.resolve().parent, prefix=".pull-") as temporary:
        arrived = Path(temporary) / WEIGHTS
        files.system.get_file(files.place(trial.name, WEIGHTS), str(arrived))
        if sha256 not in (None, file_sha256(arrived)):
            raise UsageError(f"{files.url}/{trial.name}/{WEIGHTS} is not the one that was pushed with its result.")
        arrived.replace(trial / WEIGHTS)
