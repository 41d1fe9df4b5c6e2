"""The decoded-image cache: what is in it, who may build it, and what is left when building ends badly."""

from __future__ import annotations

import multiprocessing
import pickle
import resource
import signal
import time
import warnings
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import torch

from flowers_bench.data import cache
from flowers_bench.data.cache import Selection, Slice, cached_images
from flowers_bench.util.errors import UsageError

KEY = "0123456789abcdef" * 4
SHAPES = [(4, 5), (1, 1), (7, 3), (4, 5)]


def build_forty(directory: Path, log: Path, pause: float) -> None:
    """Builds a cache of 40 images, one line in the log per decoded image."""

    def decoded() -> Iterator[np.ndarray]:
        for number in range(40):
            time.sleep(pause)
            with log.open("a") as stream:
                stream.write(f"{number}\n")
            yield np.full((50, 40, 3), number, np.uint8)

    images = cached_images(directory, "set", KEY, decoded, 40)
    assert all((images[i].numpy() == i).all() for i in range(40))


def start(*arguments: object) -> BaseProcess:
    """`build_forty` in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=build_forty, args=arguments)
    process.start()
    return process


def arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


def build(directory: Path, key: str = KEY, **options: bool) -> cache.CachedImages:
    return cached_images(directory, "set", key, lambda: iter(arrays()), len(SHAPES), **options)


def names(directory: Path) -> list[str]:
    """What lies in the folder, lock files aside."""
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock")


def never() -> Iterator[np.ndarray]:
    raise AssertionError("decoded again")


def test_images_of_different_sizes_come_back_as_they_were(tmp_path: Path) -> None:
    images = build(tmp_path)
    assert len(images) == len(SHAPES)
    assert images.sizes.tolist() == [list(shape) for shape in SHAPES]
    for found, expected in zip(images, arrays(), strict=False):
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_reading_copies_nothing_and_does_not_warn(tmp_path: Path) -> None:
    images = build(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first, again = images[0], images[0]
    assert first.data_ptr() == again.data_ptr()
    assert first.unsqueeze(0).is_contiguous(memory_format=torch.channels_last)


def test_writing_to_an_image_does_not_reach_the_file(tmp_path: Path) -> None:
    images = build(tmp_path)
    images[0].zero_()
    np.testing.assert_array_equal(build(tmp_path)[0].permute(1, 2, 0).numpy(), arrays()[0])


def test_second_time_nothing_is_decoded(tmp_path: Path) -> None:
    build(tmp_path)
    cached_images(tmp_path, "set", KEY, never, len(SHAPES))


def test_a_finished_cache_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that it can be read from a read-only disk."""
    build(tmp_path)
    monkeypatch.setattr(cache, "FileLock", lambda path: pytest.fail("locked"))
    build(tmp_path)


def test_pickles_as_its_path(tmp_path: Path) -> None:
    images = build(tmp_path)
    text = pickle.dumps(Slice(images, 1, 3))
    assert len(text) < 1000
    np.testing.assert_array_equal(pickle.loads(text)[0].numpy(), images[1].numpy())


def test_slice_and_selection_are_views(tmp_path: Path) -> None:
    images = build(tmp_path)
    assert Slice(images, 2, 4)[0].data_ptr() == images[2].data_ptr()
    assert Selection(images, np.array([3, 0]))[0].data_ptr() == images[3].data_ptr()
    with pytest.raises(IndexError):
        Slice(images, 0, 2)[2]
    with pytest.raises(IndexError):
        Selection(images, np.array([3, 0]))[2]


def test_another_key_is_another_cache(tmp_path: Path) -> None:
    build(tmp_path)
    build(tmp_path, "f" * 64)
    assert names(tmp_path) == [f"set-{KEY[:16]}", "set-" + "f" * 16]


def test_superseded_caches_are_removed_and_others_are_not(tmp_path: Path) -> None:
    build(tmp_path)
    cached_images(tmp_path, "set-b", KEY, lambda: iter(arrays()), len(SHAPES))
    build(tmp_path, "f" * 64, supersedes=True)
    assert names(tmp_path) == [f"set-b-{KEY[:16]}", "set-" + "f" * 16]


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def _grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"x")


