"""`petals`: flowers drawn by rule, so that everything can run, and be understood, without any download.

A *species* is a set of genes: petal count, outline, layers, colours, markings, disc, leaves. Species come in families
of three near twins that share all genes but one or two: telling twins apart is the fine-grained problem. An *image*
is a species seen once, under nuisance factors that are drawn at random and kept: scale, rotation, perspective,
elastic deformation, occlusion, light, blur, clutter. Image i of a species does not depend on how many images are
asked for, and another `grammar_seed` gives other species.

Everything is drawn in closed form per pixel, many images at a time: coordinates are bent back into the flower's own
frame, where a petal is an inequality between radius and angle. Fields are float32 (B, S, S), colours and the canvas
(B, 3, S, S): planes, because numpy is four times slower over a last axis of three.

`python -m flowers_bench.data.petals sheet.png` draws the picture of docs/petals.md.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flowers_bench.contract.dataset import DataRequest, Dataset, NameLevel, Split, split_checksum
from flowers_bench.contract.options import OptionValue, parse_options
from flowers_bench.data.cache import Slice, cached_images
from flowers_bench.data.options import PETALS_OPTIONS
from flowers_bench.data.petal_words import describe
from flowers_bench.data.threads import in_order
from flowers_bench.util.errors import unknown_name
from flowers_bench.util.system import keep_freed_memory

if TYPE_CHECKING:
    from torch import Tensor


#: Part of the fingerprint: bump it when any pixel would change.
RENDERER = "petals-2"
FAMILY = 3
Array = NDArray[np.floating[Any]]
Colour = tuple[float, float, float]
_TURN = 2 * np.pi

#: Nuisance factors and their ranges; docs/petals.md says what each means.
FACTORS: Mapping[str, tuple[float, float]] = {
    "scale": (0.62, 1.15),
    "rotation": (-np.pi, np.pi),
    "shift_x": (-0.14, 0.14),
    "shift_y": (-0.14, 0.14),
    "perspective": (0.0, 1.1),
    "perspective_axis": (-np.pi, np.pi),
    "elastic": (0.0, 0.085),
    "occlusion": (0.0, 0.45),
    "light": (0.65, 1.3),
    "warmth": (-0.12, 0.12),
    "blur": (0.0, 1.0),
    "clutter": (0.0, 1.0),
}
#: The factors of a portrait: a flower seen straight on, sharp, whole and in plain light.
PORTRAIT: Mapping[str, float] = {**dict.fromkeys(FACTORS, 0.0), "scale": 1.0, "light": 1.0}
#: Factors whose effect is asked for one by one, and the values they are set to: from what is easiest to see on.
SWEPT: Mapping[str, tuple[float, ...]] = {
    "scale": (1.15, 1.02, 0.88, 0.75, 0.62),
    "rotation": (0.0, 0.25 * np.pi, 0.5 * np.pi, 0.75 * np.pi, np.pi),
    "perspective": (0.0, 0.275, 0.55, 0.825, 1.1),
    "elastic": (0.0, 0.021, 0.043, 0.064, 0.085),
    "occlusion": (0.0, 0.11, 0.23, 0.34, 0.45),
    "light": (1.0, 0.91, 0.83, 0.74, 0.65),
    "blur": (0.0, 0.25, 0.5, 0.75, 1.0),
    "clutter": (0.0, 0.25, 0.5, 0.75, 1.0),
}
#: For these, as many test images of each species at most are drawn again: it takes milliseconds an image.
SWEPT_IMAGES = 5
#: Free random numbers of each image after its factors, by what they are for: (first, how many).
_FREE = {
    "occluded": (0, 1),
    "elastic": (1, 16),
    "ground": (17, 6),
    "bokeh": (23, 25),
    "leaf": (48, 5),
    "petal": (53, 16),
}
_FREE |= {"occluder": (69, 3), "light": (72, 1)}
_DRAWS = len(FACTORS) + 73


@dataclass(frozen=True)
class _Genes:
    """All genes of a species but the colours of its petals."""

    petals: int
    layers: int
    width: float
    point: float
    notch: float
    gap: float
    gradient: float
    marking: int  # 0 none, 1 veins, 2 spots, 3 edge, 4 eye
    marking_strength: float
    disc: float
    disc_colour: Colour
    disc_grain: float
    leaves: int
    leaf_colour: Colour
    ground: Colour


@dataclass(frozen=True)
class Species(_Genes):
    """The genes of one species. Lengths are in units of the flower's radius, colours are RGB in [0, 1]."""

    inner: Colour
    outer: Colour
    marking_colour: Colour


