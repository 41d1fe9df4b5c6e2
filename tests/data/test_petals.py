"""petals: flowers drawn by rule, the same everywhere, with nuisance factors that are known and act."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flowers_bench.data import petals
from flowers_bench.data.dataset import DataRequest
from flowers_bench.errors import UsageError

PETALS = {"size": 32, "species": 6, "train": 2, "val": 2, "test": 3, "grammar_seed": 0}
FOLDER = {"val": 0.2, "test": 0.2, "split_seed": 0}


def request(cache: Path, path: Path | None = None, **options: Any) -> DataRequest:
    return DataRequest(cache, path, 64, options)


def test_petals_repeat_and_do_not_depend_on_how_many(tmp_path: Path) -> None:
    small = petals.load(request(tmp_path / "a", **PETALS))
    large = petals.load(request(tmp_path / "b", **{**PETALS, "train": 4, "species": 7}))
    for index, key in enumerate(small.train.keys):
        other = large.train.keys.index(key)
        assert torch.equal(small.train.images[index], large.train.images[other])
        assert small.train.factors["scale"][index] == large.train.factors["scale"][other]
    assert small.fingerprint != large.fingerprint
    assert small.split_checksum != large.split_checksum


def test_petals_splits_and_shapes(tmp_path: Path) -> None:
    found = petals.load(request(tmp_path, **PETALS))
    assert (len(found.train), len(found.val), len(found.test), found.num_classes) == (12, 12, 18, 6)
    assert found.train.images[0].shape == (3, 32, 32)
    pixels = [found.train.images[0].float(), found.val.images[0].float(), found.test.images[0].float()]
    assert (pixels[0] - pixels[1]).abs().mean() > 1
    assert (pixels[1] - pixels[2]).abs().mean() > 1


def test_petals_pixels_are_pinned() -> None:
    """Stored results name the renderer: a change of its pixels must come with a new RENDERER."""
    images, _ = petals.render([0, 50, 101], "test", [0, 1, 2], 64)
    assert images.mean((1, 2, 3)).tolist() == pytest.approx(PINNED_MEANS, abs=0.5)


PINNED_MEANS = [71.80, 77.16, 124.28]


def test_twins_share_genes_with_their_family_but_are_not_alike() -> None:
    for family in range(34):
        genes = [vars(petals.species(3 * family + twin)) for twin in range(3)]
        for a, b in ((0, 1), (0, 2), (1, 2)):
            differing = [k for k in genes[a] if genes[a][k] != genes[b][k]]
            assert 1 <= len(differing) <= 6, (family, differing)


def test_another_grammar_gives_other_species() -> None:
    assert petals.species(5, 0) != petals.species(5, 1)


@pytest.mark.parametrize("factor", sorted(petals.FACTORS))
def test_factors_have_their_range_and_act(factor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, factors = petals.render([1] * 64, "train", range(64), 16)
    low, high = petals.FACTORS[factor]
    assert low - 1e-6 <= factors[factor].min()
    assert factors[factor].max() <= high + 1e-6
    before, _ = petals.render([1] * 4, "train", range(4), 32)
    original = petals._factors
    monkeypatch.setattr(
        petals, "_factors", lambda draws: {**original(draws), factor: np.full(len(draws), high, np.float32)}
    )
    after, _ = petals.render([1] * 4, "train", range(4), 32)
    assert np.abs(before.astype(int) - after.astype(int)).mean() > 0.1


@pytest.mark.parametrize(
    ("name", "value"), [("size", "1"), ("size", "x"), ("species", "1"), ("train", "0"), ("test", "1.5")]
)
def test_petals_refuses(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(UsageError, match=f"data.{name}={value}"):
        petals.load(request(tmp_path, **{**PETALS, name: value}))
