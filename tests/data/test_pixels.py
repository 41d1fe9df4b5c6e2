"""The crop that a model sees: as ever of ordinary images, to the bit; of very long ones without resizing all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from flowers_bench.data import pixels
from flowers_bench.data.pixels import LONGEST, Augmented, Normalizer, evaluation_transform, middle, stored_side


def image(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height * 100003 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def resized_whole(given: torch.Tensor, size: int) -> torch.Tensor:
    """The crop by its definition: the whole image resized, then its centre."""
    return functional.center_crop(functional.resize(given, [stored_side(size)], antialias=True), [size, size])


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 80), st.floats(1.02, LONGEST), st.booleans(), st.sampled_from([16, 64, 224]))
def test_ordinary_images_are_cropped_as_ever(short: int, ratio: float, tall: bool, size: int) -> None:
    sides = short, min(int(short * ratio) + 1, LONGEST * short)
    given = image(*(sides[::-1] if tall else sides))
    assert torch.equal(evaluation_transform(size)(given), resized_whole(given, size))


@pytest.mark.parametrize("tall", [False, True])
@pytest.mark.parametrize(("short", "long"), [(20, 1000), (20, 1001), (7, 300), (40, 4001), (300, 6001)])
def test_long_images_are_cropped_nearly_as_if_resized_whole(short: int, long: int, tall: bool) -> None:
    # Smooth, so that half a pixel more or less to one side does not matter.
    coarse = torch.rand(3, 2, long // short, generator=torch.Generator().manual_seed(long)) * 255
    smooth = functional.resize(coarse.to(torch.uint8), [short, long], antialias=True)
    given = smooth.transpose(-1, -2).contiguous() if tall else smooth
    found, expected = evaluation_transform(64)(given), resized_whole(given, 64)
    assert found.shape == (3, 64, 64)
    assert (found.int() - expected.int()).abs().max() <= 4


@pytest.mark.parametrize("sides", [(1, 10_000), (10_000, 1), (1, 9_999), (3, 200_000)])
def test_a_line_takes_no_more_than_a_picture(monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]) -> None:
    made: list[int] = []
    resize = functional.resize

    def watched(*arguments: object, **named: object) -> torch.Tensor:
        found = resize(*arguments, **named)
        made.append(found.numel())
        return found

    monkeypatch.setattr(pixels.functional, "resize", watched)
    assert evaluation_transform(224)(image(*sides)).shape == (3, 224, 224)
    monkeypatch.undo()
    assert max(made) <= 3 * 256 * 256 * (LONGEST + 1)
    assert Augmented([image(*sides)], v2.Resize(256))[0].numel() <= 3 * 256 * 256 * (LONGEST + 1)  # type: ignore[arg-type]


@given(st.integers(1, 9), st.integers(1, 400))
def test_as_much_is_cut_from_either_side(short: int, long: int) -> None:
    whole = torch.arange(long).expand(3, short, long)
    kept = middle(whole)[0, 0]
    assert kept[0] == long - 1 - kept[-1]
    assert len(kept) == long or LONGEST * min(short, long) <= len(kept) <= LONGEST * min(short, long) + 1


def test_training_crops_of_long_images_are_as_ever() -> None:
    """The usual crop takes the middle of such an image anyway."""
    given = image(5, 4001)
    crop = v2.RandomResizedCrop(32, scale=(0.35, 1.0), antialias=True)
    torch.manual_seed(0)
    expected = crop(given)
    torch.manual_seed(0)
    assert torch.equal(Augmented([given], crop)[0], expected)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(5, 3, 7, 9), (1, 3, 1, 1), (2, 3, 8, 1), (0, 3, 4, 4)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_normalising_is_the_formula_to_the_bit_and_channels_last(
    shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8).contiguous(memory_format=layout)
    normalize = Normalizer((0.4, 0.5, 0.3), (0.2, 0.1, 0.3), torch.device("cpu"))
    found = normalize(images)
    assert torch.equal(found, (images.float() - normalize.mean) * normalize.scale)
    assert found.is_contiguous(memory_format=torch.channels_last)
