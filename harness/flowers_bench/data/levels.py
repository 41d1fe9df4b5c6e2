"""Which value is black and which is white in images of more than 8 bits a sample: one rule for a whole dataset.

A JPEG says so: 0 and 255. A 16-bit grey file may hold 12 bits of a camera, and a floating-point one anything. What a
file's header says counts; where it says nothing, the values of all such images of the dataset are looked at together,
so that a dark image among bright ones stays dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from flowers_bench.store.records import DatasetFacts

#: Kinds of images that need a rule, each one of its own: integers of 16 or 32 bits, floating-point numbers, and colours
#: of 16 bits, of which Pillow reads the upper 8. The format of a `FIXED` one says all.
INTEGER, FLOAT, COLOUR, FIXED = "integer", "float", "colour", "fixed"
#: What is likely to be white: 1, or all bits of a usual depth.
_USUAL = (1, 255, 1023, 4095, 16383, 65535)
#: The highest value of a dataset may be above a usual white by this factor (resampling overshoots), or below it by the
#: other; elsewhere it is white itself.
_OVERSHOOT, _DIM = 1.05, 0.5
_FULL = 65535.0
#: Values that are converted at once.
_BLOCK = 1 << 20
_NAMES = {
    INTEGER: "images with grey levels of more than 8 bits",
    FLOAT: "images of floating-point numbers",
    COLOUR: "images with colours of 16 bits, of which the upper 8 are read",
}


class NoScale(Exception):
    """An image whose white nobody knows, in words."""


@dataclass(frozen=True)
class Scale:
    """The values that become 0 and 255; what is beyond them is cut off."""

    black: float
    white: float


#: By kind. A kind that is not there has its format's full range, and without one cannot be decoded.
Scales = Mapping[str, Scale]


@dataclass(frozen=True)
class Levels:
    """What one image of more than 8 bits a sample tells of its range.

    Attributes:
        kind: `INTEGER`, `FLOAT`, `COLOUR` or `FIXED`.
        low, high: the range that its header states, or its lowest and highest value that is a finite number.
        stated: whether the header states it.
        finite: whether all values are finite numbers.
    """

    kind: str
    low: float
    high: float
    stated: bool = False
    finite: bool = True


@dataclass(frozen=True)
class Header:
    """What the header of an image of more than 8 bits a sample says.

    Attributes:
        kind: `INTEGER`, `FLOAT`, `COLOUR` or `FIXED`.
        full: the highest value that the format has room for; None where it has no such bound.
        stated: the lowest and highest value that the writer states.
        significant_bits: how many of a PNG's 16 bits carry something; 0: it does not say.
        white_is_zero: whether high values are dark.
        unsigned: whether these are unsigned integers, which Pillow takes for signed ones.
    """

    kind: str
    full: float | None = None
    stated: tuple[float, float] | None = None
    significant_bits: int = 0
    white_is_zero: bool = False
    unsigned: bool = False


def read_header(content: bytes, image: Image) -> Header | None:
    """Read what `content`, as opened by Pillow, says of its samples; None for images of 8 bits and less."""
    grey = image.mode.startswith("I") or image.mode == "F"
    if image.format == "PNG" and content[24] == 16:
        return Header(INTEGER if grey else COLOUR, _FULL, significant_bits=_significant_bits(content))
    if image.format == "PPM" and grey:
        # Pillow has spread 0 to the header's highest value over 16 bits. Of floating-point numbers it has none.
        return Header(FLOAT) if image.mode == "F" else Header(FIXED, _FULL)
    if image.format == "TIFF":
        return _read_tiff(image.tag_v2, image.mode, grey)  # type: ignore[attr-defined]
    return None


def levels_of(image: Image, header: Header) -> Levels:
    """Find out what an image tells of its range. Decodes its pixels if it must."""
    if header.kind == FIXED:
        return Levels(FIXED, 0, header.full or 0, stated=True)
    if header.stated:
        return Levels(header.kind, *header.stated, stated=True)
    low, high, is_finite = _range(image, header)
    bits = header.significant_bits
    if bits:  # they are the upper ones, as the format wants it, or the lower ones, as some programs do it
        return Levels(header.kind, 0, 2.0**bits - 1 if high < 2**bits else _FULL, stated=True)
    return Levels(header.kind, low, high, finite=is_finite)


def scales_of(found: Iterable[Levels]) -> dict[str, Scale]:
    """Make one rule for each kind of image that there is and that needs one."""
    kinds: dict[str, list[Levels]] = {}
    for levels in found:
        kinds.setdefault(levels.kind, []).append(levels)
    scales = {kind: _scale(of_kind) for kind, of_kind in sorted(kinds.items()) if kind != FIXED}
    if scales.get(COLOUR) == Scale(0, _FULL):
        del scales[COLOUR]  # as without a rule
    return scales


def notes_on_levels(found: Sequence[Levels], scales: Scales) -> list[str]:
    """Note what must be said of a dataset with such images: how many, what is black and white, and who says so."""
    notes = []
    for kind, name in _NAMES.items():
        of_kind = [levels for levels in found if levels.kind == kind]
        if not of_kind:
            continue
        scale = scales.get(kind, Scale(0, _FULL))
        low, high = min(levels.low for levels in of_kind), max(levels.high for levels in of_kind)
        said = (
            "as their headers say"
            if all(levels.stated for levels in of_kind)
            else f"their values lie between {low:.7g} and {high:.7g}"
        )
        notes.append(f"{len(of_kind)} {name}: {scale.black:.7g} is black and {scale.white:.7g} is white ({said})")
        if kind == COLOUR and scale.white < _FULL:
            notes.append(
                f"at most {int(scale.white) // 256 + 1} shades are left of these colours: convert them to 8 bits"
            )
        if odd := sum(not levels.finite for levels in of_kind):
            notes.append(f"{odd} of these have values that are not finite: NaN and -inf are black, inf is white")
    if fixed := sum(levels.kind == FIXED for levels in found):
        notes.append(f"{fixed} images with grey levels of more than 8 bits, each scaled as its own header says")
    return notes


def to_bytes(image: Image, header: Header, scales: Scales) -> NDArray[np.uint8]:
    """Convert an image to uint8 by the rule for its kind: grey (H, W), or colours with or without alpha (H, W, C).

    Raises:
        NoScale: there is no rule for such an image, and its format has no bound.
    """
    scale = scales.get(header.kind) or (Scale(0, header.full) if header.full else None)
    if scale is None:
        what = "floating-point numbers" if header.kind == FLOAT else "integers of 32 bits, or with a sign"
        raise NoScale(f"its pixels are {what}, and nothing says which of them is white: convert it to 8 bits")
    if header.kind == COLOUR:
        pixels: NDArray[np.uint8] = np.asarray(image).copy()
        brightest = max(1, int(scale.white) // 256)
        brighter = (np.arange(256) * 255 / brightest).round().clip(0, 255).astype(np.uint8)
        pixels[..., :3] = brighter[pixels[..., :3]]
        return pixels
    grey = np.empty((image.height, image.width), np.uint8)
    transparent = image.info.get("transparency")
    for rows, values in _blocks(image, header):
        shares = (values - scale.black) / (scale.white - scale.black)
        if header.white_is_zero:
            shares = 1 - shares
        grey[rows] = np.nan_to_num(shares * 255, nan=0, posinf=255, neginf=0).round().clip(0, 255)
        if isinstance(transparent, int):
            grey[rows][values == transparent] = 255  # on white
    return grey


def scales_from(facts: DatasetFacts) -> dict[str, Scale]:
    """Read the rules that a trial's dataset was decoded by. Raises `UsageError` if they are damaged."""
    levels = facts.grey_levels.json() if facts.grey_levels else {}
    try:
        found = {kind: Scale(*map(float, pair)) for kind, pair in levels.items()}
    except (TypeError, ValueError):
        found = {"damaged": Scale(0, 0)}
    if not all(math.isfinite(scale.black) and scale.black < scale.white < math.inf for scale in found.values()):
        raise UsageError(f"the trial's grey_levels are damaged: {levels!r:.80}. Remove its folder.")
    return found


