"""`petals`: flowers drawn by rule, so that everything can run, and be understood, without any download.

A *species* is a set of genes: petal count, outline, layers, colours, markings, disc, leaves. Species come in families
of three near twins that share all genes but one or two: telling twins apart is the fine-grained problem. An *image*
is a species seen once, under nuisance factors that are drawn at random and kept: scale, rotation, perspective,
elastic deformation, occlusion, light, blur, clutter. Image i of a species does not depend on how many images are
asked for, and another `grammar_seed` gives other species.

Everything is drawn in closed form per pixel, many images at a time: coordinates are bent back into the flower's own
frame, where a petal is an inequality between radius and angle.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowers_bench.data.cache import Slice, cached_images
from flowers_bench.data.dataset import DataRequest, Dataset, Split, split_checksum
from flowers_bench.errors import UsageError

#: Part of the fingerprint: bump it when any pixel would change.
RENDERER = "petals-1"
FAMILY = 3
_BOUNDS = {
    "size": (16, 1024),
    "species": (2, 10000),
    "train": (1, 10000),
    "val": (1, 10000),
    "test": (1, 10000),
    "grammar_seed": (0, 2**31),
}
Array = NDArray[np.floating[Any]]

#: Nuisance factors: what each means and its range. `occlusion` is a share of the flower's radius.
FACTORS: Mapping[str, tuple[float, float]] = {
    "scale": (0.62, 1.15),
    "rotation": (-np.pi, np.pi),
    "shift_x": (-0.14, 0.14),
    "shift_y": (-0.14, 0.14),
    "perspective_x": (-0.35, 0.35),
    "perspective_y": (-0.35, 0.35),
    "elastic": (0.0, 0.11),
    "occlusion": (0.0, 0.45),
    "light": (0.65, 1.3),
    "warmth": (-0.12, 0.12),
    "blur": (0.0, 1.0),
    "clutter": (0.0, 1.0),
}
#: Random numbers per image: the factors, then free ones for shapes of noise, leaves and petals.
_DRAWS = len(FACTORS) + 64


@dataclass(frozen=True)
class Species:
    """The genes of one species. Lengths are in units of the flower's radius, colours are RGB in [0, 1]."""

    petals: int
    layers: int
    width: float
    point: float
    notch: float
    gap: float
    inner: tuple[float, float, float]
    outer: tuple[float, float, float]
    gradient: float
    marking: int  # 0 none, 1 veins, 2 spots, 3 edge, 4 eye
    marking_strength: float
    marking_colour: tuple[float, float, float]
    disc: float
    disc_colour: tuple[float, float, float]
    disc_grain: float
    leaves: int
    leaf_colour: tuple[float, float, float]
    ground: tuple[float, float, float]


def _rng(*axes: object) -> np.random.Generator:
    digest = hashlib.sha256(json.dumps(axes).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "big")))


def _hsv(hue: float, saturation: float, value: float) -> tuple[float, float, float]:
    channels = [(5 + hue * 6) % 6, (3 + hue * 6) % 6, (1 + hue * 6) % 6]
    r, g, b = (value - value * saturation * max(0.0, min(k, 4 - k, 1.0)) for k in channels)
    return (r, g, b)


