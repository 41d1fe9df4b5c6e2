"""An image file as pixels, whatever is in it: by content, never by extension.

Pillow does it all. torchvision's JPEG decoder is over twice as fast, but deprecated since 0.29 and to be removed: pixels
would then depend on the version installed. Each image is decoded once, on all cores, and read from the cache after.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowers_bench.data.files import read_image
from flowers_bench.data.integrity import Damaged, check_whole
from flowers_bench.data.levels import (
    COLOUR,
    Header,
    Levels,
    NoScale,
    Scales,
    levels_of,
    read_header,
    scales_of,
    to_bytes,
)
from flowers_bench.data.threads import in_order
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Part of the cache's key: bump it when any pixel would change.
DECODER = "decode-3"
#: Larger images are refused before they are decoded: a small file can claim to be a huge picture. Pillow's own limit.
MAX_PIXELS = 89_478_485
#: What may be inside. Pillow knows many more, of which EPS starts an interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: How files begin whose samples may have more than 8 bits; the others need no second look.
_MAY_BE_DEEP = (b"\x89PNG", b"II", b"MM", b"P")
_ORIENTATION = 0x0112
#: So many unreadable images are named in one message.
_NAMED = 10

Path = str | os.PathLike[str]


@dataclass(frozen=True)
class ImageFacts:
    """What must be known of an image before it is decoded.

    Attributes:
        levels: its range, of more than 8 bits a sample; else None.
        turned: whether it is a TIFF that does not stand upright. Up to `decode-2`, these were turned twice.
    """

    levels: Levels | None = None
    turned: bool = False

    @property
    def changed(self) -> bool:
        """Say whether `decode-2` made other pixels of it, whatever the rule for its colours."""
        return self.turned or (self.levels is not None and self.levels.kind != COLOUR)


ORDINARY = ImageFacts()


def image_facts(content: bytes) -> ImageFacts:
    """Read the facts of an image file; `ORDINARY` for one that cannot be read, which is refused where it is decoded."""
    if not content.startswith(_MAY_BE_DEEP):
        return ORDINARY
    try:
        with _opened("", content) as image:
            header = read_header(content, image)
            turned = image.format == "TIFF" and _orientation(image) != 1
            return ImageFacts(levels_of(image, header) if header else None, turned)
    except UsageError:
        return ORDINARY


def decode_images(
    paths: Sequence[Path], shortest_side: int, scales: Scales | None = None, hashes: Sequence[str] | None = None
) -> Iterator[NDArray[np.uint8]]:
    """Decode all images in order, on all cores, as `decode_image` does.

    Args:
        scales: as for `decode_image`; None: one rule for these images, for which they are read twice.
        hashes: the SHA-256 that each file must have, hexadecimal: what is hashed here is what is decoded.

    Raises:
        UsageError: some image cannot be read, or has changed. The others are tried all the same, so that one message
            names them all.
    """
    if scales is None:
        scales = scales_of(facts.levels for facts in in_order(facts_of, paths) if facts.levels)

    def attempt(item: tuple[Path, str | None]) -> NDArray[np.uint8] | UsageError:
        try:
            return _decoded(*item, shortest_side, scales)
        except UsageError as error:
            return error

    failures: list[UsageError] = []
    expected: Sequence[str | None] = hashes if hashes is not None else [None] * len(paths)
    for result in in_order(attempt, zip(paths, expected, strict=True)):
        if isinstance(result, UsageError):
            failures.append(result)
        elif not failures:
            yield result
    if failures:
        more = [f"... and {len(failures) - _NAMED} more"] if len(failures) > _NAMED else []
        raise UsageError("\n".join([*map(str, failures[:_NAMED]), *more]))


def decode_image(path: Path, shortest_side: int, scales: Scales | None = None) -> NDArray[np.uint8]:
    """Decode an image to uint8 RGB (H, W, 3).

    The EXIF rotation is applied; of an animation the first frame is taken; CMYK, palette, grey, 16-bit and
    floating-point images are converted; transparency is laid on white; the shortest side is reduced (never enlarged) to
    `shortest_side` pixels with an antialiased bilinear filter.

    Args:
        scales: what is black and white in images of more than 8 bits, for the dataset that this one belongs to; None:
            what this image alone tells.

    Raises:
        UsageError: the file is missing, empty, damaged, truncated, no image, larger than `MAX_PIXELS` or `MAX_BYTES`,
            or nothing says which of its values is white; names the file.
    """
    if scales is None:
        facts = facts_of(path)
        scales = scales_of([facts.levels] if facts.levels else [])
    return _decoded(path, None, shortest_side, scales)


def facts_of(path: Path) -> ImageFacts:
    """Read the `image_facts` of a file; `ORDINARY` for one that cannot be read."""
    try:
        return image_facts(read_image(path))
    except UsageError:
        return ORDINARY


def image_size(path: Path) -> tuple[int, int]:
    """Read width and height as they are stored, in pixels. Raises `UsageError` as `decode_image` does."""
    with _opened(path, read_image(path)) as image:
        return image.size


def _decoded(path: Path, expected: str | None, shortest_side: int, scales: Scales) -> NDArray[np.uint8]:
    content = read_image(path)
    if not content:
        raise UsageError(f"image {path} is empty (0 bytes). Remove or replace it.")
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise UsageError(f"image {path} changed while the dataset was read. Run the command again.")
    with _opened(path, content) as image:
        return _pixels(image, read_header(content, image), shortest_side, scales)


@contextlib.contextmanager
def _opened(path: Path, content: bytes) -> Iterator[Image]:
    """Open the file as a Pillow image that is whole, without decoding its pixels. Whatever goes wrong is a
    `UsageError`."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UsageError(f"image {path} is {image.width} x {image.height}: more than {MAX_PIXELS:,} pixels.")
            check_whole(content, image)
            yield image
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"image {path} is not an image that can be read. Remove or replace it.") from None
    except (Damaged, NoScale) as error:
        raise UsageError(f"image {path} cannot be read: {error}. Remove or replace it.") from None
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error, ...
        raise UsageError(
            f"image {path} cannot be read ({type(error).__name__}: {error}). Remove or replace it."
        ) from error


def _pixels(image: Image, header: Header | None, shortest_side: int, scales: Scales) -> NDArray[np.uint8]:
    from PIL.Image import Resampling, Transpose

    # Lets the JPEG decoder itself reduce by 2, 4 or 8, to no less than twice what is wanted.
    image.draft("RGB", (2 * shortest_side, 2 * shortest_side))
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    orientation = 1 if image.format == "TIFF" else _orientation(image)  # Pillow turns TIFFs, and only these, itself
    rgb = _to_rgb(image, header, scales)
    if min(rgb.size) > shortest_side:
        height, width = _reduced(rgb.height, rgb.width, shortest_side)
        rgb = rgb.resize((width, height), Resampling.BILINEAR)
    if orientation in turns:
        rgb = rgb.transpose(turns[orientation])
    return np.asarray(rgb)


def _reduced(height: int, width: int, shortest_side: int) -> tuple[int, int]:
    scale = shortest_side / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _orientation(image: Image) -> int:
    """Read the EXIF orientation, 1 (upright) to 8; broken EXIF data say nothing about the pixels, and count as 1."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a parser of foreign bytes stumbles over
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image, header: Header | None, scales: Scales) -> Image:
    from PIL.Image import alpha_composite, fromarray, new

    # Pillow's own conversion clips grey levels above 255 to white; of colours it takes the upper bytes.
    if header is not None and (header.kind != COLOUR or COLOUR in scales):
        image = fromarray(to_bytes(image, header, scales))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = alpha_composite(new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
