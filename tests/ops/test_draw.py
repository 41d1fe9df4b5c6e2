"""The operator `draw`: bit for bit what plain loops over whole numbers give, and torchvision's result to within two levels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from math import floor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional

from flowers_bench.contract.drawing import ImageParameters
from flowers_bench.ops import _build, _draw, draw
from flowers_bench_plugins.common import saturations

SAME = [2048, 0, 0, 0, 2048, 0, 0, 0, 2048, 0, 0, 0, 0]


# ---- A definition in fractions and loops ----


def nearest(value: Fraction) -> int:
    return floor(value + Fraction(1, 2))


def weights(size: int, side: int, at: int) -> dict[int, int]:
    """Weights of the pixels of a line in one output pixel: a triangle as wide as a pixel of the coarser line, in parts of 2^14.
    Rounded are the sums up to each pixel."""
    scale = Fraction(size, side)
    centre, reach = (at + Fraction(1, 2)) * scale, max(scale, Fraction(1))
    raw = {j: 1 - abs(j + Fraction(1, 2) - centre) / reach for j in range(size)}
    raw = {j: value for j, value in raw.items() if value > 0}
    total, sum_, found = sum(raw.values()), Fraction(0), {}
    for j, value in raw.items():
        found[j] = nearest((sum_ + value) / total * 2**14) - nearest(sum_ / total * 2**14)
        sum_ += value
    assert sum(found.values()) == 2**14
    return found


def resized(lines: np.ndarray, side: int) -> np.ndarray:
    """Resize along the first axis, to whole numbers."""
    rows = []
    for at in range(side):
        total = sum(weight * lines[j] for j, weight in weights(len(lines), side, at).items())
        rows.append((total + 2**13) >> 14)
    return np.array(rows)


def expected(image: np.ndarray, row: list[int], side: int) -> np.ndarray:
    """One image (H, W, 3) drawn by a row of the operator's parameters: (side, side, 3)."""
    top, left, height, width, mirrored = row[:5]
    cut = image[top : top + height, left : left + width].astype(object)
    pixels = resized(resized(cut, side).transpose(1, 0, 2), side).transpose(1, 0, 2)
    if mirrored:
        pixels = pixels[:, ::-1]
    sums = pixels.reshape(-1, 3).sum(0)
    mean = nearest(Fraction(19595 * sums[0] + 38470 * sums[1] + 7471 * sums[2], side * side))
    grey = nearest(Fraction(mean * row[17], 2**16))
    found = np.empty((side, side, 3), np.uint8)
    for y, x, c in np.ndindex(found.shape):
        factors = row[5 + 3 * c : 8 + 3 * c]
        level = sum(f * v for f, v in zip(factors, pixels[y, x], strict=True)) + row[14 + c] + grey
        found[y, x, c] = min(255, max(0, nearest(Fraction(level, 2**11))))
    return found


def drawn(image: np.ndarray, row: list[int], side: int) -> np.ndarray:
    operators = _build.draw_operators("cpu") or pytest.skip("there is no compiled operator here")
    given = torch.from_numpy(image).permute(2, 0, 1)
    found: Tensor = operators.draw([given], torch.tensor([row], dtype=torch.int32), side)
    assert found.is_contiguous(memory_format=torch.channels_last)
    return found[0].permute(1, 2, 0).numpy()


def by_torch(image: np.ndarray, row: list[int], side: int) -> np.ndarray:
    rows = np.array([row], np.int32)
    return _draw.draw_reference([torch.from_numpy(image).permute(2, 0, 1)], rows, side)[0].permute(1, 2, 0).numpy()


#: Corners: single pixels, much larger and much smaller, lines, and sides around those that are computed at once.
CASES = [(1, 1, 1), (1, 1, 9), (1, 1, 8), (3, 2, 16), (1, 40, 5), (40, 1, 5), (1, 90, 17), (90, 2, 8), (61, 47, 1), (31, 27, 10), (12, 12, 12)]  # fmt: skip


