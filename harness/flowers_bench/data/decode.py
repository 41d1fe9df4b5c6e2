"""An image file as pixels, whatever is in it: by content, never by extension.

Pillow does it all. torchvision's JPEG decoder is over twice as fast, but deprecated since 0.29 and to be removed: pixels
would then depend on the version installed. Each image is decoded once, on all cores, and read from the cache after.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flowers_bench.data.threads import in_order
from flowers_bench.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Part of the cache's key: bump it when any pixel would change.
DECODER = "decode-2"
#: Larger images are refused before they are decoded: a small file can claim to be a huge picture. Pillow's own limit.
MAX_PIXELS = 89_478_485
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
#: What may be inside. Pillow knows many more, of which EPS starts an interpreter.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_ORIENTATION = 0x0112
#: So many unreadable images are named in one message.
_NAMED = 10


def decode_images(paths: Sequence[str | os.PathLike[str]], shortest_side: int) -> Iterator[NDArray[np.uint8]]:
    """All images in order, decoded on all cores; see `decode_image`.

    Raises:
        UsageError: some image cannot be read. The others are tried all the same, so that one message names them all.
    """

    def attempt(path: str | os.PathLike[str]) -> NDArray[np.uint8] | UsageError:
        try:
            return decode_image(path, shortest_side)
        except UsageError as error:
            return error

    failures: list[UsageError] = []
    for result in in_order(attempt, paths):
        if isinstance(result, UsageError):
            failures.append(result)
        elif not failures:
            yield result
    if failures:
        more = [f"... and {len(failures) - _NAMED} more"] if len(failures) > _NAMED else []
        raise UsageError("\n".join([*map(str, failures[:_NAMED]), *more]))


def decode_image(path: str | os.PathLike[str], shortest_side: int) -> NDArray[np.uint8]:
    """The image as uint8 RGB (H, W, 3): EXIF rotation applied, first frame of an animation, CMYK, palette, grey and
    16-bit converted, transparency laid on white, its shortest side reduced (never enlarged) to `shortest_side` with
    an antialiased bilinear filter.

    Raises:
        UsageError: the file is missing, empty, truncated, no image, or larger than `MAX_PIXELS`; names the file.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        content = Path(path).read_bytes()
        if not content:
            raise UsageError(f"image {path} is empty (0 bytes). Remove or replace it.")
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UsageError(f"image {path} is {image.width} x {image.height}: more than {MAX_PIXELS:,} pixels.")
            return _pixels(image, shortest_side)
    except UsageError:
        raise
    except UnidentifiedImageError:
        raise UsageError(f"image {path} is not an image that can be read. Remove or replace it.") from None
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error, ...
        raise UsageError(
            f"image {path} cannot be read ({type(error).__name__}: {error}). Remove or replace it."
        ) from error


def _pixels(image: Image, shortest_side: int) -> NDArray[np.uint8]:
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
    orientation = _orientation(image)
    rgb = _to_rgb(image)
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
    """1 (upright) to 8, as in EXIF; broken EXIF data say nothing about the pixels, and are passed over."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # whatever a parser of foreign bytes stumbles over
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image) -> Image:
    from PIL.Image import alpha_composite, fromarray, new

    if image.mode.startswith("I") or image.mode == "F":  # Pillow's own conversion clips these to white
        image = fromarray(_to_bytes(np.asarray(image, np.float64), sixteen_bit=";16" in image.mode))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = alpha_composite(new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _to_bytes(values: NDArray[np.float64], *, sixteen_bit: bool) -> NDArray[np.uint8]:
    """Grey levels of unknown range as uint8: the file does not say whether 1, 255 or 65535 is white."""
    values = np.nan_to_num(values)
    highest = 65535.0 if sixteen_bit else values.max()
    top = next((top for top in (1.0, 255.0, 65535.0) if highest <= top), highest)
    return (values / top * 255).round().clip(0, 255).astype(np.uint8)
