"""Augmentations that state what they do to an image as a few numbers: drawn for a whole batch at once, apart from its pixels.

Nothing here imports torch or numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class ImageParameters:
    """What each of N images is drawn by: cut out, resized to a square, mirrored or not, and coloured.

    A pixel (r, g, b), from 0 to 255, becomes matrix @ (r, g, b) + added + of_mean * m, m the mean grey of the resized image.

    Attributes:
        boxes: what is cut out, whole pixels (N, 4): top, left, height, width.
        mirrored: whether left and right are swapped, bool (N,).
        matrix: factors of red, green and blue (N, 3 to, 3 from), each below 16; None: colours stay.
        added: to red, green and blue (N, 3), levels between -4096 and 4096; None: nothing.
        of_mean: how much of the mean grey is added (N,), below 16; None: nothing.
    """

    boxes: np.ndarray
    mirrored: np.ndarray
    matrix: np.ndarray | None = None
    added: np.ndarray | None = None
    of_mean: np.ndarray | None = None


class DrawsParameters(Protocol):
    """Makes the parameters of images from uniform numbers, row by row: those of an image depend on its size and its numbers alone."""

    @property
    def numbers(self) -> int:
        """K, how many numbers an image takes."""
        ...

    def __call__(self, sizes: np.ndarray, numbers: np.ndarray) -> ImageParameters:
        """Make them for images of these heights and widths, int64 (N, 2), from numbers in [0, 1), float64 (N, K)."""
        ...