def species(number: int, grammar_seed: int = 0) -> Species:
    """Genes of species `number`: those of its family, and for the second and third twin one or two changes."""
    family, twin = divmod(number, FAMILY)
    rng = _rng("family", grammar_seed, family)
    hue, value = float(rng.random()), float(rng.uniform(0.75, 1.0))
    saturation = float(rng.choice([0.05, 0.35, 0.6, 0.8]))
    drift = float(rng.uniform(-0.12, 0.12))
    genes: dict[str, Any] = {
        "petals": int(rng.integers(4, 13)),
        "layers": int(rng.integers(1, 4)),
        "width": float(rng.uniform(0.75, 1.25)),
        "point": float(rng.uniform(0.25, 1.1)),
        "notch": float(rng.choice([0.0, 0.0, 0.16, 0.26])),
        "gap": float(rng.uniform(0.0, 0.25)),
        "inner": _hsv(hue + drift, saturation * float(rng.uniform(0.3, 1.0)), value),
        "outer": _hsv(hue, saturation, value * float(rng.uniform(0.75, 1.0))),
        "gradient": float(rng.uniform(0.6, 2.2)),
        "marking": int(rng.integers(0, 5)),
        "marking_strength": float(rng.uniform(0.55, 0.9)),
        "marking_colour": _hsv(hue + float(rng.uniform(0.3, 0.7)), 0.7, 0.5),
        "disc": float(rng.uniform(0.14, 0.34)),
        "disc_colour": _hsv(float(rng.uniform(0.06, 0.2)), 0.8, float(rng.uniform(0.35, 0.95))),
        "disc_grain": float(rng.uniform(0.0, 0.5)),
        "leaves": int(rng.integers(0, 6)),
        "leaf_colour": _hsv(float(rng.uniform(0.22, 0.42)), 0.6, float(rng.uniform(0.3, 0.6))),
        "ground": _hsv(float(rng.uniform(0.08, 0.4)), 0.4, float(rng.uniform(0.2, 0.5))),
    }
    if twin:
        _mutate(genes, _rng("twin", grammar_seed, family, twin), twin)
    return Species(**genes)


def _mutate(genes: dict[str, Any], rng: np.random.Generator, twin: int) -> None:
    """Change one or two genes, in place. The second and the third twin change different ones."""
    changes = ["petals", "disc", "marking", "width", "hue", "notch", "point", "layers"]
    order = [changes[i] for i in rng.permutation(len(changes))]
    # Twins start from opposite ends of the list, so that they also differ from each other.
    for change in order[: int(rng.integers(1, 3))]:
        sign = 1 if twin == 1 else -1
        if change == "petals":
            genes["petals"] += sign if genes["petals"] > 4 else twin
        elif change == "disc":
            genes["disc"] *= 1.4 if sign > 0 else 0.65
        elif change == "marking":
            genes["marking"] = (genes["marking"] + twin) % 5
        elif change == "width":
            genes["width"] *= 1.22 if sign > 0 else 0.8
        elif change == "hue":
            genes["outer"] = (
                tuple(np.roll(genes["outer"], 1) * 0.35 + np.array(genes["outer"]) * 0.65)
                if sign > 0
                else genes["inner"]
            )
        elif change == "notch":
            genes["notch"] = 0.22 if genes["notch"] < 0.1 else 0.0
            genes["gap"] = min(0.3, genes["gap"] + 0.1 * (twin - 1))
        elif change == "point":
            genes["point"] *= 1.8 if sign > 0 else 0.5
        else:
            genes["layers"] = genes["layers"] % 3 + 1


def render(
    numbers: Sequence[int], split: str, indices: Sequence[int], size: int, grammar_seed: int = 0
) -> tuple[NDArray[np.uint8], dict[str, Array]]:
    """Draw images.

    Args:
        numbers: B species.
        split: its name; splits never share an image.
        indices: B image numbers within their species and split.
        size: side in pixels, S.

    Returns:
        uint8 (B, S, S, 3), and each nuisance factor as (B,).
    """
    pairs = list(zip(numbers, indices, strict=True))
    draws = _draws(pairs, split, grammar_seed)
    factors = _factors(draws)
    genes = _stack([species(n, grammar_seed) for n in numbers])
    scene = _Scene(genes, factors, draws[:, len(FACTORS) + 1 :], size)
    image = _blurred(scene.paint(), factors["blur"] * size / 64)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), factors


def _draws(pairs: Sequence[tuple[int, int]], split: str, grammar_seed: int) -> Array:
    """All random numbers of each image, uniform in [0, 1): (B, _DRAWS)."""
    return np.stack(
        [_rng("image", grammar_seed, number, split, index).random(_DRAWS) for number, index in pairs]
    ).astype(np.float32)


