"""Images as files in memory: by Pillow, and by hand where Pillow does not write them."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from flowers_bench.data.decode import decode_image
from flowers_bench.data.levels import Scales

FORMATS = ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"]


def photo(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth, so that lossy formats come close: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    red, green = x * 255 / max(1, width - 1), y * 255 / max(1, height - 1)
    return Image.fromarray(np.stack([red, green, np.full_like(red, 90)], -1).round().astype(np.uint8))


def noise(side: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


def saved(image: Image.Image, format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=format, **options)
    return stream.getvalue()


def decoded(
    tmp_path: Path,
    content: bytes,
    shortest_side: int = 1000,
    name: str = "image.jpg",
    scales: Scales | None = None,
) -> np.ndarray:
    (tmp_path / name).write_bytes(content)
    return decode_image(tmp_path / name, shortest_side, scales)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG of rows that have their filter bytes already; `extra` are chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def png16(values: np.ndarray, extra: bytes = b"") -> bytes:
    """A PNG of 16 bits from grey (H, W), or colour (H, W, 3) or (H, W, 4)."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    colour = 0 if values.ndim == 2 else {3: 2, 4: 6}[values.shape[2]]
    return png(values.shape[1], values.shape[0], rows, 16, colour, extra)


def pgm(values: np.ndarray, highest: int) -> bytes:
    """A PGM whose header says that `highest` is white."""
    wide = ">u2" if highest > 255 else "u1"
    return f"P5\n{values.shape[1]} {values.shape[0]}\n{highest}\n".encode() + values.astype(wide).tobytes()


def tiff(values: np.ndarray, **tags: object) -> bytes:
    """An uncompressed TIFF of one grey channel, (H, W), of any type; tags by number, as `t262=0`."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape
    data = values.astype(values.dtype.newbyteorder("<")).tobytes()
    entries: dict[int, tuple[int, int | float]] = {
        256: (4, width), 257: (4, height), 258: (3, values.dtype.itemsize * 8), 259: (3, 1), 262: (3, 1),
        273: (4, 8), 277: (3, 1), 278: (4, height), 279: (4, len(data)), 339: (3, kind),
    }  # fmt: skip
    for name, value in tags.items():
        number = int(name[1:])
        entries[number] = (11 if isinstance(value, float) else 4, value)  # type: ignore[assignment]
    directory = struct.pack("<H", len(entries))
    for number, (form, value) in sorted(entries.items()):
        directory += struct.pack("<HHI", number, form, 1)
        directory += struct.pack("<f", value) if form == 11 else struct.pack("<I", value)
    return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + directory + struct.pack("<I", 0)
