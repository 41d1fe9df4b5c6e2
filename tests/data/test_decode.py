"""Every kind of image file, and everything that is none."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowers_bench.data.decode import MAX_PIXELS, decode_image, decode_images
from flowers_bench.errors import UsageError

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth, so that lossy formats come close: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 / max(1, width - 1), y * 255 / max(1, height - 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], -1).round().astype(np.uint8))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def decoded(tmp_path: Path, content: bytes, shortest_side: int = 1000, name: str = "image.jpg") -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return decode_image(tmp_path / name, shortest_side)


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


def test_a_dark_16_bit_image_stays_dark(tmp_path: Path) -> None:
    image = Image.fromarray(np.full((4, 4), 200, np.uint16))
    assert decoded(tmp_path, saved(image, "PNG")).max() <= 1


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


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, format: str, orientation: int) -> None:
    """As Pillow itself applies it to the whole image."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    content = saved(photo(), format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    np.testing.assert_allclose(decoded(tmp_path, content), expected, atol=2)
    assert decoded(tmp_path, content, 15).shape == ((15, 20, 3) if orientation < 5 else (20, 15, 3))


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


def _png(width: int, height: int) -> bytes:
    """A valid PNG header of any size, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [int(MAX_PIXELS**0.5) + 1, 60_000])
def test_a_decompression_bomb_is_refused_undecoded(tmp_path: Path, side: int) -> None:
    with pytest.raises(UsageError, match=r"bomb\.png"):
        decoded(tmp_path, _png(side, side), name="bomb.png")


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