def _factors(draws: Array) -> dict[str, Array]:
    """Each nuisance factor, (B,)."""
    found = {name: low + draws[:, k] * (high - low) for k, (name, (low, high)) in enumerate(FACTORS.items())}
    found["occlusion"] *= draws[:, len(FACTORS)] < 0.4  # most flowers stand free
    found["blur"] *= found["blur"]  # and most pictures are sharp
    return found


def _stack(genes: Sequence[Species]) -> dict[str, Array]:
    """Genes as arrays that broadcast against (B, S, S); colours as (B, 1, 1, 3)."""
    found = {}
    for name in Species.__dataclass_fields__:
        values = np.array([getattr(g, name) for g in genes], np.float32)
        found[name] = values[:, None, None, :] if values.ndim == 2 else values[:, None, None]
    return found


class _Scene:
    """One batch being painted, from the ground up. Fields of shape (B, S, S) unless said otherwise."""

    def __init__(self, genes: dict[str, Array], factors: dict[str, Array], free: Array, size: int) -> None:
        self.genes, self.free = genes, free
        self.factors = {name: values[:, None, None] for name, values in factors.items()}
        grid = ((np.arange(size) + 0.5) / size * 2 - 1).astype(np.float32)
        self.y, self.x = np.meshgrid(grid, grid, indexing="ij")
        self.u, self.v = self._flower_frame()
        self.radius = np.hypot(self.u, self.v)
        self.angle = np.arctan2(self.v, self.u)
        # Half a pixel in the flower's frame: edges are that soft.
        self.soft = 1.2 / size / self.factors["scale"] / 0.62

    def _free(self, k: int) -> Array:
        return self.free[:, k, None, None]

    def _flower_frame(self) -> tuple[Array, Array]:
        """Image coordinates bent back into the flower's own frame, where its outer radius is 1."""
        f = self.factors
        x, y = self.x[None] - f["shift_x"], self.y[None] - f["shift_y"]
        depth = 1 + f["perspective_x"] * x + f["perspective_y"] * y
        x, y = x / depth, y / depth
        wave = [
            np.sin((2.0 + 2.5 * self._free(k)) * (x if k % 2 else y) * np.pi + 6.283 * self._free(k + 4))
            for k in range(4)
        ]
        x, y = x + f["elastic"] * (wave[0] + wave[2]), y + f["elastic"] * (wave[1] + wave[3])
        cos, sin = np.cos(f["rotation"]), np.sin(f["rotation"])
        reach = f["scale"] * 0.72
        return (cos * x + sin * y) / reach, (cos * y - sin * x) / reach

    def paint(self) -> Array:
        """RGB (B, S, S, 3) in about [0, 1]."""
        canvas = self._ground()
        canvas = self._leaves(canvas)
        for layer in range(int(self.genes["layers"].max())):
            canvas = self._petals(canvas, layer)
        canvas = self._disc(canvas)
        canvas = self._occluder(canvas)
        return self._lit(canvas)

    def _over(self, canvas: Array, colour: Array, cover: Array) -> Array:
        return canvas + cover[..., None] * (colour - canvas)

    def _inside(self, distance: Array) -> Array:
        """Soft step: 1 where `distance` (in the flower's frame) is positive."""
        return 1 / (1 + np.exp(-np.clip(distance / self.soft * 2, -30, 30)))

    def _ground(self) -> Array:
        """Soil and grass out of focus: a few waves, and blobs where there is clutter."""
        noise = sum(
            np.sin((1 + 5 * self._free(k)) * self.x + (1 + 5 * self._free(k + 1)) * self.y + 6.283 * self._free(k + 2))
            for k in (8, 11, 14)
        )
        canvas: Array = self.genes["ground"] * (1 + 0.22 * np.asarray(noise)[..., None])
        for k in (17, 22, 27):
            x, y = 2 * self._free(k) - 1, 2 * self._free(k + 1) - 1
            blob = np.exp(-((self.x - x) ** 2 + (self.y - y) ** 2) / (0.02 + 0.12 * self._free(k + 2)))
            colour = np.concatenate([self._free(k + 2), self._free(k + 3), self._free(k + 4)], axis=-1)[:, :, None, :]
            canvas = self._over(canvas, colour, blob * self.factors["clutter"] * 0.9)
        return canvas

    def _leaves(self, canvas: Array) -> Array:
        for leaf in range(int(self.genes["leaves"].max())):
            angle = 6.283 * (leaf / 5 + 0.25 * self._free(32 + leaf))
            along = np.cos(angle) * self.u + np.sin(angle) * self.v
            across = np.cos(angle) * self.v - np.sin(angle) * self.u
            middle = np.clip(along / 1.35, 0, 1)
            cover = self._inside(0.2 * np.sqrt(middle * (1 - middle)) * 2 - np.abs(across)) * (along > 0)
            vein = 1 - 0.35 * np.exp(-((across / 0.03) ** 2))
            canvas = self._over(
                canvas, self.genes["leaf_colour"] * vein[..., None], cover * (leaf < self.genes["leaves"])
            )
        return canvas

    def _petals(self, canvas: Array, layer: int) -> Array:
        g = self.genes
        turn = (self.angle / 6.283185307 * g["petals"] + 0.5 * layer + 1000) % g["petals"]
        which = np.floor(turn).astype(int)
        a = np.abs(turn - which - 0.5) * 2  # 0 on a petal's axis, 1 between two petals
        wobble = np.take_along_axis(
            self.free[:, 37:53], (which.reshape(len(which), -1) + 3 * layer) % 16, axis=1
        ).reshape(which.shape)
        length = (1 - 0.24 * layer) * (0.9 + 0.1 * wobble)
        wide = np.clip(a / (g["width"] * (1 - g["gap"])), 0, 1)
        outline = length * (
            (1 - wide**2.2) ** g["point"] * 0.75 + 0.25 * (1 - wide) - g["notch"] * np.exp(-((a / 0.22) ** 2))
        )
        cover = self._inside(outline - self.radius) * (layer < g["layers"])
        along = np.clip(self.radius / np.maximum(length, 1e-6), 0, 1)
        colour = g["inner"] + (g["outer"] - g["inner"]) * (along ** g["gradient"])[..., None]
        mark = self._marking(a, along)
        colour = colour + mark[..., None] * (g["marking_colour"] - colour)
        shade = 1 - 0.28 * a**2 - 0.16 * (1 - along) + 0.06 * layer
        return self._over(canvas, colour * shade[..., None], cover)

    def _marking(self, a: Array, along: Array) -> Array:
        """How much of the marking's colour a petal shows: veins, spots, edge or eye."""
        kind, strength = self.genes["marking"], self.genes["marking_strength"]
        drawn: Mapping[int, Callable[[], Array]] = {
            1: lambda: np.clip(np.cos(a * 9.5) * 3 - 1.8, 0, 1) * (along < 0.8),
            2: lambda: np.clip(np.cos(a * 12) * np.cos(along * 26) * 4 - 1.2, 0, 1) * (along > 0.35),
            3: lambda: np.clip((along - 0.78) * 9, 0, 1),
            4: lambda: np.clip((0.48 - along) * 9, 0, 1),
        }
        found = np.zeros_like(a)
        for marking in drawn:
            if (kind == marking).any():
                found = found + (kind == marking) * drawn[marking]()
        return np.asarray(found * strength)

    def _disc(self, canvas: Array) -> Array:
        g = self.genes
        cover = self._inside(g["disc"] - self.radius)
        grain = 1 + g["disc_grain"] * np.cos(self.u * 55) * np.cos(self.v * 55)
        rim = 1 - 0.45 * np.clip(self.radius / g["disc"], 0, 1) ** 3
        return self._over(canvas, g["disc_colour"] * (grain * rim)[..., None], cover)

    def _occluder(self, canvas: Array) -> Array:
        """A leaf or blade in front, from one side, reaching `occlusion` of the radius past the rim."""
        angle = 6.283 * self._free(53)
        side = np.cos(angle) * self.x + np.sin(angle) * self.y
        edge = 0.72 * self.factors["scale"] * (1 - 2 * self.factors["occlusion"])
        bend = 0.12 * np.sin(3 * (np.cos(angle) * self.y - np.sin(angle) * self.x) + 6.283 * self._free(54))
        cover = self._inside(side - edge - bend) * (self.factors["occlusion"] > 0)
        tone = 0.6 + 0.5 * self._free(55)
        return self._over(canvas, self.genes["leaf_colour"] * tone[..., None], cover)

    def _lit(self, canvas: Array) -> Array:
        """Brightness, colour temperature, and light falling off to one side."""
        angle = 6.283 * self._free(56)
        fall = 1 + 0.25 * (np.cos(angle) * self.x + np.sin(angle) * self.y)
        warm = np.stack(
            [1 + self.factors["warmth"], np.ones_like(self.factors["warmth"]), 1 - self.factors["warmth"]], axis=-1
        )
        return np.asarray(canvas * (self.factors["light"] * fall)[..., None] * warm)


