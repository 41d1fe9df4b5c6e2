"""Downloads from a real server on the loopback that breaks off, stalls, lies, or is not there."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flowers_bench.data import download
from flowers_bench.data.download import fetch, unpack
from flowers_bench.util.errors import UsageError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def offered(server: Any) -> Any:
    server.files["data.tgz"] = CONTENT
    return server


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def get(server: Any, folder: Path, md5: str = MD5, timeout: float = 5) -> bytes:
    fetch(server.url + "data.tgz", folder / "data.tgz", md5, timeout=timeout)
    return (folder / "data.tgz").read_bytes()


def test_a_file_arrives_whole(offered: Any, tmp_path: Path) -> None:
    assert get(offered, tmp_path) == CONTENT
    assert names(tmp_path) == ["data.tgz"]


def test_what_is_there_is_not_fetched_again(offered: Any, tmp_path: Path) -> None:
    get(offered, tmp_path)
    get(offered, tmp_path)
    assert len(offered.ranges) == 1


def test_progress_is_shown(offered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_BLOCK", 100_000)
    seen: list[Any] = []

    def progress(items: Any, description: str, total: int) -> Any:
        seen.append((description, total))
        for item in items:
            seen.append(item)
            yield item

    fetch(offered.url + "data.tgz", tmp_path / "data.tgz", MD5, progress)
    assert seen[0] == ("downloading data.tgz (MiB)", 3)
    assert len(seen) >= 4


def test_a_lost_connection_is_taken_up_where_it_broke(offered: Any, tmp_path: Path) -> None:
    offered.breaks_after = 100_000
    assert get(offered, tmp_path) == CONTENT
    assert offered.ranges == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_that_cannot_resume_starts_again(offered: Any, tmp_path: Path) -> None:
    offered.breaks_after, offered.faults, offered.resumable = 100_000, 1, False
    assert get(offered, tmp_path) == CONTENT


def test_a_server_that_always_breaks_off_is_given_up(offered: Any, tmp_path: Path) -> None:
    offered.breaks_after, offered.resumable = 100_000, False
    with pytest.raises(UsageError, match=r"data\.tgz could not .* ended after 100,000 of 300,000 bytes"):
        get(offered, tmp_path)
    assert not (tmp_path / "data.tgz").exists()


def test_a_stalling_server_is_given_up_and_the_next_call_continues(offered: Any, tmp_path: Path) -> None:
    offered.breaks_after, offered.stalls = 0, True
    (tmp_path / "data.tgz.part").write_bytes(CONTENT[:120_000])
    with pytest.raises(UsageError, match=r"data\.tgz could not be downloaded \(TimeoutError"):
        get(offered, tmp_path, timeout=0.3)
    assert names(tmp_path) == ["data.tgz.part"]
    offered.breaks_after = None
    assert get(offered, tmp_path) == CONTENT
    assert offered.ranges[-1] == "bytes=120000-"
    assert names(tmp_path) == ["data.tgz"]


def test_what_arrived_before_a_stall_is_kept(offered: Any, tmp_path: Path) -> None:
    offered.breaks_after, offered.stalls, offered.faults = 50_000, True, 1
    assert get(offered, tmp_path, timeout=0.3) == CONTENT
    assert offered.ranges == [None, "bytes=50000-"]


def test_a_wrong_checksum_is_refused_and_not_kept(offered: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"wrong checksum: MD5 {MD5}, expected {'0' * 32}"):
        get(offered, tmp_path, "0" * 32)
    assert names(tmp_path) == []


@pytest.mark.parametrize("length", [1000, 300_000, 400_000])
def test_a_wrong_beginning_is_thrown_away(offered: Any, tmp_path: Path, length: int) -> None:
    (tmp_path / "data.tgz.part").write_bytes(b"x" * length)
    assert get(offered, tmp_path) == CONTENT


def test_a_whole_but_unnamed_beginning_is_used(offered: Any, tmp_path: Path) -> None:
    (tmp_path / "data.tgz.part").write_bytes(CONTENT)
    assert get(offered, tmp_path) == CONTENT
    assert offered.ranges == []


def test_a_damaged_file_is_replaced(offered: Any, tmp_path: Path) -> None:
    (tmp_path / "data.tgz").write_bytes(CONTENT[:-1])
    assert get(offered, tmp_path) == CONTENT


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_http_errors_are_said(offered: Any, tmp_path: Path, status: int) -> None:
    offered.status = status
    with pytest.raises(UsageError, match=rf"data\.tgz could not be downloaded \(HTTP {status} "):
        get(offered, tmp_path)
    assert names(tmp_path) == []


def test_no_connection_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"127\.0\.0\.1:9/data could not be downloaded \(ConnectionRefusedError"):
        fetch("http://127.0.0.1:9/data", tmp_path / "data", MD5)


def test_too_small_a_disk_is_said_first(offered: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = download.shutil.disk_usage(tmp_path)._replace(free=200_000)
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match="0 MB do not fit on"):
        get(offered, tmp_path)
    assert names(tmp_path) == []


def archive(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            tar.addfile(entry)
    return path


def test_an_archive_is_unpacked(tmp_path: Path) -> None:
    unpack(archive(tmp_path / "a.tgz", {"jpg/1": b"one", "jpg/2": b"two"}), tmp_path / "images", "jpg", 2)
    assert names(tmp_path / "images") == ["1", "2"]
    assert names(tmp_path) == ["a.tgz", "images"]


@pytest.mark.parametrize(
    ("members", "links"),
    [
        ({"jpg/1": b"", "../escaped": b"x"}, {}),
        ({"jpg/1": b"", "/tmp/flowers-bench-escaped": b"x"}, {}),
        ({"jpg/1": b""}, {"jpg/link": "/etc/passwd"}),
        ({"jpg/1": b""}, {"jpg/link": "../../.."}),
        ({"other/1": b""}, {}),
    ],
)
def test_an_archive_that_climbs_out_or_lacks_the_folder_is_refused(
    tmp_path: Path, members: dict[str, bytes], links: dict[str, str]
) -> None:
    (tmp_path / "in").mkdir()
    path = archive(tmp_path / "in" / "a.tgz", members, links)
    if "/tmp/flowers-bench-escaped" in members:  # made relative rather than refused
        unpack(path, tmp_path / "in" / "images", "jpg", 1)
        assert not Path("/tmp/flowers-bench-escaped").exists()
        return
    with pytest.raises(UsageError, match=r"a\.tgz cannot be unpacked"):
        unpack(path, tmp_path / "in" / "images", "jpg", 1)
    assert names(tmp_path / "in") == ["a.tgz"]
    assert names(tmp_path) == ["in"]


@pytest.mark.parametrize("length", [0, 10, 0.5, 0.99])
def test_a_truncated_archive_is_refused_and_leaves_nothing(tmp_path: Path, length: float) -> None:
    path = archive(tmp_path / "a.tgz", {f"jpg/{i}": CONTENT[:5000] for i in range(20)})
    content = path.read_bytes()
    path.write_bytes(content[: int(length * len(content)) if 0 < length < 1 else int(length)])
    with pytest.raises(UsageError, match=r"a\.tgz cannot be unpacked"):
        unpack(path, tmp_path / "images", "jpg", 20)
    assert names(tmp_path) == ["a.tgz"]


def test_leftovers_of_a_killed_unpacking_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".images.partial").mkdir()
    (tmp_path / ".images.partial" / "1").write_text("old")
    unpack(archive(tmp_path / "a.tgz", {"jpg/2": b""}), tmp_path / "images", "jpg", 1)
    assert names(tmp_path / "images") == ["2"]
    assert names(tmp_path) == ["a.tgz", "images"]
