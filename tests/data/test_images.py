"""Decoding, and the decoded-image cache: what is odd is read rightly, what is broken is named, nothing is left half-written."""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers_bench.data.cache import CachedImages, Slice, cached_images
from flowers_bench.data.decode import decode_image
from flowers_bench.errors import UsageError

RED = (200, 30, 40)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def gradient(mode: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "1", "RGBA", "LA"])
def test_every_mode_becomes_rgb_of_the_same_content(tmp_path: Path, mode: str) -> None:
    extension = "jpg" if mode == "CMYK" else "png"
    found = decode_image(saved(tmp_path / f"a.{extension}", gradient(mode)), 999)
    assert found.shape == (30, 40, 3)
    assert found.dtype == np.uint8
    if mode != "1":
        expected = np.asarray(gradient("L"), int)
        assert np.abs(found.mean(2) - expected).mean() < 6


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = (np.linspace(0, 65535, 256)[None] * np.ones((20, 1))).astype(np.uint16)
    found = decode_image(saved(tmp_path / "a.png", Image.fromarray(values)), 999)
    assert np.abs(found[0, :, 0].astype(int) - np.arange(256)).max() <= 1


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved(tmp_path / "a.jpg", Image.new("RGB", (40, 20), RED), exif=exif)
    assert decode_image(path, 999).shape == (40, 20, 3)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in (RED, (0, 0, 255))]
    path = saved(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert decode_image(path, 999)[0, 0].tolist() == pytest.approx(list(RED), abs=3)


def test_extension_may_lie(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (9, 9), RED)).rename(tmp_path / "a.jpg")
    assert decode_image(path, 999)[4, 4].tolist() == list(RED)


def bomb() -> bytes:
    """A PNG of a few bytes that claims to be 60,000 x 60,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("what", ["empty", "garbage", "truncated", "bomb", "text", "missing"])
def test_unreadable_images_are_named(tmp_path: Path, what: str) -> None:
    whole = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(whole, "JPEG")
    path = tmp_path / "the one.jpg"
    content = {
        "empty": b"",
        "garbage": os.urandom(500),
        "truncated": whole.getvalue()[:700],
        "bomb": bomb(),
        "text": b"<svg/>",
    }
    if what != "missing":
        path.write_bytes(content[what])
    with pytest.raises(UsageError, match=r"the one\.jpg"):
        decode_image(path, 64)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_an_image_or_a_usage_error(data: bytes) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz-{os.getpid()}.jpg"
    path.write_bytes(data)
    try:
        assert decode_image(path, 16).ndim == 3
    except UsageError as error:
        assert str(path) in str(error)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    ("size", "side", "expected"), [((400, 300), 100, (100, 133)), ((50, 40), 100, (40, 50)), ((30, 90), 30, (90, 30))]
)
def test_shortest_side_is_reduced_never_enlarged(
    tmp_path: Path, size: tuple[int, int], side: int, expected: tuple[int, int]
) -> None:
    assert decode_image(saved(tmp_path / "a.png", gradient("RGB", size)), side).shape[:2] == expected


SHAPES = [(5, 7), (1, 1), (12, 3)]


def images() -> Iterator[np.ndarray]:
    rng = np.random.default_rng(0)
    return (rng.integers(0, 256, (h, w, 3)).astype(np.uint8) for h, w in SHAPES)


def test_cache_gives_back_what_was_decoded(tmp_path: Path) -> None:
    found = cached_images(tmp_path, "a", "k1", images, 3)
    for index, expected in enumerate(images()):
        assert torch.equal(found[index], torch.from_numpy(expected).permute(2, 0, 1))
    again = pickle.loads(pickle.dumps(found))
    assert torch.equal(again[2], found[2])
    part = Slice(found, 1, 3)
    assert len(part) == 2
    assert torch.equal(part[0], found[1])
    with pytest.raises(IndexError):
        part[2]


def test_cache_is_built_once_and_again_for_another_key(tmp_path: Path) -> None:
    calls = []

    def counted() -> Iterator[np.ndarray]:
        calls.append(1)
        return images()

    for key in ("k1", "k1", "k2", "k1"):
        cached_images(tmp_path, "a", key, counted, 3)
    assert len(calls) == 2


def test_writing_to_an_image_does_not_change_the_cache(tmp_path: Path) -> None:
    found = cached_images(tmp_path, "a", "k1", images, 3)
    before = found[0].clone()
    found[0].zero_()
    assert torch.equal(CachedImages(found.folder)[0], before)


@pytest.mark.parametrize("damage", ["pixels", "index", "gone"])
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: str) -> None:
    folder = cached_images(tmp_path, "a", "k1", images, 3).folder
    if damage == "gone":
        (folder / "pixels.bin").unlink()
    else:
        path = folder / ("pixels.bin" if damage == "pixels" else "index.npy")
        path.write_bytes(path.read_bytes()[:-5])
    found = cached_images(tmp_path, "a", "k1", images, 3)
    assert torch.equal(found[2], torch.from_numpy(list(images())[2]).permute(2, 0, 1))


@pytest.mark.parametrize(
    "error", [UsageError("bad image x.jpg"), KeyboardInterrupt(), OSError(28, "No space left on device")]
)
def test_failure_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def fails() -> Iterator[np.ndarray]:
        yield next(images())
        raise error

    with pytest.raises((UsageError, KeyboardInterrupt)):
        cached_images(tmp_path, "a", "k1", fails, 3)
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".lock")] == []


def slow_build(directory: Path, log: Path) -> None:
    def slowly() -> Iterator[np.ndarray]:
        with log.open("a") as stream:
            stream.write("built\n")
        for image in images():
            time.sleep(0.3)
            yield image

    cached_images(directory, "a", "k1", slowly, 3)


def test_two_processes_build_once_and_a_killed_one_is_replaced(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log = tmp_path / "log"
    killed = context.Process(target=slow_build, args=(tmp_path / "c", log))
    killed.start()
    time.sleep(0.5)
    os.kill(killed.pid or 0, signal.SIGKILL)
    killed.join()
    assert not (tmp_path / "c" / "a-k1").exists()
    both = [context.Process(target=slow_build, args=(tmp_path / "c", log)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert log.read_text().count("built") == 2
    assert len(CachedImages(tmp_path / "c" / "a-k1")) == 3
