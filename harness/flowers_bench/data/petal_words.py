"""What a drawn species looks like, in words: its genes, as somebody would describe it who has seen it from near.

Every gene has one place in the sentence and a few words to choose from. A change that tells two twins apart is larger than what
one word covers, so that twins mostly have different descriptions; where they have the same, the words do not tell them apart.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flowers_bench.data.petals import Colour, Species

#: Number words, from 0.
_COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen", "fourteen")  # fmt: skip
#: Words for a number below each bound; the last one for what is larger.
_WIDTHS = ((0.7, "thin"), (0.88, "narrow"), (1.05, "middling"), (1.25, "broad"), (9.0, "wide"))
_POINTS = ((0.25, "blunt"), (0.5, "round"), (0.75, "oval"), (1.1, "pointed"), (9.0, "sharp"))
_GAPS = ((0.07, "touching"), (0.13, "near"), (9.0, "parted"))
_DISCS = ((0.13, "tiny"), (0.18, "small"), (0.24, "medium"), (0.31, "large"), (9.0, "huge"))
_GRAINS = ((0.3, "smooth"), (9.0, "grainy"))
_FADES = ((1.0, "early"), (1.6, "evenly"), (9.0, "late"))
_TONES = ((0.35, "dark"), (0.65, "dull"), (9.0, "bright"))
_PALES = ((0.15, "white"), (0.5, "pale"), (9.0, "deep"))
#: Hues as shares of a turn; the last one ends where the first begins.
_HUES = (
    (0.03, "red"),
    (0.075, "scarlet"),
    (0.11, "orange"),
    (0.15, "golden"),
    (0.2, "yellow"),
    (0.28, "lime"),
    (0.34, "leafgreen"),
    (0.42, "green"),
    (0.52, "teal"),
    (0.6, "azure"),
    (0.68, "blue"),
    (0.72, "indigo"),
    (0.77, "violet"),
    (0.83, "purple"),
    (0.88, "magenta"),
    (0.94, "pink"),
    (0.975, "crimson"),
    (9.0, "red"),
)
_LAYERS = ("single", "double", "triple")
_MARKINGS = ("plain", "veined", "spotted", "edged", "eyed")


def describe(genes: Species) -> str:
    """Describe a species in one sentence.

    Such as "five broad pointed petals whole touching deep violet fading early from pale pink veined dark red, double, large
    bright yellow grainy disc, three dark green leaves, dark brown ground".
    """
    petals = [
        _COUNTS[genes.petals],
        _word(_WIDTHS, genes.width),
        _word(_POINTS, genes.point),
        "petals",
        "notched" if genes.notch > 0 else "whole",
        _word(_GAPS, genes.gap),
        *_paint(genes.outer),
        "fading",
        _word(_FADES, genes.gradient),
        "from",
        *_paint(genes.inner),
        _MARKINGS[genes.marking],
        _hue(genes.marking_colour) if genes.marking else "",
    ]
    disc = [
        _word(_DISCS, genes.disc),
        *_shade(genes.disc_colour),
        _word(_GRAINS, genes.disc_grain),
        "disc",
    ]
    leaves = [_COUNTS[genes.leaves], *(_shade(genes.leaf_colour) if genes.leaves else ()), "leaves"]
    parts = [petals, [_LAYERS[genes.layers - 1]], disc, leaves, [*_shade(genes.ground), "ground"]]
    return ", ".join(" ".join(word for word in part if word) for part in parts)


def _word(scale: Sequence[tuple[float, str]], value: float) -> str:
    return next(word for bound, word in scale if value < bound)


def _hue(colour: Colour) -> str:
    return _word(_HUES, colorsys.rgb_to_hsv(*colour)[0])


def _paint(colour: Colour) -> tuple[str, ...]:
    """Name a petal's colour by how pale it is, and its hue where it has one."""
    pale = _word(_PALES, colorsys.rgb_to_hsv(*colour)[1])
    return (pale,) if pale == "white" else (pale, _hue(colour))


def _shade(colour: Colour) -> tuple[str, str]:
    """Name a colour by how bright it is, and its hue."""
    return _word(_TONES, colorsys.rgb_to_hsv(*colour)[2]), _hue(colour)
