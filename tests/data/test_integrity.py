"""Damaged and cut files are refused; whole ones are not, whatever follows them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from encoded import FORMATS, chunk, decoded, noise, photo, png, saved, tiff
from PIL import Image

from flowers_bench.data.decode import decode_image
from flowers_bench.util.errors import UsageError

#: Files of every kind that Pillow writes.
KINDS: dict[str, bytes] = {
    **{format: saved(photo(), format) for format in FORMATS},
    "progressive JPEG": saved(photo(), "JPEG", progressive=True),
    "JPEG with restart marks": saved(photo(), "JPEG", restart_marker_blocks=1),
    "CMYK JPEG": saved(photo().convert("CMYK"), "JPEG"),
    "JPEG with a preview in it": saved(photo(), "JPEG", exif=b"Exif\0\0" + saved(photo(8, 6), "JPEG")),
    "MPO": saved(photo(), "MPO", save_all=True, append_images=[photo()]),
    "lossless WebP": saved(photo(), "WEBP", lossless=True),
    "animated WebP": saved(photo(), "WEBP", save_all=True, append_images=[photo().rotate(180)]),
    "WebP with alpha": saved(photo().convert("RGBA"), "WEBP"),
    "animated GIF": saved(photo(), "GIF", save_all=True, append_images=[photo().rotate(180)]),
    "interlaced GIF": saved(photo().convert("L"), "GIF", interlace=1),
    "palette PNG": saved(photo().convert("P"), "PNG", bits=8),
    "1-bit PNG": saved(photo().convert("1"), "PNG"),
    "uncompressed PNG": saved(photo(), "PNG", compress_level=0),
    "animated PNG": saved(photo(), "PNG", save_all=True, append_images=[photo().rotate(180)]),
    **{
        f"{compression} TIFF": saved(photo(), "TIFF", compression=compression)
        for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "jpeg")
    },
    "TIFF in strips": saved(noise(), "TIFF", compression="tiff_adobe_deflate", strip_size=1000),
}
kinds = pytest.mark.parametrize("content", KINDS.values(), ids=KINDS)


@kinds
def test_whole_files_are_read_whatever_follows_them(tmp_path: Path, content: bytes) -> None:
    alone = decoded(tmp_path, content)
    for after in (b"\0", b"\0" * 4096, b"\r\n", b"garbage " * 100, content):
        np.testing.assert_array_equal(decoded(tmp_path, content + after), alone)


@pytest.mark.filterwarnings("ignore::UserWarning")
@kinds
def test_a_file_cut_anywhere_is_refused_or_lacks_nothing_that_is_read(tmp_path: Path, content: bytes) -> None:
    """Behind the first picture of an MPO there are others; behind the pixels of a TIFF its tables."""
    whole, refused = decoded(tmp_path, content), 0
    for length in {*range(8, len(content), max(1, len(content) // 40)), len(content) - 1}:
        try:
            np.testing.assert_array_equal(decoded(tmp_path, content[:length]), whole)
        except UsageError:
            refused += 1
    assert refused > (15 if content == KINDS["MPO"] else 35)


@pytest.mark.parametrize(
    "name", [name for name in KINDS if "PNG" in name or name == "JPEG" or "GIF" in name or "progressive" in name]
)
def test_a_file_whose_end_was_never_written_is_refused(tmp_path: Path, name: str) -> None:
    content = KINDS[name]
    for written in range(len(content) // 3, len(content) - 1, max(1, len(content) // 25)):
        with pytest.raises(UsageError, match=r"image\.jpg"):
            decoded(tmp_path, content[:written] + bytes(len(content) - written))


def test_every_flipped_bit_of_a_png_is_found(tmp_path: Path) -> None:
    content = saved(photo(), "PNG")
    for place in range(8, len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(UsageError, match=r"image\.jpg"):
            decoded(tmp_path, bytes(damaged))


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_deflate"])
def test_every_flipped_byte_of_a_tiffs_deflated_pixels_is_found(tmp_path: Path, compression: str) -> None:
    content = saved(noise(16), "TIFF", compression=compression)
    with Image.open(tmp_path / "x.tif" if (tmp_path / "x.tif").write_bytes(content) else "") as image:
        (start,), (count,) = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
    for place in range(start, start + count, 7):
        damaged = bytearray(content)
        damaged[place] ^= 0x10
        with pytest.raises(UsageError):
            decoded(tmp_path, bytes(damaged))


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_deflate"])
def test_a_tiff_without_lengths_is_checked_all_the_same(tmp_path: Path, compression: str) -> None:
    """libtiff guesses the lengths that are 0, and reads on."""
    content = saved(noise(16), "TIFF", compression=compression)
    (tmp_path / "x.tif").write_bytes(content)
    with Image.open(tmp_path / "x.tif") as image:
        (start,), (count,) = image.tag_v2[273], image.tag_v2[279]  # type: ignore[attr-defined]
    without = content.replace(struct.pack("<HHII", 279, 4, 1, count), struct.pack("<HHII", 279, 4, 1, 0))
    assert without != content
    np.testing.assert_array_equal(decoded(tmp_path, without), decoded(tmp_path, content))
    for written in (count // 2, count - 1):
        with pytest.raises(UsageError):
            decoded(tmp_path, without[: start + written] + bytes(count - written) + without[start + count :])


def with_pixels(data: bytes) -> bytes:
    """A PNG of 2 x 2 pixels with this IDAT chunk, right checksum and all."""
    return png(2, 2, b"").replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", data))


@pytest.mark.parametrize(
    ("words", "content"),
    {
        "ends before its IEND chunk": png(2, 2, bytes(14))[:-12],
        "checksum of its IEND chunk is wrong": png(2, 2, bytes(14))[:-1] + b"x",
        "fewer pixels than its header says": png(2, 3, bytes(14)),
        "more pixels than its header says": png(2, 2, bytes(14 + (1 << 17))),
        "compressed pixels end too early": with_pixels(zlib.compress(bytes(14))[:-1]),
        "incorrect data check": with_pixels(zlib.compress(bytes(14))[:-4] + b"1234"),
        "it has fewer pixels than its header says": tiff(np.zeros((16, 16), np.uint8), t257=17),
        "ends before its trailer": saved(photo(), "GIF")[:-1],
        "ends before its end mark": saved(photo(), "JPEG")[:-2],
    }.items(),
)
def test_what_is_missing_is_said(tmp_path: Path, words: str, content: bytes) -> None:
    with pytest.raises(UsageError, match=rf"image\.jpg cannot be read: .*{words}"):
        decoded(tmp_path, content)


@pytest.mark.parametrize("depth_and_colour", [(1, 0), (2, 0), (4, 0), (8, 0), (8, 2), (16, 2), (8, 4), (16, 6), (4, 3)])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (9, 2), (8, 8), (17, 13)])
def test_interlaced_pngs_have_as_many_bytes_as_the_standard_says(
    tmp_path: Path, size: tuple[int, int], depth_and_colour: tuple[int, int]
) -> None:
    """Of every pass, written out pixel by pixel."""
    (width, height), (depth, colour) = size, depth_and_colour
    order = ["16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777"]
    length = 0
    for number in "1234567":
        rows = [sum(order[y % 8][x % 8] == number for x in range(width)) for y in range(height)]
        bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
        length += sum(1 + -(-count * bits // 8) for count in rows if count)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 1)
    palette = chunk(b"PLTE", bytes(48)) if colour == 3 else b""

    def interlaced(length: int) -> bytes:
        data = chunk(b"IDAT", zlib.compress(bytes(length)))
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + palette + data + chunk(b"IEND", b"")

    assert decoded(tmp_path, interlaced(length)).shape == (height, width, 3)
    with pytest.raises(UsageError, match="fewer pixels"):
        decoded(tmp_path, interlaced(length - 1))


def test_a_small_file_that_inflates_to_much_is_not_inflated(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="more pixels than its header says"):
        decoded(tmp_path, png(2, 2, bytes(1 << 27)))


def test_every_photograph_at_hand_is_whole(shared: Path) -> None:
    files = sorted((shared / "data").rglob("*.jpg"))[::29]
    assert len(files) > 100
    for file in files:
        assert min(decode_image(file, 8).shape[:2]) == 8