def unlikely_scale(levels: Levels, scales: Scales) -> str | None:
    """Describe an image whose kind has no rule in `scales`, and that uses little of its format's range; None for
    others."""
    if levels.kind in scales or levels.kind not in (INTEGER, COLOUR) or _scale([levels]).white >= _FULL:
        return None
    return (
        f"has values up to {levels.high:.7g}, and {_FULL:.7g} is taken for white, as its format says: the trial's dataset "
        "has no such images. If it looks too dark, convert it to 8 bits."
    )


def _scale(found: Sequence[Levels]) -> Scale:
    stated = [levels for levels in found if levels.stated]
    seen = [levels for levels in found if not levels.stated]
    blacks, whites = [levels.low for levels in stated], [levels.high for levels in stated]
    if seen:
        blacks.append(min(0.0, *(levels.low for levels in seen)))
        whites.append(_likely_white(max(levels.high for levels in seen)))
    black, white = float(min(blacks)), float(max(whites))
    return Scale(black, white if white > black else black + 1)


def _likely_white(highest: float) -> float:
    """Choose the usual white level that a dataset's highest value is near to; else that value itself."""
    return next((usual for usual in _USUAL if _DIM * usual < highest <= _OVERSHOOT * usual), highest)


def _read_tiff(tags: Any, mode: str, grey: bool) -> Header | None:
    bits, sample = _first(tags.get(258), 1), _first(tags.get(339), 1)
    if not grey:
        return Header(COLOUR, _FULL) if bits == 16 and mode.startswith("RGB") else None
    unsigned = sample == 1
    if bits < 16:  # 12, in Pillow's 16
        return Header(FIXED, 2.0**bits - 1)
    low, high = _first(tags.get(340)), _first(tags.get(341))
    stated = (float(low or 0), float(high)) if high is not None else None
    if stated and not (all(map(math.isfinite, stated)) and stated[0] < stated[1]):
        stated = None
    return Header(
        FLOAT if mode == "F" else INTEGER,
        _FULL if bits == 16 and unsigned else None,
        stated,
        white_is_zero=tags.get(262) == 0,
        unsigned=unsigned and bits == 32,
    )


