"""Remembered hashes: read again exactly when a file may have changed."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from encoded import photo, saved, tiff
from PIL import Image

from flowers_bench.data import hashes
from flowers_bench.data.hashes import content_hashes, copies_note, image_contents
from flowers_bench.data.levels import Levels
from flowers_bench.data.threads import in_order
from flowers_bench.util.errors import UsageError


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Three files that count as old enough to be remembered."""
    monkeypatch.setattr(hashes, "SETTLED", 0)
    (tmp_path / "a b").mkdir()
    names = ["one", "a b/two", "empty"]
    for name in names:
        (tmp_path / name).write_text("" if name == "empty" else name)
    return names


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = hashes._sha256

    def counted(file: str) -> str:
        read.append(file.rpartition("/")[2])
        return original(file)

    monkeypatch.setattr(hashes, "_sha256", counted)
    return read


def test_hashes_are_sha256_in_the_order_given(tmp_path: Path, files: list[str]) -> None:
    found = content_hashes(tmp_path, files, tmp_path / "cache")
    assert list(found) == files
    assert found["a b/two"] == hashlib.sha256(b"a b/two").hexdigest()
    assert found["empty"] == hashlib.sha256(b"").hexdigest()


def test_only_changed_files_are_read_again(tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    content_hashes(tmp_path, files, tmp_path / "cache")
    read = count_reads(monkeypatch)
    content_hashes(tmp_path, files, tmp_path / "cache")
    assert read == []
    status = os.stat(tmp_path / "one")
    time.sleep(0.02)
    (tmp_path / "one").write_text("ONE")  # as long as before, and then given the old time
    os.utime(tmp_path / "one", ns=(status.st_atime_ns, status.st_mtime_ns))
    found = content_hashes(tmp_path, files, tmp_path / "cache")
    assert read == ["one"]
    assert found["one"] == hashlib.sha256(b"ONE").hexdigest()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"one": 1}', '{"one": [[1, 2, 3]]}', "null", '{"one": [[1, 2, 3], "zz"]}', '{"one": [[1, 2, 3], 4]}']
)  # fmt: skip
def test_a_damaged_memory_is_forgotten(tmp_path: Path, files: list[str], content: str) -> None:
    expected = content_hashes(tmp_path, files, tmp_path / "cache")
    (memory,) = (tmp_path / "cache").iterdir()
    memory.write_text(content)
    assert content_hashes(tmp_path, files, tmp_path / "cache") == expected


def test_a_missing_file_is_named(tmp_path: Path, files: list[str]) -> None:
    with pytest.raises(UsageError, match="gone is missing or cannot be read: No such file"):
        content_hashes(tmp_path, [*files, "gone"], tmp_path / "cache")


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be written once more within one tick of the clock, and its times would not change."""
    (tmp_path / "one").write_text("one")
    content_hashes(tmp_path, ["one"], tmp_path / "cache")
    read = count_reads(monkeypatch)
    content_hashes(tmp_path, ["one"], tmp_path / "cache")
    assert read == ["one"]


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for read in (content_hashes, image_contents):
        with pytest.raises(UsageError, match="pipe is missing or cannot be read: it is a pipe"):
            read(tmp_path, ["pipe"], tmp_path / "cache")


def test_what_is_known_of_images_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "SETTLED", 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    written = {
        "plain": saved(photo(), "PNG"),
        "deep": tiff(np.full((2, 2), 1.5, np.float32)),
        "turned": saved(photo(), "TIFF", exif=exif),
        "damaged": saved(photo(), "TIFF")[:100],
    }
    for name, content in written.items():
        (tmp_path / name).write_bytes(content)
    first = image_contents(tmp_path, list(written), tmp_path / "cache")
    monkeypatch.setattr(hashes, "_row", lambda file: pytest.fail("read again"))
    assert image_contents(tmp_path, list(written), tmp_path / "cache") == first
    assert [first[name].sha256 for name in written] == [hashlib.sha256(c).hexdigest() for c in written.values()]
    assert first["deep"].facts.levels == Levels("float", 1.5, 1.5)
    assert [first[name].facts.turned for name in written] == [False, False, True, False]


def test_copies_across_splits_are_said() -> None:
    assert copies_note({"train": "ab", "val": "cd", "test": "ef"}) == []
    assert copies_note({"train": "ab", "val": "bd", "test": "adfff"}) == [
        "2 test images also stand in another split, byte for byte: accuracy on them is not honest",
        "1 validation images also stand in train/, byte for byte",
    ]


def test_threads_keep_the_order_and_do_not_run_ahead() -> None:
    started: list[int] = []

    def square(number: int) -> int:
        started.append(number)
        return number * number

    results = in_order(square, range(10_000))
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(started) < 5000
    results.close()  # type: ignore[attr-defined]
    before = threading.active_count()
    assert [*in_order(square, range(100))] == [i * i for i in range(100)]
    assert threading.active_count() <= before


def test_threads_pass_errors_on_in_their_turn() -> None:
    results = in_order(lambda number: 1 // number, [1, 1, 0, 1])
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