def _garble(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04 what is this")


@pytest.mark.parametrize("name", ["pixels.bin", "index.npy"])
@pytest.mark.parametrize("damage", [_cut, _grow, _garble, Path.unlink])
def test_a_damaged_cache_is_built_again(tmp_path: Path, name: str, damage: object) -> None:
    folder = build(tmp_path).folder
    if name == "index.npy" and damage is _grow:
        pytest.skip("numpy reads what it needs; more does no harm")
    damage(folder / name)  # type: ignore[operator]
    np.testing.assert_array_equal(build(tmp_path)[2].permute(1, 2, 0).numpy(), arrays()[2])
    assert names(tmp_path) == [folder.name]


def test_an_index_that_points_elsewhere_is_not_believed(tmp_path: Path) -> None:
    folder = build(tmp_path).folder
    index = np.load(folder / "index.npy")
    index[1, 0] += 10**12
    np.save(folder / "index.npy", index)
    np.testing.assert_array_equal(build(tmp_path)[1].permute(1, 2, 0).numpy(), arrays()[1])


@pytest.mark.parametrize("error", [UsageError("image x"), KeyboardInterrupt(), RuntimeError("bug")])
def test_nothing_is_left_when_decoding_fails(tmp_path: Path, error: BaseException) -> None:
    def decoded() -> Iterator[np.ndarray]:
        yield arrays()[0]
        raise error

    with pytest.raises(type(error)):
        cached_images(tmp_path, "set", KEY, decoded, 2)
    assert names(tmp_path) == []


@pytest.mark.parametrize("count", [len(SHAPES) - 1, len(SHAPES) + 1])
def test_another_number_of_images_than_announced_is_refused(tmp_path: Path, count: int) -> None:
    with pytest.raises(UsageError, match=f"expected {count} images .* decoded {len(SHAPES)}"):
        cached_images(tmp_path, "set", KEY, lambda: iter(arrays()), count)
    assert names(tmp_path) == []


def test_other_than_uint8_rgb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"uint8 array \(H, W, 3\), but got float64 \(2, 2, 3\)"):
        cached_images(tmp_path, "set", KEY, lambda: iter([np.zeros((2, 2, 3))]), 1)


def test_too_small_a_disk_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    decoded: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for number in range(1000):
            decoded.append(number)
            yield image

    usage = cache.shutil.disk_usage(tmp_path)._replace(free=image.size * 500)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UsageError, match=r"need about 0\.0 GB, and .* has 0\.0 GB left.*--data-dir"):
        cached_images(tmp_path, "set", KEY, images, 1000)
    assert len(decoded) < 50
    assert names(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with pytest.raises(UsageError, match=r"cannot write the image cache .*File too large.*--data-dir"):
            build_forty(tmp_path / "c", tmp_path / "log", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert names(tmp_path / "c") == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(UsageError, match=r"cannot write the image cache .*--data-dir"):
        build(tmp_path / "file")


def test_of_two_processes_one_builds_and_both_read(tmp_path: Path) -> None:
    processes = [start(tmp_path / "c", tmp_path / "log", 0.005) for _ in range(2)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len((tmp_path / "log").read_text().splitlines()) == 40
    assert names(tmp_path / "c") == [f"set-{KEY[:16]}"]


def test_killed_while_building_nothing_half_is_read_and_the_next_clears_up(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(tmp_path / "c", log, 0.05)
    while not log.exists() or len(log.read_text().splitlines()) < 5:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join(10)
    other = tmp_path / "c" / ".set-b-0123.partial"  # somebody else's
    other.mkdir()
    assert names(tmp_path / "c") == [f".set-{KEY[:16]}.partial", other.name]
    build(tmp_path / "c", "f" * 64)
    assert names(tmp_path / "c") == [other.name, "set-" + "f" * 16]


def test_waiting_for_another_process_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cache, "_PATIENCE", 0.05)
    log = tmp_path / "log"
    process = start(tmp_path, log, 0.02)
    while not log.exists():
        time.sleep(0.01)
    cached_images(tmp_path, "set", KEY, never, 40)
    assert "another process is decoding set" in caplog.text
    process.join(30)
    assert process.exitcode == 0


def test_a_cache_larger_than_memory_can_be_mapped(tmp_path: Path) -> None:
    file = tmp_path / "pixels.bin"
    try:
        with file.open("wb") as stream:
            stream.truncate(2 << 40)
    except OSError:
        pytest.skip("no sparse files of 2 TiB here")
    assert cache._mapped(file)[-1] == 0