def _blurred(image: Array, sigmas: Array) -> Array:
    from scipy.ndimage import gaussian_filter

    return np.stack(
        [gaussian_filter(one, (s, s, 0)) if s > 0.15 else one for one, s in zip(image, sigmas, strict=True)]
    )


def _parse(options: Mapping[str, Any]) -> dict[str, int]:
    values: dict[str, int] = {}
    for name, given in options.items():
        low, high = _BOUNDS[name]
        try:
            values[name] = int(str(given))
        except ValueError:
            raise UsageError(f"data.{name}={given}: expected a whole number from {low} to {high}.") from None
        if not low <= values[name] <= high:
            raise UsageError(f"data.{name}={given}: expected a whole number from {low} to {high}.")
    return values


def load(request: DataRequest) -> Dataset:
    """The dataset with the options asked for, drawn once and cached. Raises `UsageError` for options out of range."""
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
    )
    splits, listing, start = {}, {}, 0
    for split in ("train", "val", "test"):
        part = [(n, i) for name, n, i in plan if name == split]
        labels = np.array([n for n, _ in part], np.int64)
        keys = [f"{split}/{n:03d}/{i:03d}" for n, i in part]
        factors = _factors(_draws(part, split, options["grammar_seed"]))
        splits[split] = Split(Slice(images, start, start + len(part)), labels, keys, factors)
        listing[split] = (keys, labels.tolist())
        start += len(part)
    return Dataset(
        name="petals",
        class_names=[f"family {n // FAMILY + 1} {'abc'[n % FAMILY]}" for n in range(count)],
        fingerprint=key,
        split_checksum=split_checksum({f"{RENDERER} {options['grammar_seed']} {k}": v for k, v in listing.items()}),
        resolution=f"{size}x{size}",
        notes=("drawn by rule, not photographs: use it to compare and to learn, not to predict accuracy on flowers",),
        **splits,
    )


def _rendered(plan: Sequence[tuple[str, int, int]], size: int, grammar_seed: int) -> Iterator[NDArray[np.uint8]]:
    # Batches small enough for the arithmetic to stay in the processor's cache.
    step = max(1, 10 * 64 * 64 // size**2)

    def draw(start: int) -> list[NDArray[np.uint8]]:
        images: list[NDArray[np.uint8]] = []
        chunk = plan[start : start + step]
        for split in dict.fromkeys(name for name, _, _ in chunk):
            chosen = [(n, i) for name, n, i in chunk if name == split]
            images.extend(render([n for n, _ in chosen], split, [i for _, i in chosen], size, grammar_seed)[0])
        return images

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter lock
        for images in pool.map(draw, range(0, len(plan), step)):
            yield from images
