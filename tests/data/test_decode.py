"""Every kind of image file, and everything that is none."""

from __future__ import annotations

import functools
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from encoded import FORMATS, decoded, photo, png, saved
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers_bench.data.decode import MAX_PIXELS, decode_image, decode_images, image_facts
from flowers_bench.data.files import MAX_BYTES
from flowers_bench.util.errors import UsageError


@pytest.mark.parametrize("format", FORMATS)
def test_formats_are_told_by_content_and_not_by_extension(tmp_path: Path, format: str) -> None:
    pixels = decoded(tmp_path, saved(photo(), format), name="lies.gif" if format == "PNG" else "lies.png")
    assert pixels.dtype == np.uint8
    assert pixels.shape == (30, 40, 3)
    if format != "GIF":  # of 256 colours
        assert np.abs(pixels.astype(int) - np.asarray(photo()).astype(int)).mean() < 4


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_png_of_every_mode(tmp_path: Path, mode: str) -> None:
    grey = np.linspace(0, 255, 64).round().astype(np.uint8).reshape(8, 8)
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(grey)
        image = image.convert("RGB").convert(mode) if mode == "RGBA" else image.convert(mode)
    pixels = decoded(tmp_path, saved(image, "PNG"))
    assert pixels.shape == (8, 8, 3)
    if mode != "1":
        np.testing.assert_allclose(pixels[..., 1], grey, atol=3)


@pytest.mark.parametrize("values", [np.float32([0, 0.5, 1]), np.float32([0, 127.5, 255]), np.int32([0, 32767, 65535])])
def test_tiff_with_numbers_of_any_range(tmp_path: Path, values: np.ndarray) -> None:
    pixels = decoded(tmp_path, saved(Image.fromarray(values.reshape(1, 3)), "TIFF"))
    np.testing.assert_allclose(pixels[0, :, 0], [0, 127, 255], atol=1)


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGB"])
def test_jpeg_of_every_mode(tmp_path: Path, mode: str) -> None:
    expected = np.asarray(photo().convert(mode).convert("RGB")).astype(int)
    pixels = decoded(tmp_path, saved(photo().convert(mode), "JPEG", quality=95))
    assert np.abs(pixels.astype(int) - expected).mean() < 4


def test_transparency_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert (decoded(tmp_path, saved(image, "PNG")) == 255).all()
    palette = Image.new("P", (4, 4), 3)
    palette.putpalette([0, 90, 180] * 4)
    assert (decoded(tmp_path, saved(palette, "PNG", transparency=3)) == 255).all()


#: The picture that lies as each orientation says, turned by hand.
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}
#: No turn of it is another: a light left half, a light upper half, a white corner.
LYING = np.zeros((24, 40), np.uint8)
LYING[:12] += 60
LYING[:, :20] += 100
LYING[:4, :4] = 255
MODES: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: Image.fromarray(np.where(LYING > 99, 255, 0).astype(np.uint8)).convert("1"),
    "P": lambda: Image.fromarray(LYING).convert("P"),
    "I;16": lambda: Image.fromarray(LYING.astype(np.uint16) * 257),
    "I;16B": lambda: Image.fromarray((LYING.astype(np.uint16) * 257).astype(">u2")),
    "I": lambda: Image.fromarray(LYING.astype(np.int32) * 257),
    "F": lambda: Image.fromarray(LYING.astype(np.float32) / 255),
    "LA": lambda: Image.fromarray(LYING).convert("LA"),
    **{mode: functools.partial(Image.fromarray(LYING).convert, mode) for mode in ("L", "RGB")},
    **{mode: functools.partial(Image.fromarray(LYING).convert("RGB").convert, mode) for mode in ("RGBA", "CMYK")},
}
WITH_ORIENTATION = [
    *(("JPEG", mode, {"quality": 95}) for mode in ("L", "RGB", "CMYK")),
    *(("MPO", mode, {"quality": 95, "save_all": True}) for mode in ("L", "RGB")),
    *(("PNG", mode, {}) for mode in ("1", "P", "L", "LA", "RGB", "RGBA", "I;16")),
    *(("WEBP", mode, {"lossless": True}) for mode in ("L", "RGB", "RGBA")),
    *(
        ("TIFF", mode, {"compression": c})
        for mode in MODES
        for c in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    ),
    *(("TIFF", mode, {"compression": "jpeg", "quality": 95}) for mode in ("L", "RGB")),
    ("TIFF", "1", {"compression": "group4"}),
]


