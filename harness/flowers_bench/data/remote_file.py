"""A file of a published dataset on the web, and what it brings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RemoteFile:
    """A file of a published dataset.

    Attributes:
        url: where it is.
        checksum: its MD5 or SHA-256, hexadecimal.
        members: what it brings into the dataset's folder: files and folders of the archive, or its own name.
        unpacked: whether it is a tar file.
        top: the folder of the archive that the members lie in; empty: at its top.
        count: how many files the archive has, about, for progress.
    """

    url: str
    checksum: str
    members: tuple[str, ...]
    unpacked: bool = False
    top: str = ""
    count: int = 0

    @property
    def name(self) -> str:
        """The name of the file, as its address has it."""
        return self.url.rpartition("/")[2]

    def is_in(self, folder: Path) -> bool:
        """Say whether everything that it brings is there."""
        return all((folder / member).exists() for member in self.members)
