"""petals: flowers drawn by rule, the same everywhere, with nuisance factors that are known and act."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flowers_bench.contract.dataset import DataRequest
from flowers_bench.data import petals
from flowers_bench.util.errors import UsageError

PETALS = {"size": 32, "species": 6, "train": 2, "val": 2, "test": 3, "grammar_seed": 0}


def request(cache: Path, **options: Any) -> DataRequest:
    return DataRequest(cache, None, 64, options)


def drawn(**fixed: float) -> np.ndarray:
    """Four images of one species as int (4, 32, 32, 3), with some factors set."""
    return petals.render([1] * 4, "train", range(4), 32, fixed=fixed)[0].astype(int)


@pytest.fixture
def rendered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images each call of `render` draws."""
    calls: list[int] = []
    original = petals.render

    def counted(numbers: Any, *arguments: Any, **more: Any) -> Any:
        calls.append(len(numbers))
        return original(numbers, *arguments, **more)

    monkeypatch.setattr(petals, "render", counted)
    return calls


def test_petals_repeat_and_do_not_depend_on_how_many(tmp_path: Path) -> None:
    small = petals.load(request(tmp_path / "a", **PETALS))
    large = petals.load(request(tmp_path / "b", **{**PETALS, "train": 4, "species": 7}))
    for index, key in enumerate(small.train.keys):
        other = large.train.keys.index(key)
        assert torch.equal(small.train.images[index], large.train.images[other])
        assert small.train.factors["scale"][index] == large.train.factors["scale"][other]
    assert small.fingerprint != large.fingerprint
    assert small.split_checksum != large.split_checksum


def test_petals_do_not_depend_on_the_images_drawn_beside_them() -> None:
    together, _ = petals.render([3, 9, 3, 40], "val", [0, 4, 7, 2], 32)
    for image, number, index in zip(together, [3, 9, 3, 40], [0, 4, 7, 2], strict=True):
        alone, _ = petals.render([number], "val", [index], 32)
        # Vectorised loops may take their last few elements another way: a rounding step at most.
        assert np.abs(alone[0].astype(int) - image).max() <= 1


def test_petals_splits_and_shapes(tmp_path: Path) -> None:
    found = petals.load(request(tmp_path, **PETALS))
    assert (len(found.train), len(found.val), len(found.test), found.num_classes) == (12, 12, 18, 6)
    assert found.train.labels.tolist() == [n for n in range(6) for _ in range(2)]
    assert found.train.images[0].shape == (3, 32, 32)
    pixels = [found.train.images[0].float(), found.val.images[0].float(), found.test.images[0].float()]
    assert (pixels[0] - pixels[1]).abs().mean() > 1
    assert (pixels[1] - pixels[2]).abs().mean() > 1


def test_petals_pixels_are_pinned() -> None:
    """Stored results name the renderer: a change of its pixels must come with a new RENDERER."""
    images, factors = petals.render([0, 50, 101], "test", [0, 1, 2], 64)
    assert petals.RENDERER == "petals-2"
    assert images.mean((1, 2, 3)).tolist() == pytest.approx(PINNED_MEANS, abs=0.5)
    assert images[:, 20, 30].astype(int) == pytest.approx(np.array(PINNED_PIXELS), abs=3)
    assert factors["scale"].tolist() == pytest.approx(PINNED_SCALES, abs=1e-4)


PINNED_MEANS = [63.74, 49.96, 96.01]
PINNED_PIXELS = [[132, 97, 53], [46, 69, 46], [195, 188, 197]]
PINNED_SCALES = [1.04277, 1.04039, 0.93986]


@pytest.mark.parametrize("grammar_seed", [0, 1, 15])
def test_twins_share_genes_with_their_family_but_do_not_look_alike(grammar_seed: int) -> None:
    for family in range(34):
        members = [petals.species(3 * family + twin, grammar_seed) for twin in range(3)]
        portraits = [petals.portrait(member, 32).astype(int) for member in members]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            genes = vars(members[a]), vars(members[b])
            differing = [k for k in genes[0] if genes[0][k] != genes[1][k]]
            # A change of hue shows in three genes, so two changes each may differ in up to six.
            assert 1 <= len(differing) <= 6, (family, differing)
            assert np.abs(portraits[a] - portraits[b]).mean() > 0.15, (family, differing)


def test_families_differ_more_than_twins() -> None:
    portraits = np.stack([petals.portrait(petals.species(n), 32) for n in range(102)]).astype(float)
    apart = np.abs(portraits[:, None] - portraits[None]).mean((2, 3, 4))
    family = np.arange(102) // 3
    same = (family[:, None] == family) & ~np.eye(102, dtype=bool)
    assert 2 * np.median(apart[same]) < np.median(apart[family[:, None] != family])


def test_another_grammar_gives_other_species() -> None:
    assert petals.species(5, 0) != petals.species(5, 1)


@pytest.mark.parametrize("factor", sorted(petals.FACTORS))
def test_factors_have_their_range_and_act(factor: str) -> None:
    _, factors = petals.render([1] * 64, "train", range(64), 16)
    low, high = petals.FACTORS[factor]
    assert low - 1e-6 <= factors[factor].min()
    assert factors[factor].max() <= high + 1e-6
    assert factors[factor].std() > 0.1 * (high - low)
    # An axis matters only where there is a tilt.
    others = {"perspective": 0.8} if factor == "perspective_axis" else {}
    assert np.abs(drawn(**{**others, factor: low * 0.5}) - drawn(**{**others, factor: high})).mean() > 0.3