@pytest.mark.parametrize(("format", "mode", "options"), WITH_ORIENTATION, ids=lambda value: str(value))
def test_exif_rotation_is_applied_once(tmp_path: Path, format: str, mode: str, options: dict[str, object]) -> None:
    lying = np.where(LYING > 99, 255, 0) if mode == "1" else LYING.astype(int)
    for orientation, turned in TURNED.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        content = saved(MODES[mode](), format, exif=exif, **options)
        pixels = decoded(tmp_path, content)
        assert pixels.shape[:2] == turned(lying).shape, orientation
        assert np.abs(pixels[..., 0] - turned(lying)).mean() < 2, orientation
        assert decoded(tmp_path, content, 12).shape == ((12, 20, 3) if orientation < 5 else (20, 12, 3))


@pytest.mark.parametrize("format", ["BMP", "GIF", "PPM"])
def test_formats_without_exif_stay_as_they_are(tmp_path: Path, format: str) -> None:
    np.testing.assert_array_equal(decoded(tmp_path, saved(Image.fromarray(LYING), format))[..., 0], LYING)


def test_a_turned_tiff_is_known_before_it_is_decoded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert image_facts(saved(photo(), "TIFF", exif=exif)).turned
    assert not image_facts(saved(photo(), "TIFF")).turned
    assert not image_facts(saved(photo(), "JPEG", exif=exif)).changed


def test_broken_exif_does_not_cost_the_image(tmp_path: Path) -> None:
    content = saved(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert decoded(tmp_path, content).shape == (30, 40, 3)


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    pixels = decoded(tmp_path, saved(frames[0], format, save_all=True, append_images=frames[1:]))
    np.testing.assert_allclose(pixels, np.broadcast_to([200, 0, 0], (8, 8, 3)), atol=4)


@pytest.mark.parametrize(
    ("size", "side", "shape"),
    [
        ((40, 30), 15, (15, 20)),
        ((40, 30), 30, (30, 40)),
        ((40, 30), 31, (30, 40)),  # never enlarged
        ((30, 40), 15, (20, 15)),
        ((400, 300), 10, (10, 13)),  # reduced by the JPEG decoder first
        ((300, 2), 1, (1, 150)),
        ((3, 1), 1, (1, 3)),
    ],
)
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_shortest_side_is_reduced(
    tmp_path: Path, size: tuple[int, int], side: int, shape: tuple[int, int], format: str
) -> None:
    assert decoded(tmp_path, saved(photo(*size), format), side).shape == (*shape, 3)


def test_reducing_is_antialiased(tmp_path: Path) -> None:
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    for format in ("JPEG", "PNG"):
        pixels = decoded(tmp_path, saved(Image.fromarray(board).convert("RGB"), format, quality=100), 20)
        assert np.abs(pixels[2:-2, 2:-2].astype(int) - 127).max() < 25


def test_photographs_look_the_same_however_they_are_reduced(shared: Path) -> None:
    """Reduced while decoding, and decoded whole."""
    files = sorted((shared / "data/flowers17/val").glob("*/*"))[::40]
    assert files
    for file in files:
        whole = decode_image(file, 2000)
        reduced = decode_image(file, 64)  # by a quarter in the decoder, the rest after it
        expected = np.asarray(Image.fromarray(whole).resize(reduced.shape[1::-1], Image.Resampling.BILINEAR))
        assert np.abs(reduced.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("format", FORMATS)
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, format: str) -> None:
    rng = np.random.default_rng(0)
    content = saved(Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)), format)
    for length in (10, len(content) // 2):
        with pytest.raises(UsageError, match=r"image .*broken\.jpg "):
            decoded(tmp_path, content[:length], name="broken.jpg")


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"GIF89a", b"\xff\xd8\xff", b"hello"])
def test_what_is_no_image_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"image .*none\.jpg .*Remove or replace it"):
        decoded(tmp_path, content, name="none.jpg")


