"""Images of more than 8 bits: what their headers say, and one rule for those that say nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoded import chunk, decoded, pgm, png16, saved, tiff
from PIL import Image

from flowers_bench.contract.dataset import DataRequest, Dataset
from flowers_bench.data import folder
from flowers_bench.data.decode import decode_images, image_facts
from flowers_bench.data.levels import FLOAT, INTEGER, Scale, scales_from, scales_of
from flowers_bench.store.records import DatasetFacts, GreyLevels
from flowers_bench.util.errors import UsageError

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
Values = Callable[[float], np.ndarray]


def up_to(highest: float, kind: type = np.float32) -> np.ndarray:
    """A ramp from 0 to `highest`."""
    return (RAMP * highest).round(0 if np.issubdtype(kind, np.integer) else 12).astype(kind)


def together(tmp_path: Path, contents: Sequence[bytes]) -> list[np.ndarray]:
    """Red of each image, decoded as one dataset."""
    paths = [tmp_path / f"{number}.img" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return [pixels[..., 0] for pixels in decode_images(paths, 1000)]


@pytest.mark.parametrize(
    "content",
    [
        *(tiff(up_to(highest)) for highest in (1, 1.0001, 1.02, 3.7, 100, 250, 255, 255.4, 5000, 65535, 1e6, 1e-3)),
        tiff(np.where(RAMP == 1, np.inf, RAMP).astype(np.float32)),
        tiff(np.where(RAMP == 0, -np.inf, RAMP).astype(np.float32)),
        tiff(np.where(RAMP == 0, np.nan, RAMP).astype(np.float32)),
        tiff((RAMP - 0.5).astype(np.float32)),
        *(tiff(up_to(highest, np.uint16)) for highest in (1023, 4095, 16383, 65535, 3900, 64000)),
        *(png16(up_to(highest, np.uint16)) for highest in (1023, 4095, 65535, 3900)),
        tiff(up_to(2000, np.int16) - 1000),
        *(tiff(up_to(highest, np.int32)) for highest in (255, 4095, 65535, 10**6)),
        tiff(up_to(2.0**32 - 1, np.uint32)),
        pgm(up_to(1000, np.uint16), 1000),
        pgm(up_to(100, np.uint8), 100),
        pgm(up_to(65535, np.uint16), 65535),
        b"Pf\n16 16\n-1.0\n" + up_to(1.02)[::-1].tobytes(),
    ],
)  # fmt: skip
def test_a_ramp_is_a_ramp_whatever_its_numbers_are(tmp_path: Path, content: bytes) -> None:
    pixels = decoded(tmp_path, content)
    np.testing.assert_allclose(pixels[..., 0].astype(int), GREY, atol=13)
    assert abs(pixels.mean() - 127.5) < 7


def test_values_that_are_not_finite_are_black_or_white_and_move_no_other(tmp_path: Path) -> None:
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    pixels = decoded(tmp_path, tiff(values))[..., 0]
    assert pixels[0, :3].tolist() == [0, 255, 0]
    np.testing.assert_array_equal(pixels.ravel()[3:], GREY.ravel()[3:])
    assert not decoded(tmp_path, tiff(np.full((4, 4), np.nan, np.float32))).any()


@pytest.mark.parametrize("highest", [65535, 4095, 300])
def test_a_dark_pgm_stays_dark(tmp_path: Path, highest: int) -> None:
    pixels = decoded(tmp_path, pgm(np.full((4, 4), highest // 100, np.uint16), highest))
    assert pixels.max() == round(highest // 100 / highest * 255)


@pytest.mark.parametrize("make", [tiff, png16, lambda values: tiff(values.astype(np.float32))])
def test_a_dark_image_stays_dark_among_bright_ones(tmp_path: Path, make: Callable[[np.ndarray], bytes]) -> None:
    dark, bright = together(tmp_path, [make(np.full((4, 4), 200, np.uint16)), make(up_to(4095, np.uint16))])
    assert dark.max() == round(200 / 4095 * 255)
    np.testing.assert_array_equal(bright, GREY)


def test_images_of_8_and_16_bits_do_not_change_each_other(tmp_path: Path) -> None:
    content = [saved(Image.fromarray(GREY), "PNG"), png16(up_to(4095, np.uint16)), saved(Image.fromarray(GREY), "TIFF")]
    for pixels in together(tmp_path, content):
        np.testing.assert_array_equal(pixels, GREY)


def test_floating_point_numbers_and_integers_have_rules_of_their_own(tmp_path: Path) -> None:
    for pixels in together(tmp_path, [tiff(up_to(1.0)), tiff(up_to(4095, np.uint16)), pgm(up_to(999, np.uint16), 999)]):
        np.testing.assert_allclose(pixels.astype(int), GREY, atol=1)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (tiff(np.full((4, 4), 500, np.uint16), t341=1000), 128),
        (tiff(np.full((4, 4), 500, np.uint16), t340=400, t341=600), 128),
        (tiff(np.full((4, 4), 0.5, np.float32), t341=2.0), 64),
        (tiff(np.full((4, 4), 0.5, np.float32), t340=-1.0, t341=1.0), 191),
        (tiff(np.full((4, 4), 60000, np.uint16), t341=65535, t262=0), round(255 * (1 - 60000 / 65535))),
        (tiff(np.full((4, 4), 0.25, np.float32), t341=1.0, t262=0), 191),
        (tiff(np.full((4, 4), 50, np.uint8), t262=0), 205),
        (png16(np.full((4, 4), 2048, np.uint16), chunk(b"sBIT", b"\x0c")), 128),  # the lower 12 bits
        (png16(np.full((4, 4), 2048 << 4, np.uint16), chunk(b"sBIT", b"\x0c")), 128),  # the upper 12 bits
        (tiff(np.full((4, 4), 500, np.uint16), t340=9, t341=9), 255),  # says nothing: what it holds counts
    ],
)
def test_what_the_header_says_counts(tmp_path: Path, content: bytes, expected: int) -> None:
    assert abs(int(decoded(tmp_path, content)[0, 0, 0]) - expected) <= 1


def test_what_one_header_says_and_others_show_is_one_rule(tmp_path: Path) -> None:
    said, shown = together(
        tmp_path, [tiff(np.full((4, 4), 1000, np.uint16), t341=2000), tiff(np.full((4, 4), 3000, np.uint16))]
    )
    assert (said.max(), shown.max()) == (round(1000 / 4095 * 255), round(3000 / 4095 * 255))


def test_tiff_of_12_bits(tmp_path: Path) -> None:
    values = np.array([[0, 4095], [2048, 1024]], np.uint16)
    packed = b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in values.tolist())
    content = tiff(np.frombuffer(packed, np.uint8).reshape(2, 3), t256=2, t258=12)
    np.testing.assert_array_equal(decoded(tmp_path, content)[..., 0], [[0, 255], [128, 64]])


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_keep_their_upper_bytes(tmp_path: Path, channels: int) -> None:
    values = np.repeat(up_to(65535, np.uint16)[..., None], channels, axis=2)
    values[..., 3:] = 65535
    np.testing.assert_array_equal(decoded(tmp_path, png16(values))[..., 0], (values[..., 0] >> 8))


def test_colours_of_12_bits_in_16_are_not_black(tmp_path: Path) -> None:
    values = np.repeat(up_to(4095, np.uint16)[..., None], 3, axis=2)
    pixels = decoded(tmp_path, png16(values))
    np.testing.assert_allclose(pixels[..., 0].astype(int), GREY, atol=17)  # of 16 shades


def test_transparent_grey_of_16_bits_lies_on_white(tmp_path: Path) -> None:
    pixels = decoded(tmp_path, png16(up_to(65535, np.uint16), chunk(b"tRNS", b"\0\0")))
    assert pixels[0, 0, 0] == 255
    np.testing.assert_array_equal(pixels[..., 0].ravel()[1:], GREY.ravel()[1:])


@pytest.mark.parametrize("content", [tiff(up_to(1.0)), tiff(up_to(9, np.int32)), tiff(up_to(9, np.int16))])
def test_without_a_rule_and_a_range_an_image_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UsageError, match=r"image\.jpg .*nothing says which of them is white: convert it to 8 bits"):
        decoded(tmp_path, content, scales={})


def test_without_a_rule_the_formats_range_counts(tmp_path: Path) -> None:
    assert decoded(tmp_path, png16(np.full((4, 4), 32768, np.uint16)), scales={})[0, 0, 0] == 128


def test_a_rule_given_is_the_rule(tmp_path: Path) -> None:
    scales = {INTEGER: Scale(100, 300), FLOAT: Scale(-1, 1)}
    assert decoded(tmp_path, png16(np.full((4, 4), 200, np.uint16)), scales=scales)[0, 0, 0] == 128
    assert decoded(tmp_path, tiff(np.zeros((4, 4), np.float32)), scales=scales)[0, 0, 0] == 128


def test_ordinary_and_damaged_images_have_no_levels() -> None:
    for content in (saved(Image.fromarray(GREY), "PNG"), saved(Image.fromarray(GREY), "JPEG"), b"", b"MM\0*", b"P5 9"):
        assert image_facts(content).levels is None
    assert scales_of([]) == {}


FACTS = DatasetFacts(
    name="deep",
    classes=2,
    n_train=2,
    n_val=2,
    n_test=2,
    fingerprint="0" * 64,
    split_checksum="0" * 64,
    resolution="8 px",
    notes=[],
)


@pytest.mark.parametrize(
    "damaged", [{"float": 3}, {"float": [0, "x"]}, {"float": [1, 1]}, {"float": [0, float("nan")]}, {"float": [0]}]
)
def test_stored_rules_that_are_damaged_are_refused(damaged: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="the trial's grey_levels are damaged"):
        scales_from(replace(FACTS, grey_levels=GreyLevels.read(damaged)))


# Of a whole dataset


@pytest.fixture
def load(tmp_path: Path) -> Callable[[Path], Dataset]:
    options = {"val": 0.2, "test": 0.2, "split_seed": 0}
    return lambda root: folder.load(DataRequest(tmp_path / "cache", root, 8, options))


def write(root: Path, contents: Sequence[bytes]) -> Path:
    for number, content in enumerate(contents):
        for name in ("rose", "tulip"):
            (root / name).mkdir(parents=True, exist_ok=True)
            (root / name / f"{number}.img.tif").write_bytes(content + name.encode())  # two contents, one picture
    return root


def test_what_was_done_is_said_and_stands_on_results(tmp_path: Path, load: Callable[[Path], Dataset]) -> None:
    root = write(
        tmp_path / "deep",
        [
            *(tiff(up_to(highest)) for highest in (0.5, 0.9, 1.02)),
            tiff(np.where(RAMP == 1, np.inf, RAMP).astype(np.float32)),
            *(tiff(up_to(highest, np.uint16)) for highest in (900, 3987)),
            pgm(up_to(999, np.uint16), 999),
            png16(np.repeat(up_to(65535, np.uint16)[..., None], 3, axis=2)),
        ],
    )
    found = load(root)
    assert found.grey_levels == {"integer": (0, 4095), "float": (0, 1)}
    assert found.facts()["grey_levels"] == {"integer": [0, 4095], "float": [0, 1]}
    assert scales_from(DatasetFacts.read(found.facts())) == {INTEGER: Scale(0, 4095), FLOAT: Scale(0, 1)}
    assert found.notes[1:] == (
        "4 images with grey levels of more than 8 bits: 0 is black and 4095 is white (their values lie between 0 and 3987)",
        "8 images of floating-point numbers: 0 is black and 1 is white (their values lie between 0 and 1.02)",
        "2 of these have values that are not finite: NaN and -inf are black, inf is white",
        "2 images with colours of 16 bits, of which the upper 8 are read: 0 is black and 65535 is white (their values lie between 0 and 65535)",
        "2 images with grey levels of more than 8 bits, each scaled as its own header says",
    )  # fmt: skip
    assert load(root).notes == found.notes  # remembered


def test_another_rule_is_another_dataset_and_another_cache(tmp_path: Path, load: Callable[[Path], Dataset]) -> None:
    root = write(tmp_path / "deep", [tiff(np.full((9, 9), value, np.uint16)) for value in (100, 200, 300, 400)])
    before = load(root)
    assert before.train.images[0].max() < 255
    (root / "rose/9.tif").write_bytes(tiff(up_to(60000, np.uint16)))
    after = load(root)
    index = before.train.keys[0]
    assert after.grey_levels != before.grey_levels
    place = {key: (part, i) for part in (after.train, after.val, after.test) for i, key in enumerate(part.keys)}
    part, i = place[index]
    assert part.images[i].max() < before.train.images[0].max()


def test_ordinary_images_have_no_rule_and_no_note(
    tmp_path: Path, load: Callable[[Path], Dataset], write_image: Callable[..., Path]
) -> None:
    for number in range(12):
        write_image(tmp_path / "plain" / "ab"[number % 2] / f"{number}.png", number)
    found = load(tmp_path / "plain")
    assert found.grey_levels == {}
    assert "grey_levels" not in found.facts()
    assert len(found.notes) == 1  # the split