def test_rotation_rotates() -> None:
    portrait = {**petals.PORTRAIT, "rotation": 0.0}
    # The middle of the flower: the ground and the light do not turn with it.
    upright = drawn(**portrait)[:, 11:21, 11:21]
    # The image's second axis points down: a positive angle turns clockwise.
    turned = drawn(**{**portrait, "rotation": np.pi / 2})[:, 11:21, 11:21]
    same_way = np.abs(np.rot90(upright, -1, axes=(1, 2)) - turned).mean()
    assert same_way < 0.5 * np.abs(upright - turned).mean()
    assert same_way < 0.5 * np.abs(np.rot90(upright, 1, axes=(1, 2)) - turned).mean()


def test_scale_and_perspective_change_the_flowers_area() -> None:
    def area(**fixed: float) -> float:
        """Pixels that change when the flower is taken out of sight."""
        return float((np.abs(drawn(**fixed) - drawn(**fixed, shift_x=9.0)).max(-1) > 12).mean())

    portrait = {name: value for name, value in petals.PORTRAIT.items() if name != "shift_x"}
    whole = area(**portrait)
    assert area(**{**portrait, "scale": 0.7}) == pytest.approx(whole * 0.49, rel=0.25)
    assert area(**{**portrait, "perspective": 1.05}) == pytest.approx(whole * np.cos(1.05), rel=0.25)


def test_nothing_folds_over() -> None:
    """Bending and tilting are one to one, at their strongest, wherever the flower is."""
    draws = petals._draws([2] * 100, "train", range(100), 0)
    factors = petals._factors(draws)
    factors["elastic"][:] = petals.FACTORS["elastic"][1]
    genes = petals._stack([petals.species(2)] * 100)
    scene = petals._Scene(genes, factors, draws[:, len(petals.FACTORS) :], 96)
    (uy, ux), (vy, vx) = (np.gradient(field, axis=(1, 2)) for field in (scene.u, scene.v))
    assert (ux * vy - uy * vx)[scene.radius < 1.1].min() > 0


def test_any_size_is_the_same_picture() -> None:
    small, _ = petals.render([7], "test", [0], 32, fixed={"blur": 0.0})
    large, _ = petals.render([7], "test", [0], 128, fixed={"blur": 0.0})
    shrunk = large.reshape(1, 32, 4, 32, 4, 3).mean((2, 4))
    assert np.abs(shrunk - small).mean() < 6


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    options=st.fixed_dictionaries(
        {
            "size": st.integers(16, 40),
            "species": st.integers(2, 8),
            "train": st.integers(1, 3),
            "val": st.integers(1, 3),
            "test": st.integers(1, 3),
            "grammar_seed": st.integers(0, 2**31),
        }
    ),
    as_text=st.booleans(),
)
def test_any_options_within_bounds_give_a_whole_dataset(tmp_path: Path, options: dict[str, int], as_text: bool) -> None:
    found = petals.load(request(tmp_path, **{k: str(v) if as_text else v for k, v in options.items()}))
    assert found.num_classes == options["species"]
    assert len({*found.train.keys, *found.val.keys, *found.test.keys}) == sum(
        len(split) for split in (found.train, found.val, found.test)
    )
    for name in ("train", "val", "test"):
        split = getattr(found, name)
        assert len(split) == len(split.images) == len(split.labels) == options[name] * options["species"]
        assert split.images[len(split) - 1].shape == (3, options["size"], options["size"])
        assert set(split.factors) == set(petals.FACTORS)
        assert all(values.shape == (len(split),) for values in split.factors.values())


@pytest.mark.parametrize("option", sorted(PETALS))
def test_every_option_is_part_of_the_fingerprint(tmp_path: Path, option: str) -> None:
    other = {**PETALS, option: PETALS[option] + 1}
    assert petals.load(request(tmp_path, **PETALS)).fingerprint != petals.load(request(tmp_path, **other)).fingerprint


def test_petals_are_drawn_once_each_and_then_read(tmp_path: Path, rendered: list[int]) -> None:
    first = petals.load(request(tmp_path, **PETALS))
    assert sum(rendered) == 6 * (2 + 2 + 3)
    again = petals.load(request(tmp_path, **PETALS))
    assert sum(rendered) == 6 * (2 + 2 + 3)
    assert first.fingerprint == again.fingerprint
    assert torch.equal(first.test.images[17], again.test.images[17])


def test_petals_are_drawn_once_by_those_who_ask_at_once(tmp_path: Path, rendered: list[int]) -> None:
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: petals.load(request(tmp_path, **PETALS)), range(3)))
    assert sum(rendered) == 6 * (2 + 2 + 3)
    assert all(torch.equal(found[0].val.images[5], other.val.images[5]) for other in found)


@pytest.mark.parametrize(
    ("name", "value"), [("size", "1"), ("size", "x"), ("species", "1"), ("train", "0"), ("test", "1.5")]
)
def test_petals_refuses(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(
        UsageError, match=rf"data\.{name}={value}: (expected a whole number|must be) between \d+ and \d+"
    ):
        petals.load(request(tmp_path, **{**PETALS, name: value}))
    assert not list(tmp_path.iterdir())


def test_unknown_names_are_refused_with_the_valid_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'species'.*grammar_seed"):
        petals.load(request(tmp_path, **PETALS, specie=3))
    with pytest.raises(UsageError, match=r"Did you mean 'scale'.*rotation"):
        petals.render([0], "train", [0], 16, fixed={"scales": 1.0})


def test_contact_sheet() -> None:
    assert petals.sheet(families=2, size=16).shape == (32, 12 * 16, 3)