def test_a_missing_image_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"gone\.jpg .*No such file"):
        decode_image(tmp_path / "gone.jpg", 10)


def test_formats_that_run_programs_are_refused(tmp_path: Path) -> None:
    """Pillow hands PostScript to an interpreter."""
    with pytest.raises(UsageError, match="is not an image"):
        decoded(tmp_path, saved(photo(), "EPS"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 60_000])
def test_a_decompression_bomb_is_refused_undecoded(tmp_path: Path, side: int) -> None:
    with pytest.raises(UsageError, match=r"bomb\.png"):
        decoded(tmp_path, png(side, side, b""), name="bomb.png")


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/data.md"])
def test_the_documents_say_how_large_an_image_may_be(document: str) -> None:
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    assert f"{MAX_PIXELS:,} pixels" in text
    assert f"{MAX_BYTES >> 20} MiB" in text


def test_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "huge.png").open("wb") as stream:
        stream.truncate(4 << 30)
    started = time.perf_counter()
    with pytest.raises(UsageError, match=r"image .*huge\.png has 4,294,967,296 bytes: more than 536,870,912"):
        decode_image(tmp_path / "huge.png", 10)
    assert time.perf_counter() - started < 1


def test_what_is_no_file_is_called_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match=r"image .*pipe\.png is missing or cannot be read: it is a pipe, not a file"):
        decode_image(tmp_path / "pipe.png", 10)
    with pytest.raises(
        UsageError, match=r"image .*folder\.png is missing or cannot be read: it is a folder, not a file"
    ):
        decode_image(tmp_path / "folder.png", 10)
    with pytest.raises(UsageError, match=r"/dev/zero is missing or cannot be read: it is a device, not a file"):
        decode_image("/dev/zero", 10)


def test_what_is_decoded_is_what_was_hashed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(saved(photo(), "PNG"))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert len([*decode_images([path], 10, {}, [digest])]) == 1
    path.write_bytes(saved(photo().rotate(180), "PNG"))
    with pytest.raises(UsageError, match=r"image .*a\.png changed while the dataset was read. Run the command again"):
        list(decode_images([path], 10, {}, [digest]))


def test_all_unreadable_images_are_named_in_one_message(tmp_path: Path) -> None:
    paths = []
    for number in range(40):
        paths.append(tmp_path / f"{number:02d}.png")
        paths[-1].write_bytes(b"no" if number % 2 else saved(photo(), "PNG"))
    with pytest.raises(UsageError) as caught:
        list(decode_images(paths, 10))
    text = str(caught.value)
    assert all(f"{number:02d}.png" in text for number in range(1, 20, 2))
    assert "... and 10 more" in text


def test_images_come_in_order(tmp_path: Path) -> None:
    paths = []
    for number in range(60):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (2, 2), (number, 0, 0)).save(paths[-1])
    assert [int(image[0, 0, 0]) for image in decode_images(paths, 10)] == list(range(60))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    format=st.sampled_from(["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"]),
    changes=st.lists(st.tuples(st.integers(0, 1500), st.integers(0, 255)), min_size=1, max_size=8),
)
@pytest.mark.filterwarnings("ignore")
def test_changed_bytes_give_pixels_or_a_clear_error(
    tmp_path: Path, format: str, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(saved(photo(), format))
    for place, value in changes:
        content[place % len(content)] = value
    try:
        pixels = decoded(tmp_path, bytes(content), 16)
    except UsageError as error:
        assert "image.jpg" in str(error)
    else:
        assert pixels.dtype == np.uint8
        assert pixels.ndim == 3