def _rng(*axes: object) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps(axes).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    r, g, b = _colours_of(np.array([hue]), saturation, np.array([value]))[0].tolist()
    return (r, g, b)


def _colours_of(hues: NDArray[np.float64], saturation: float, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute colours (N, 3) in RGB from hues and values (N,)."""
    k = (np.array([5, 3, 1]) + hues[:, None] * 6) % 6
    pure = np.maximum(np.minimum(np.minimum(k, 4 - k), 1), 0)
    return np.asarray(values[:, None] - values[:, None] * saturation * pure)


@functools.lru_cache(maxsize=4096)
def species(number: int, grammar_seed: int = 0) -> Species:
    """Make the genes of species `number`: those of its family, and for the second and third twin one or two changes."""
    family, twin = divmod(number, FAMILY)
    rng = _rng("family", grammar_seed, family)
    uniform = rng.uniform
    genes = _Genes(
        petals=int(rng.integers(4, 13)),
        layers=int(rng.integers(1, 4)),
        width=uniform(0.8, 1.15),
        point=uniform(0.3, 0.9),
        notch=float(rng.choice([0.0, 0.0, 0.16, 0.26])),
        gap=uniform(0.0, 0.2),
        gradient=uniform(0.6, 2.2),
        marking=int(rng.integers(0, 5)),
        marking_strength=uniform(0.6, 0.9),
        disc=uniform(0.16, 0.3),
        disc_colour=_hsv(uniform(0.06, 0.17), 0.85, uniform(0.4, 0.95)),
        disc_grain=uniform(0.1, 0.5),
        leaves=int(rng.integers(0, 6)),
        leaf_colour=_hsv(float(rng.choice([0.25, 0.31, 0.37])), 0.55, float(rng.choice([0.38, 0.52]))),
        ground=_hsv(float(rng.choice([0.1, 0.2, 0.3, 0.36])), 0.4, float(rng.choice([0.22, 0.38]))),
    )
    # Few colours for many families, or colour alone would tell them apart. No green: it would be one more leaf.
    paint = {"hue": float(rng.choice([0.6, 0.74, 0.9, 1.0, 1.08, 1.15])) + uniform(-0.035, 0.035)}
    paint["saturation"] = float(rng.choice([0.07, 0.4, 0.7]))
    paint |= {"value": uniform(0.85, 1.0), "drift": uniform(-0.08, 0.08), "pale": uniform(0.4, 1.0)}
    paint["mark"] = float(rng.choice([0.0, 0.4, 0.6]))
    order = rng.permutation(len(_MUTATIONS))
    if twin:
        own = _rng("twin", grammar_seed, family, twin)
        # The second twin reads the family's list from its start, the third from its end: they never share a change.
        for k in (order if twin == 1 else order[::-1])[: int(own.integers(1, 3))]:
            genes = _mutate(_MUTATIONS[k], genes, paint, 1 if own.random() < 0.5 else -1)
    inner, outer, marking = _colours(paint)
    return Species(**vars(genes), inner=inner, outer=outer, marking_colour=marking)


def _colours(paint: Mapping[str, float]) -> tuple[Colour, Colour, Colour]:
    """Compute the colours of the petals' inner end, their outer end, and their markings."""
    hue, saturation, value = paint["hue"], paint["saturation"], paint["value"]
    return (
        _hsv(hue + paint["drift"], saturation * paint["pale"], value),
        _hsv(hue, saturation, value * 0.95),
        _hsv(hue + paint["mark"], 0.75, 0.45),
    )


_MUTATIONS = ("petals", "disc", "disc_colour", "marking", "width", "hue", "notch", "point", "layers")


def _mutate(change: str, genes: _Genes, paint: dict[str, float], sign: int) -> _Genes:
    """Change one gene, or the paint in place, by as much as 64 pixels can show."""
    if change == "petals":
        # One petal more or less is seen among five, not among eleven.
        step = 1 if genes.petals < 8 else 2
        return replace(genes, petals=genes.petals + (step if genes.petals < 6 else sign * step))
    if change == "disc":
        return replace(genes, disc=genes.disc * (1.4 if sign > 0 else 0.65))
    if change == "disc_colour":
        factor = 0.35 if max(genes.disc_colour) > 0.65 else 2
        red, green, blue = genes.disc_colour
        return replace(genes, disc_colour=(red * factor, green * factor, blue * factor))
    if change == "marking":
        return replace(genes, marking=(genes.marking + (1 if sign > 0 else 2)) % 5)
    if change == "width":
        return replace(genes, width=genes.width * (1.3 if sign > 0 else 0.7))
    if change == "hue":
        # A white flower has no hue to turn: it takes on some colour.
        paint["saturation"] = max(paint["saturation"], 0.35)
        paint["hue"] += sign * 0.07
        return genes
    if change == "notch":
        return replace(genes, notch=0.24 if genes.notch < 0.1 else 0.0)
    if change == "point":
        return replace(genes, point=genes.point * (1.9 if sign > 0 else 0.45))
    return replace(genes, layers=(genes.layers + (0 if sign > 0 else 1)) % 3 + 1)


def render(
    numbers: Sequence[int],
    split: str,
    indices: Sequence[int],
    size: int,
    grammar_seed: int = 0,
    fixed: Mapping[str, float] | None = None,
) -> tuple[NDArray[np.uint8], dict[str, Array]]:
    """Draw images.

    Args:
        numbers: B species.
        split: its name; splits never share an image.
        indices: B image numbers within their species and split.
        size: side in pixels, S.
        fixed: factors that are set rather than drawn, to ask what one does.

    Returns:
        uint8 (B, S, S, 3), and each nuisance factor as float32 (B,).

    Raises:
        UsageError: `fixed` names no factor.
    """
    draws = _draws(numbers, split, indices, grammar_seed)
    found = _factors(draws)
    for name, value in (fixed or {}).items():
        if name not in FACTORS:
            raise unknown_name("factor", name, FACTORS)
        found[name] = np.full(len(draws), value, np.float32)
    return _drawn([species(n, grammar_seed) for n in numbers], found, draws[:, len(FACTORS) :], size), found


def portrait(genes: Species, size: int) -> NDArray[np.uint8]:
    """Draw one flower under the factors of `PORTRAIT`, on a plain ground: uint8 (S, S, 3), decided by its genes alone."""
    factors = {name: np.array([value], np.float32) for name, value in PORTRAIT.items()}
    return np.asarray(_drawn([genes], factors, np.full((1, _DRAWS - len(FACTORS)), 0.5, np.float32), size)[0])


def _drawn(genes: Sequence[Species], factors: dict[str, Array], free: Array, size: int) -> NDArray[np.uint8]:
    image = _Scene(_stack(genes), factors, free, size).paint()
    image = _blurred(image, factors["blur"] * size / 64)
    pixels: NDArray[np.uint8] = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return pixels


def _draws(numbers: Sequence[int], split: str, indices: Sequence[int], grammar_seed: int) -> Array:
    """Draw all random numbers of each image, uniform in [0, 1): float32 (B, _DRAWS).

    A species has one stream per split, of which image i owns numbers i * _DRAWS and on: PCG64 can be wound forward.
    """
    found = np.empty((len(numbers), _DRAWS), np.float32)
    streams: dict[int, tuple[np.random.Generator, Any]] = {}
    for row, number, index in zip(found, numbers, indices, strict=True):
        if number not in streams:
            stream = _rng("images", grammar_seed, number, split)
            streams[number] = stream, stream.bit_generator.state
        stream, start = streams[number]
        stream.bit_generator.state = start
        stream.bit_generator.advance(int(index) * _DRAWS)  # type: ignore[attr-defined]
        row[:] = stream.random(_DRAWS)
    return found


def _factors(draws: Array) -> dict[str, Array]:
    """Compute each nuisance factor, (B,), from the random numbers."""
    found = {name: low + draws[:, k] * (high - low) for k, (name, (low, high)) in enumerate(FACTORS.items())}
    found["occlusion"] *= draws[:, len(FACTORS)] < 0.4  # most flowers stand free
    found["blur"] *= found["blur"]  # and most pictures are sharp
    return found


def _stack(genes: Sequence[Species]) -> dict[str, Array]:
    """Stack genes as (B, 1, 1), and colours as (B, 3, 1, 1)."""
    values = {f.name: np.array([getattr(g, f.name) for g in genes], np.float32) for f in fields(Species)}
    return {name: value[..., None, None] for name, value in values.items()}


def _power(base: Array, exponent: Array) -> Array:
    """Compute `base ** exponent` for bases from 0 on, by exp and log: NumPy has vector instructions for these, but
    not for powers."""
    found: Array = np.maximum(base, 1e-6)
    np.log(found, out=found)
    found *= exponent
    np.exp(found, out=found)
    return found


def _over(canvas: Array, colour: Array, cover: Array) -> None:
    change = colour - canvas
    change *= cover[:, None]
    canvas += change


def _inside(distance: Array, softness: float = 1.0) -> Array:
    """Compute the coverage of each pixel: 1 where `distance` is positive, 0 where negative, `softness` pixels of ramp
    between.

    The unit of `distance` does not matter, nor how it is bent: its own slope says how far a pixel reaches.
    """
    slope = np.zeros_like(distance)
    slope[:, :, 1:] = np.abs(distance[:, :, 1:] - distance[:, :, :-1])
    slope[:, 1:] += np.abs(distance[:, 1:] - distance[:, :-1])
    found = distance / (softness * np.maximum(slope, 1e-4))
    found += 0.5
    return np.clip(found, 0, 1, out=found)


class _Scene:
    """One batch being painted, from the ground up."""

    def __init__(self, genes: dict[str, Array], factors: dict[str, Array], free: Array, size: int) -> None:
        self.genes = genes
        self.free = {name: free[:, first : first + count, None, None] for name, (first, count) in _FREE.items()}
        self.factors = {name: values[:, None, None] for name, values in factors.items()}
        grid = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
        self.x, self.y = grid[None, None, :], grid[None, :, None]
        self.u, self.v = self._flower_frame()
        self.radius = np.sqrt(self.u**2 + self.v**2)
        self.turn = np.arctan2(self.v, self.u) / np.float32(_TURN)

    def _flower_frame(self) -> tuple[Array, Array]:
        """Bend image coordinates back into the flower's own frame, where its outer radius is 1."""
        f = self.factors
        x: Array = self.x - f["shift_x"]
        y: Array = self.y - f["shift_y"]
        for sweep in range(2):
            x, y = self._bent(x, y, sweep)
        x, y = self._tilted(x, y)
        cos, sin = np.cos(f["rotation"]), np.sin(f["rotation"])
        reach = f["scale"] * 0.75
        return (cos * x + sin * y) / reach, (cos * y - sin * x) / reach

    def _bent(self, x: Array, y: Array, sweep: int) -> tuple[Array, Array]:
        """Bend coordinates by two waves along each axis. Their slopes add up to less than 1, so that nothing folds
        over."""
        free = self.free["elastic"][:, 8 * sweep : 8 * sweep + 8]
        waves, phases, elastic = np.pi * (0.8 + free[:, :4]), _TURN * free[:, 4:], self.factors["elastic"]
        swing = [np.sin(waves[:, k] * (y if k in (0, 3) else x) + phases[:, k]) for k in range(4)]
        return x + elastic * (swing[0] + swing[1]), y + elastic * (swing[2] + swing[3])

    def _tilted(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Compute where the ray through (x, y) meets the flower's plane, tilted by `perspective`, from a distance of
        2.5."""
        axis, tilt, distance = self.factors["perspective_axis"], self.factors["perspective"], 2.5
        cos, sin = np.cos(axis), np.sin(axis)
        along, across = cos * x + sin * y, cos * y - sin * x
        depth = distance / np.maximum(distance * np.cos(tilt) - across * np.sin(tilt), 0.1)
        across = across * depth
        along = along * (1 + across * np.sin(tilt) / distance)
        return cos * along - sin * across, sin * along + cos * across

    def paint(self) -> Array:
        """Paint the images: RGB float32 (B, 3, S, S) in about [0, 1]."""
        canvas = self._ground()
        self._leaves(canvas)
        for layer in range(int(self.genes["layers"].max())):
            self._petals(canvas, layer)
        self._disc(canvas)
        self._occluder(canvas)
        return self._lit(canvas)

    def _ground(self) -> Array:
        """Paint soil and grass out of focus: two waves, and coloured discs of light where there is clutter."""
        wave = self.free["ground"]
        noise = sum(
            np.sin(10 * (wave[:, k] - 0.5) * self.x + 10 * (wave[:, k + 1] - 0.5) * self.y + _TURN * wave[:, k + 2])
            for k in (0, 3)
        )
        canvas: Array = self.genes["ground"] * (1 + 0.25 * np.asarray(noise))[:, None]
        for k in range(0, 25, 5):
            x, y, width, tint, bright = (self.free["bokeh"][:, k + j] for j in range(5))
            distance = np.sqrt((self.x - 2 * x + 1) ** 2 + (self.y - 2 * y + 1) ** 2)
            cover = np.clip((0.12 + 0.33 * width - distance) * 9, 0, 1)
            # Every second one has the hue of some flower, the others that of leaves.
            hue = (0.52 + 0.66 * tint) if k % 2 else 0.15 + 0.25 * tint
            colour = _colours_of(hue.ravel().astype(float), 0.5, 0.35 + 0.6 * bright.ravel().astype(float))
            _over(canvas, colour.astype(np.float32)[:, :, None, None], cover * self.factors["clutter"] * 0.75)
        return canvas

    def _leaves(self, canvas: Array) -> None:
        for leaf in range(int(self.genes["leaves"].max())):
            angle = _TURN * (leaf / 5 + 0.25 * self.free["leaf"][:, leaf])
            along = np.cos(angle) * self.u + np.sin(angle) * self.v
            across = np.cos(angle) * self.v - np.sin(angle) * self.u
            middle = along / 1.35
            cover = _inside(0.85 * middle * (1 - middle) - np.abs(across)) * (leaf < self.genes["leaves"])
            shade = (0.8 + 0.3 * np.clip(across * 6, -1, 1)) * (1 - 0.3 * np.exp(-((across / 0.03) ** 2)))
            _over(canvas, self.genes["leaf_colour"] * shade[:, None], cover)

    def _petals(self, canvas: Array, layer: int) -> None:
        g = self.genes
        turn = (self.turn + 1) * g["petals"] + 0.5 * layer
        which = np.floor(turn)
        side = (turn - which - 0.5) * 2  # -1 .. 1 across a petal, 0 on its axis
        a = np.abs(side)
        wobble = self._wobble((which % g["petals"]).astype(np.intp), layer)
        length = (1 - 0.26 * layer) * (0.9 + 0.1 * wobble)
        wide = np.minimum(a / (g["width"] * (1 - g["gap"])), 1)
        outline = length * (0.75 * _power(1 - wide * wide, g["point"]) + 0.25 * (1 - wide))
        outline -= length * g["notch"] * np.exp(-((a / 0.22) ** 2))
        distance = outline - self.radius
        if layer:
            # An inner layer throws a shadow on the one below.
            canvas *= (1 - 0.3 * np.clip(1 + distance * 9, 0, 1) * (layer < g["layers"]))[:, None]
        along = np.minimum(self.radius / length, 1)
        colour = (g["outer"] - g["inner"]) * _power(along, g["gradient"])[:, None]
        colour += g["inner"]
        _over(colour, g["marking_colour"], self._marking(a, along))
        # Each petal lies a little over its neighbour, and has a crease along its axis.
        shade = 0.94 - 0.22 * a * a + 0.1 * side - 0.2 * (1 - along) - 0.1 * np.maximum(1 - 6 * a, 0) + 0.06 * layer
        colour *= shade[:, None]
        _over(canvas, colour, _inside(distance) * (layer < g["layers"]))

    def _wobble(self, which: NDArray[np.intp], layer: int) -> Array:
        """Draw a number in [0, 1) for each petal, at each of its pixels."""
        flat = (which.reshape(len(which), -1) + 3 * layer) % 16
        return np.take_along_axis(self.free["petal"][:, :, 0, 0], flat, axis=1).reshape(which.shape)

    def _marking(self, a: Array, along: Array) -> Array:
        """Compute how much of the marking's colour a petal shows, 0 to 1."""
        kind = self.genes["marking"]
        found = np.zeros_like(a)
        if (kind == 1).any():  # veins
            veins = np.clip(np.cos(a * 9.5) * 3 - 1.4, 0, 1) * np.clip((0.85 - along) * 9, 0, 1)
            found = np.where(kind == 1, veins, found)
        if (kind == 2).any():  # spots
            spots = np.clip(np.cos(a * 9) * np.cos(along * 24) * 4 - 1, 0, 1) * (along > 0.33)
            found = np.where(kind == 2, spots, found)
        found = np.where(kind == 3, np.clip((along - 0.76) * 9, 0, 1), found)  # edge
        found = np.where(kind == 4, np.clip((0.52 - along) * 9, 0, 1), found)  # eye
        return np.asarray(found * self.genes["marking_strength"])

    def _disc(self, canvas: Array) -> None:
        g = self.genes
        canvas *= (1 - 0.3 * np.clip(1 + (g["disc"] - self.radius) * 9, 0, 1))[:, None]
        # Three waves at 120 degrees: florets packed in hexagons.
        florets = sum(np.cos(self.u * cos + self.v * sin) for cos, sin in ((46, 0), (-23, 40), (-23, -40)))
        grain = 1 + g["disc_grain"] * 0.6 * np.asarray(florets)
        rim = 1.05 - 0.45 * np.minimum(self.radius / g["disc"], 1) ** 3
        _over(canvas, g["disc_colour"] * (grain * rim)[:, None], _inside(g["disc"] - self.radius))

    def _occluder(self, canvas: Array) -> None:
        """Draw a leaf in front, out of focus, that comes from one side and covers that share of the flower's diameter."""
        if not self.factors["occlusion"].any():
            return
        way, phase, tone = (self.free["occluder"][:, k] for k in range(3))
        cos, sin = np.cos(_TURN * way), np.sin(_TURN * way)
        side = cos * (self.x - self.factors["shift_x"]) + sin * (self.y - self.factors["shift_y"])
        edge = 0.75 * self.factors["scale"] * (1 - 2 * self.factors["occlusion"])
        bend = 0.12 * np.sin(3 * (cos * self.y - sin * self.x) + _TURN * phase)
        depth = side - edge - bend
        shade = (0.55 + 0.5 * tone) * (1 + 0.25 * np.sin(9 * depth))
        _over(
            canvas,
            self.genes["leaf_colour"] * shade[:, None],
            np.clip(0.5 + 12 * depth, 0, 1) * (self.factors["occlusion"] > 0),
        )

    def _lit(self, canvas: Array) -> Array:
        """Apply brightness, colour temperature, and light that falls off to one side."""
        way = _TURN * self.free["light"][:, 0]
        fall = self.factors["light"] * (1 + 0.25 * (np.cos(way) * self.x + np.sin(way) * self.y))
        warmth = self.factors["warmth"]
        canvas *= np.stack([1 + warmth, np.ones_like(warmth), 1 - warmth], axis=1) * fall[:, None]
        return canvas


def _blurred(images: Array, sigmas: Array) -> Array:
    from scipy.ndimage import gaussian_filter

    for image, sigma in zip(images, sigmas, strict=True):
        if sigma > 0.15:
            gaussian_filter(image, (0, sigma, sigma), output=image)
    return images


def _parse(options: Mapping[str, OptionValue]) -> dict[str, int]:
    for name in options:
        if name not in PETALS_OPTIONS:
            raise unknown_name("option of dataset petals", name, PETALS_OPTIONS)
    values = parse_options(PETALS_OPTIONS, options, "data.")
    return {name: values.integer(name) for name in values}


def load(request: DataRequest) -> Dataset:
    """Draw the dataset with the options of the request, once, and cache it. Raises `UsageError` for options out of
    range."""
    options = _parse(request.options)
    size, count = options["size"], options["species"]
    key = hashlib.sha256(json.dumps([RENDERER, options], sort_keys=True).encode()).hexdigest()
    plan = [(split, n, i) for split in ("train", "val", "test") for n in range(count) for i in range(options[split])]
    images = cached_images(
        request.cache_dir,
        "petals",
        key,
        lambda: _rendered(plan, size, options["grammar_seed"]),
        len(plan),
        request.progress,
        read_only=request.read_only,
    )
    splits, listing, start = {}, {}, 0
    for split in ("train", "val", "test"):
        numbers, indices = zip(*((n, i) for name, n, i in plan if name == split), strict=True)
        keys = [f"{split}/{n:03d}/{i:03d}" for n, i in zip(numbers, indices, strict=True)]
        factors = _factors(_draws(numbers, split, indices, options["grammar_seed"]))
        stop = start + len(keys)
        contents = [
            f"{_drawn_from(n, options['grammar_seed'])} {split} {i}" for n, i in zip(numbers, indices, strict=True)
        ]
        splits[split] = Split(Slice(images, start, stop), np.array(numbers, np.int64), keys, factors, contents)
        listing[split] = (keys, numbers)
        start = stop
    return Dataset(
        train=splits["train"],
        val=splits["val"],
        test=splits["test"],
        name="petals",
        class_names=[f"family {n // FAMILY + 1} {'abc'[n % FAMILY]}" for n in range(count)],
        fingerprint=key,
        split_checksum=split_checksum({f"{RENDERER} {options['grammar_seed']} {k}": v for k, v in listing.items()}),
        resolution=f"{size}x{size}",
        notes=("drawn by rule, not photographs: use it to compare and to learn, not to predict accuracy on flowers",),
        factor_sweeps=_sweeps(splits["test"], options),
        class_contents=[_drawn_from(n, options["grammar_seed"]) for n in range(count)],
        shown_factors=_shown(splits["test"].factors),
        descriptions=[describe(species(n, options["grammar_seed"])) for n in range(count)],
        name_levels=_families(count),
    )


def _families(count: int) -> list[NameLevel]:
    """Name the families of that many species; one alone says nothing."""
    families = [f"family {n // FAMILY + 1}" for n in range(count)]
    return [NameLevel.of("family", families)] if len(set(families)) > 1 else []


def _shown(factors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name the factors that change a flower's shape in the image, in plain words."""
    return {
        "tilt": factors["perspective"],
        "size": factors["scale"],
        "turn": np.abs(factors["rotation"]),
        "bend": factors["elastic"],
    }


def _drawn_from(number: int, grammar_seed: int) -> str:
    """Name what decides a species, in one text."""
    return f"{RENDERER} {grammar_seed} {number}"


@dataclass
class _Redrawn:
    """Images (species, index) of the test split drawn again with `fixed` factors, some at a time when asked for."""

    plan: Sequence[tuple[int, int]]
    size: int
    grammar_seed: int
    fixed: Mapping[str, float]
    _start: int = 0
    _drawn: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, index: int) -> Tensor:
        import torch

        step = _step(self.size)
        start = index - index % step
        if self._drawn is None or start != self._start:
            numbers, indices = zip(*self.plan[start : start + step], strict=True)
            self._start = start
            self._drawn, _ = render(numbers, "test", indices, self.size, self.grammar_seed, self.fixed)
        return torch.from_numpy(self._drawn[index - start].transpose(2, 0, 1))


def _sweeps(test: Split, options: Mapping[str, int]) -> dict[str, dict[float, Split]]:
    """Make `Dataset.factor_sweeps`: the first test images of each species, at the values of `SWEPT`."""
    kept = min(options["test"], SWEPT_IMAGES)
    rows = [n * options["test"] + i for n in range(options["species"]) for i in range(kept)]
    plan = [(n, i) for n in range(options["species"]) for i in range(kept)]
    labels, keys = test.labels[rows], [test.keys[row] for row in rows]

    def at(factor: str, value: float) -> Split:
        return Split(_Redrawn(plan, options["size"], options["grammar_seed"], {factor: value}), labels, keys)

    return {factor: {value: at(factor, value) for value in values} for factor, values in SWEPT.items()}


def _step(size: int) -> int:
    """Choose how many images are drawn at once: few enough for the arithmetic to stay in the processor's cache."""
    return max(1, 10 * 64 * 64 // size**2)


def _rendered(plan: Sequence[tuple[str, int, int]], size: int, grammar_seed: int) -> Iterator[NDArray[np.uint8]]:
    """Render the images of `plan` (split, species, index), in order, each (S, S, 3)."""
    step = _step(size)
    keep_freed_memory()

    def draw(start: int) -> list[NDArray[np.uint8]]:
        images: list[NDArray[np.uint8]] = []
        chunk = plan[start : start + step]
        for split in dict.fromkeys(name for name, _, _ in chunk):
            chosen = [(n, i) for name, n, i in chunk if name == split]
            images.extend(render([n for n, _ in chosen], split, [i for _, i in chosen], size, grammar_seed)[0])
        return images

    for images in in_order(draw, range(0, len(plan), step)):  # numpy lets go of the interpreter lock
        yield from images


def sheet(families: int = 5, size: int = 64) -> NDArray[np.uint8]:
    """Draw a contact sheet, uint8 (H, W, 3): a family of twins a row, of each a portrait and three training images."""
    rows = []
    for family in range(families):
        for twin in range(FAMILY):
            number = FAMILY * family + twin
            images, _ = render([number] * 3, "train", range(3), size)
            rows.append(np.concatenate([portrait(species(number), size), *images], axis=1))
    lines = [np.concatenate(rows[start : start + FAMILY], axis=1) for start in range(0, len(rows), FAMILY)]
    return np.concatenate(lines, axis=0)


if __name__ == "__main__":
    from PIL import Image

    Image.fromarray(sheet()).save(sys.argv[1], optimize=True)