def _first(value: Any, default: Any = None) -> Any:
    found = value[0] if isinstance(value, tuple) and value else value
    return found if isinstance(found, int | float) else default


def _significant_bits(content: bytes) -> int:
    """Read the sBIT chunk, which stands before the pixels, of a PNG whose length and checksums are right; 0 without
    one."""
    position = 8
    while position < len(content) and (kind := content[position + 4 : position + 8]) != b"IDAT":
        length = int.from_bytes(content[position : position + 4], "big")
        if kind == b"sBIT":
            bits = max(content[position + 8 : position + 8 + min(3, length)], default=0)
            return bits if 8 < bits < 16 else 0
        position += 12 + length
    return 0


def _range(image: Image, header: Header) -> tuple[float, float, bool]:
    """Find the lowest and the highest finite value, 0 if there is none, and whether all values are finite."""
    if header.kind == COLOUR:  # the upper bytes of red, green and blue
        upper = np.asarray(image)[..., :3]
        return 256.0 * int(upper.min()), 256.0 * int(upper.max()) + 255, True
    lows, highs, all_finite = [], [], True
    for _, values in _blocks(image, header):
        finite = values[np.isfinite(values)]
        all_finite &= finite.size == values.size
        if finite.size:
            lows.append(float(finite.min()))
            highs.append(float(finite.max()))
    return min(lows, default=0.0), max(highs, default=0.0), all_finite


def _blocks(image: Image, header: Header) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Give the values some rows at a time: a large image has gigabytes of them."""
    found = np.asarray(image)
    if header.unsigned:
        found = found.view(np.uint32)
    step = max(1, _BLOCK // image.width)
    for start in range(0, image.height, step):
        rows = slice(start, start + step)
        yield rows, found[rows].astype(np.float64)
