"""Changed test images: the same for everyone, ever stronger, and never the stored image itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flowers_bench.contract.dataset import DataRequest
from flowers_bench.data import petals
from flowers_bench.measure.robustness import CHANGES, changed, conditions
from flowers_bench.report.measures import STRESSES

RAMP = (
    torch.arange(64, dtype=torch.uint8).mul(4).expand(3, 64, 64).contiguous()
)  # a flower may look the same when turned
IMAGE = torch.from_numpy(petals.portrait(petals.species(7), 64)).permute(2, 0, 1)


def test_the_leaderboard_names_every_kind() -> None:
    assert tuple(CHANGES) == STRESSES


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_is_of_the_image_s_key_and_grows_with_the_level(kind: str) -> None:
    image = RAMP if kind == "rotation" else IMAGE
    before = image.clone()
    found = [changed(image, kind, level, "test/1") for level in CHANGES[kind].levels]
    assert torch.equal(image, before)
    assert all(one.dtype == torch.uint8 and one.shape == image.shape for one in found)
    assert torch.equal(found[2], changed(image, kind, CHANGES[kind].levels[2], "test/1"))
    distance = [float((one.float() - image.float()).abs().mean()) for one in found]
    assert 0 < distance[0] < distance[2] < distance[4]


@pytest.mark.parametrize("kind", [kind for kind in CHANGES if kind not in ("blur", "jpeg")])
def test_other_images_are_changed_otherwise(kind: str) -> None:
    level = CHANGES[kind].levels[2]
    others = {changed(IMAGE, kind, level, f"test/{i}").numpy().tobytes() for i in range(6)}
    assert len(others) > 1


@pytest.mark.parametrize("kind", CHANGES)
@pytest.mark.parametrize("size", [(41, 64), (64, 41), (2, 3)])
def test_any_size_is_taken(kind: str, size: tuple[int, int]) -> None:
    image = torch.full((3, *size), 90, dtype=torch.uint8)
    assert changed(image, kind, CHANGES[kind].levels[4], "a").shape == image.shape


@pytest.mark.parametrize("kind", ["rotation", "scale", "translation", "perspective", "elastic"])
def test_geometry_brings_in_no_black(kind: str) -> None:
    grey = torch.full((3, 48, 48), 90, dtype=torch.uint8)
    for key in "abc":
        found = changed(grey, kind, CHANGES[kind].levels[4], key)
        assert (found.int() - 90).abs().max() <= 1


def test_strengths_mean_what_they_say() -> None:
    grey = torch.full((3, 100, 100), 90, dtype=torch.uint8)
    assert (changed(grey, "occlusion", 0.3, "a") == 128).float().mean() == pytest.approx(0.3, abs=0.01)
    noise = changed(grey, "noise", 0.04, "a").float()
    assert float(noise.std()) == pytest.approx(0.04 * 255, rel=0.05)
    spot = torch.zeros(3, 101, 101, dtype=torch.uint8)
    spot[:, 48:53, 48:53] = 255
    rows, columns = np.nonzero(changed(spot, "translation", 0.2, "a")[0].numpy() > 100)
    assert np.hypot(rows.mean() - 50, columns.mean() - 50) == pytest.approx(0.2 * 101, abs=1)
    turned = changed(IMAGE, "rotation", 90, "a")
    assert min(float((turned.float() - torch.rot90(IMAGE, k, (1, 2)).float()).abs().mean()) for k in (1, 3)) < 2


def test_petals_are_drawn_again_with_each_factor_set(tmp_path) -> None:
    options = {"size": 32, "species": 3, "train": 1, "val": 1, "test": 7, "grammar_seed": 0}
    dataset = petals.load(DataRequest(tmp_path, None, 32, options))
    keys, labels = list(dataset.test.keys), dict(zip(dataset.test.keys, dataset.test.labels, strict=True))
    for factor, splits in dataset.factor_sweeps.items():
        assert len(splits) == 5
        for value, split in splits.items():
            assert petals.FACTORS[factor][0] <= value + 1e-6
            assert value <= petals.FACTORS[factor][1] + 1e-6
            assert len(split) == 3 * petals.SWEPT_IMAGES
            assert all(labels[key] == label for key, label in zip(split.keys, split.labels, strict=True))
    split = dataset.factor_sweeps["elastic"][0.085]
    expected, _ = petals.render([2], "test", [3], 32, fixed={"elastic": 0.085})
    assert torch.equal(split.images[keys.index("test/002/003") - 4], torch.from_numpy(expected[0]).permute(2, 0, 1))
    asked = list(conditions(dataset))
    assert len(asked) == 5 * (len(CHANGES) + len(petals.SWEPT))
    assert [one.level for one in asked[:5]] == [1, 2, 3, 4, 5]
    assert asked[0].label == "10°"
