"""Whether an image file is whole: the checksums, lengths and end marks of its format, which Pillow passes over.

What follows the end of an image is nobody's business: many programs append to images. Formats without checksums (JPEG,
GIF, WebP, BMP, PPM, most TIFFs) cannot tell a changed byte, or zeros in place of their pixels, from a picture.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.TiffImagePlugin import TiffImageFile

#: In entropy-coded JPEG data, 0xFF is followed by 0 or a restart mark; by anything else, a segment begins.
_JPEG_SEGMENT = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_END = 0xD9
_JPEG_WITHOUT_LENGTH = (0x01, 0xD8)
#: More may follow the last row of a PNG or TIFF than its size asks for, but not any amount.
_SURPLUS = 1 << 16
#: Start, and step, of the columns and rows of Adam7's seven passes.
_ADAM7 = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4), (0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_STRIPS, _TILES = (273, 279), (324, 325)  # the tags of their offsets and lengths
_TIFF_JPEG, _TIFF_DEFLATE = (7,), (8, 32946)


class Damaged(Exception):
    """An image file that is not whole, in words."""


def check_whole(content: bytes, image: Image) -> None:
    """Raise `Damaged` where a checksum is wrong or something is missing that Pillow does not miss itself.

    Args:
        content: the file.
        image: as opened by Pillow, not decoded.
    """
    if image.format == "TIFF":
        _check_tiff(content, cast("TiffImageFile", image))
    elif image.format == "PNG":
        _check_png(content)
    elif image.format in ("JPEG", "MPO"):
        _check_jpeg(content)
    elif image.format == "GIF":
        _check_gif(content)


def _check_png(content: bytes) -> None:
    """Check every chunk's CRC up to IEND, and that the pixels' zlib stream is whole, with its Adler-32, and long
    enough."""
    position, pixels = 8, []
    while True:
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(content):
            raise Damaged("it ends before its IEND chunk")
        if zlib.crc32(content[position + 4 : end - 4]) != int.from_bytes(content[end - 4 : end], "big"):
            raise Damaged(f"the checksum of its {kind.decode('ascii', 'replace')} chunk is wrong")
        if kind == b"IDAT":
            pixels.append(memoryview(content)[position + 8 : end - 4])
        if kind == b"IEND":
            break
        position = end
    expected = _png_bytes(content)
    if _inflated(pixels, expected + _SURPLUS) < expected:
        raise Damaged("it has fewer pixels than its header says")


def _png_bytes(content: bytes) -> int:
    """Compute how many bytes the inflated pixels must have, with one before each row that names its filter."""
    width, height = int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
    bits = content[24] * _PNG_CHANNELS.get(content[25], 1)
    passes = _ADAM7 if content[28] else ((0, 1, 0, 1),)
    total = 0
    for left, right_step, top, down_step in passes:
        columns, rows = -(-(width - left) // right_step), -(-(height - top) // down_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total


def _inflated(parts: Iterable[bytes | memoryview], limit: int) -> int:
    """Measure what one zlib stream holds, in bytes: it must end, have the right checksum, and hold no more than
    `limit`."""
    stream, length = zlib.decompressobj(), 0
    try:
        for part in parts:
            data: bytes | memoryview = part
            while data and not stream.eof:
                length += len(stream.decompress(data, 1 << 20))
                data = stream.unconsumed_tail
                if length > limit:
                    raise Damaged("it has more pixels than its header says")
        while not stream.eof and (more := len(stream.decompress(b"", 1 << 20))):
            length += more
    except zlib.error as error:
        raise Damaged(f"its compressed pixels are damaged: {error}") from None
    if not stream.eof:
        raise Damaged("its compressed pixels end too early")
    return length


def _check_jpeg(content: bytes) -> None:
    """Check that the segments lead to the end mark. Marks of embedded previews lie inside segments, and do not count."""
    position = 2
    while found := _JPEG_SEGMENT.search(content, position):
        kind, position = content[found.end() - 1], found.end()
        if kind == _JPEG_END:
            return
        if kind not in _JPEG_WITHOUT_LENGTH:
            position += int.from_bytes(content[position : position + 2], "big")
    raise Damaged("it ends before its end mark")


def _check_gif(content: bytes) -> None:
    """Check that the blocks lead to the trailer."""
    position = 13 + _gif_colours(content[10])
    while position < len(content):
        kind = content[position]
        if kind == 0x3B:
            return
        if kind == 0x21:  # an extension, with its label
            position = _after_gif_blocks(content, position + 2)
        elif kind == 0x2C and position + 10 < len(content):  # a frame: place, colours, code size
            position = _after_gif_blocks(content, position + 11 + _gif_colours(content[position + 9]))
        elif kind == 0:  # between blocks, some programs leave one
            position += 1
        else:
            break
    raise Damaged("it ends before its trailer")


def _gif_colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_gif_blocks(content: bytes, position: int) -> int:
    while position < len(content) and content[position]:
        position += 1 + content[position]
    return position + 1


def _check_tiff(content: bytes, image: TiffImageFile) -> None:
    """Check that there are enough strips or tiles, and that compressed ones lie within the file and are whole.

    Of uncompressed ones the stated lengths are often wrong and never needed: Pillow misses what is not there.
    """
    tags = image.tag_v2
    width, height = _numbers(tags.get(256))[0], _numbers(tags.get(257))[0]
    planes = image.tag_v2.get(277, 1) if tags.get(284) == 2 else 1
    if tags.get(324) is None:
        needed, (offsets_tag, counts_tag) = -(-height // min(height, tags.get(278, height))), _STRIPS
    else:
        needed, (offsets_tag, counts_tag) = -(-width // tags[322]) * -(-height // tags[323]), _TILES
    offsets, counts = _numbers(tags.get(offsets_tag)), _numbers(tags.get(counts_tag))
    if 0 < len(offsets) < needed * planes:
        raise Damaged("it has fewer pixels than its header says")
    compression = tags.get(259, 1)
    if compression == 1:
        return
    for offset, count in zip(offsets, counts, strict=False):
        if offset + count > len(content):
            raise Damaged("it ends before its pixels do")
        part = content[offset : offset + count] if count else content[offset:]  # without a length libtiff guesses one
        if part and compression in _TIFF_DEFLATE and tags.get(266, 1) == 1:  # its bits are in the usual order
            _inflated([part], 16 * image.width * image.height + _SURPLUS)
        elif part and compression in _TIFF_JPEG:
            _check_jpeg(part)


def _numbers(value: object) -> Sequence[int]:
    found = value if isinstance(value, tuple) else (value,)
    return [int(number) for number in found if isinstance(number, int)]
