"""An image file as pixels, whatever is in it: by content, never by extension."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowers_bench.errors import UsageError

#: Larger images are refused before they are decoded: a small file can claim to be a huge picture.
MAX_PIXELS = 100_000_000
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def decode_image(path: Path, shortest_side: int) -> NDArray[np.uint8]:
    """The image as uint8 RGB (H, W, 3): EXIF rotation applied, first frame of an animation, CMYK, palette, grey and
    16-bit converted, its shortest side reduced (never enlarged) to `shortest_side` with an antialiased filter.

    Raises:
        UsageError: the file is missing, empty, truncated, no image, or larger than `MAX_PIXELS`; names the file.
    """
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(path.read_bytes())) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise UsageError(f"image {path} is {image.width} x {image.height}: more than {MAX_PIXELS} pixels.")
                # Lets the JPEG decoder itself reduce by 2, 4 or 8, to no less than twice what is wanted.
                image.draft("RGB", (2 * shortest_side, 2 * shortest_side))
                rotated = ImageOps.exif_transpose(image)
                rgb = _to_rgb(rotated)
    except UsageError:
        raise
    except Exception as error:  # decoders raise many kinds: OSError, SyntaxError, ValueError, struct.error, ...
        raise UsageError(
            f"image {path} cannot be read ({type(error).__name__}: {error}). Remove or replace it."
        ) from error
    scale = shortest_side / min(rgb.size)
    if scale < 1:
        size = (max(1, round(rgb.width * scale)), max(1, round(rgb.height * scale)))
        rgb = rgb.resize(size, Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _to_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith("I") or image.mode == "F":  # 16-bit grey: Pillow's own conversion clips it to white
        values = np.asarray(image, np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        image = Image.fromarray((values / top * 255).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")