def rows_for(random: np.random.Generator, height: int, width: int) -> list[int]:
    """Draw any parameters for an image of that size."""
    box_height, box_width = (int(random.integers(1, size + 1)) for size in (height, width))
    top, left = int(random.integers(height - box_height + 1)), int(random.integers(width - box_width + 1))
    box = [top, left, box_height, box_width, int(random.integers(2))]
    if random.random() < 0.3:
        return box + SAME
    factors, added = random.integers(-(2**15) + 1, 2**15, 9), random.integers(-(2**19), 2**19, 3)
    usual = random.random() < 0.5
    if usual:
        factors = np.array([2048, 0, 0, 0, 2048, 0, 0, 0, 2048]) + random.integers(-600, 600, 9)
    return box + factors.tolist() + (added // (8 if usual else 1)).tolist() + [int(random.integers(-4096, 4096))]


@pytest.mark.parametrize("compute", [drawn, by_torch])
@pytest.mark.parametrize(("height", "width", "side"), CASES)
def test_it_is_what_plain_loops_give(height: int, width: int, side: int, compute: object) -> None:
    random = np.random.default_rng(height * 1000 + width)
    image = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
    for row in ([0, 0, height, width, 0, *SAME], [0, 0, height, width, 1, *SAME], rows_for(random, height, width)):
        assert np.array_equal(compute(image, row, side), expected(image, row, side)), row  # type: ignore[operator]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 35), st.integers(0, 2**32))
def test_every_box_flip_and_colour_of_any_size(height: int, width: int, side: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    image = random.choice([0, 255, 128, 77], (height, width, 3)).astype(np.uint8)
    row = rows_for(random, height, width)
    found = drawn(image, row, side)
    assert np.array_equal(found, by_torch(image, row, side))
    if side <= 6:
        assert np.array_equal(found, expected(image, row, side))


def photographs() -> Iterator[Tensor]:
    """Smooth images with edges and noise, (3, H, W)."""
    random = np.random.default_rng(0)
    for height, width in ((256, 340), (300, 256), (64, 64), (97, 31)):
        y, x = np.mgrid[:height, :width] / 40
        levels = np.stack([np.sin(x * k + y) + np.sign(np.sin(y * 3 - x * k)) for k in (1, 2, 3)], -1)
        noisy = 128 + 55 * levels + random.normal(0, 12, levels.shape)
        yield torch.from_numpy(noisy.clip(0, 255).astype(np.uint8)).permute(2, 0, 1)


@pytest.mark.parametrize("side", [224, 96, 33])
def test_it_is_torchvisions_resized_crop_and_flip_to_a_level(side: int) -> None:
    random = np.random.default_rng(1)
    for image in photographs():
        for _ in range(4):
            row = rows_for(random, *image.shape[1:])[:5]
            theirs = functional.resized_crop(image, *row[:4], [side, side], antialias=True)
            theirs = functional.horizontal_flip(theirs) if row[4] else theirs
            ours = draw([image], ImageParameters(np.array([row[:4]]), np.array([row[4] == 1])), side)[0]
            assert int((ours.int() - theirs.int()).abs().max()) <= 1


def test_its_colours_are_torchvisions_to_a_level_where_these_clamp_nothing() -> None:
    """Of floats, since torchvision cuts the fractions of uint8 off three times."""
    random = np.random.default_rng(2)
    for image in photographs():
        side = min(image.shape[1:])
        calm = (image[:, :side, :side].float() * 0.4 + 70).to(torch.uint8)
        brightness, contrast, saturation = random.uniform(0.85, 1.15, 3)
        theirs = functional.adjust_brightness(calm.float() / 255, brightness)
        theirs = functional.adjust_saturation(functional.adjust_contrast(theirs, contrast), saturation) * 255
        matrix = brightness * contrast * saturations(np.array([saturation]))
        box, share = np.array([[0, 0, side, side]]), np.array([(1 - contrast) * brightness])
        ours = draw([calm], ImageParameters(box, np.array([False]), matrix, of_mean=share), side)[0]
        assert float((ours.float() - theirs).abs().max()) <= 1


def batch() -> tuple[list[Tensor], ImageParameters]:
    random, images = np.random.default_rng(3), list(photographs()) * 3
    rows = np.array([rows_for(random, *image.shape[1:])[:5] for image in images])
    count = len(images)
    matrix, share = random.uniform(-1, 2, (count, 3, 3)), random.uniform(-1, 1, count)
    return images, ImageParameters(rows[:, :4], rows[:, 4] > 0, matrix, random.uniform(-9, 9, (count, 3)), share)


def test_threads_and_neighbours_change_no_bit() -> None:
    images, parameters = batch()
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(draw(images, parameters, 61))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    alone = [
        draw([image], ImageParameters(*(getattr(parameters, name)[i : i + 1] for name in FIELDS)), 61)[0]
        for i, image in enumerate(images)
    ]
    assert torch.equal(torch.stack(alone), found[0])


FIELDS = ("boxes", "mirrored", "matrix", "added", "of_mean")


def digests() -> list[str]:
    images, parameters = batch()
    return [hashlib.sha256(draw(images, parameters, side).numpy().tobytes()).hexdigest() for side in (61, 224, 7)]


@pytest.mark.parametrize("kernel", ["generic", "reference"])
def test_other_instructions_give_the_same_bits(kernel: str) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import test_draw; print(*test_draw.digests())"
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        capture_output=True, text=True, check=True, env={**os.environ, "FLOWERS_BENCH_KERNEL": kernel},
    )  # fmt: skip
    assert done.stdout.split() == digests()


def test_any_layout_is_taken() -> None:
    image = next(photographs())
    parameters = ImageParameters(np.array([[3, 4, 100, 90]]), np.array([True]))
    layouts = (image, image.contiguous(), image.permute(0, 2, 1).contiguous().permute(0, 2, 1), image.flip(2).flip(2))
    first, *others = (draw([layout], parameters, 50) for layout in layouts)
    assert all(torch.equal(first, other) for other in others)
    view = torch.cat([image, image], 2)[:, :, 340:]
    assert torch.equal(first, draw([view], parameters, 50))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"boxes": np.array([[0, 0, 65, 64]])}, "does not lie in its image"),
        ({"boxes": np.array([[-1, 0, 5, 5]])}, "does not lie in its image"),
        ({"boxes": np.array([[0, 0, 0, 5]])}, "does not lie in its image"),
        ({"matrix": np.full((1, 3, 3), 16.0)}, "must be between"),
        ({"of_mean": np.array([np.nan])}, "must be between"),
        ({"image": torch.zeros(3, 64, 64)}, "expected an image uint8"),
        ({"image": torch.zeros(1, 64, 64, dtype=torch.uint8)}, "expected an image uint8"),
        ({"side": 0}, "side 0"),
    ],
)
def test_what_it_cannot_draw_is_refused(change: dict[str, object], words: str) -> None:
    usual = {"boxes": np.array([[0, 0, 64, 64]]), "mirrored": np.array([False])}
    parameters = ImageParameters(**{**usual, **{k: v for k, v in change.items() if k not in ("image", "side")}})  # type: ignore[arg-type]
    image = change.get("image", torch.zeros(3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=words):
        draw([image], parameters, change.get("side", 32))  # type: ignore[list-item, arg-type]


def test_torch_finds_its_schema_true() -> None:
    operators = _build.draw_operators("cpu") or pytest.skip("there is no compiled operator here")
    images, parameters = batch()
    given = ([_draw._interleaved(image) for image in images], torch.from_numpy(_draw._packed(parameters, 12)), 20)
    torch.library.opcheck(operators.draw.default, given, test_utils=("test_schema", "test_autograd_registration"))


def test_nothing_is_drawn_of_no_images() -> None:
    nothing = ImageParameters(np.empty((0, 4), np.int64), np.empty(0, bool))
    assert draw([], nothing, 16).shape == (0, 3, 16, 16)
