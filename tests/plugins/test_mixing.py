"""mixing: targets say what is in the image, each choice is what its name says, and what is measured and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from built import host
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import live, planned
from torch import Tensor
from torch.nn import functional as F

from flowers_bench import AugmentationContext, Options, UsageError
from flowers_bench_plugins.mixing import MIXES, batch_transform, blend, cutmix_mask, mixup_mask

CLASSES = 5


def _context(**options: float) -> AugmentationContext:
    defaults = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "mix_probability": 1.0}
    return AugmentationContext(16, CLASSES, {**defaults, **options})


def _labelled(count: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images whose channel c is 1 where the image shows class c: a mixed image says itself what it is mixed from."""
    labels = torch.arange(count) % CLASSES
    return F.one_hot(labels, CLASSES).float()[:, :, None, None].expand(-1, -1, size, size), labels


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from(sorted(MIXES)), seed=st.integers(0, 10**6), size=st.integers(2, 20))
def test_targets_are_the_shares_of_the_classes_in_the_image(name: str, seed: int, size: int) -> None:
    torch.manual_seed(seed)
    images, targets = batch_transform(MIXES[name][1])(_context())(*_labelled(7, size))
    assert torch.allclose(images.mean((2, 3)), targets, atol=1e-5)
    assert torch.allclose(targets.sum(1), torch.ones(7))
    assert (targets > 0).sum(1).max() <= (4 if name == "mixup-and-cutmix" else 2)


def _kinds(images: Tensor) -> set[str]:
    """How each changed image was changed: CutMix leaves every pixel whole."""
    changed = [image for image in images if image.flatten(1).mean(1).max() < 1]
    return {"cutmix" if set(image.unique().tolist()) == {0.0, 1.0} else "mixup" for image in changed}


def test_each_choice_is_what_its_name_says() -> None:
    found: dict[str, list[set[str]]] = {name: [] for name in MIXES}
    torch.manual_seed(0)
    for name in MIXES:
        for _ in range(30):
            images, _ = batch_transform(MIXES[name][1])(_context())(*_labelled(20))
            found[name].append(_kinds(images))
    assert set().union(*found["mixup"]) == {"mixup"}
    assert set().union(*found["cutmix"]) == {"cutmix"}
    per_batch = [kinds for kinds in found["mixup-or-cutmix"] if kinds]
    assert {tuple(kinds) for kinds in per_batch} == {("mixup",), ("cutmix",)}
    assert {"mixup", "cutmix"} in found["mixup-or-cutmix-per-image"]


def test_blending_is_the_formula() -> None:
    images, targets = torch.randn(4, 3, 5, 6), torch.rand(4, CLASSES)
    mask = torch.rand(4, 1, 5, 6)
    torch.manual_seed(1)
    found, shares = blend(images, targets, mask)
    torch.manual_seed(1)
    order = torch.randperm(4)
    for i in range(4):
        lam = float(mask[i].mean())
        assert torch.allclose(found[i], mask[i] * images[i] + (1 - mask[i]) * images[order[i]])
        assert torch.allclose(shares[i], lam * targets[i] + (1 - lam) * targets[order[i]])


def test_masks_mean_lambda_and_boxes_are_drawn_as_in_the_paper() -> None:
    lam = torch.full((4000,), 0.6)
    assert mixup_mask(lam[:3], 4, 5).eq(0.6).all()
    torch.manual_seed(0)
    share = cutmix_mask(lam, 32, 32).mean((1, 2, 3)).numpy()
    rng, cut = np.random.default_rng(0), int(32 * np.sqrt(0.4))
    expected = []
    for y, x in rng.integers(0, 32, (4000, 2)):
        height, width = (min(32, c + cut // 2) - max(0, c - cut // 2) for c in (y, x))
        expected.append(1 - height * width / 32**2)
    assert share.mean() == pytest.approx(np.mean(expected), abs=0.005)
    assert share.min() == pytest.approx(np.min(expected))
    assert share.max() == pytest.approx(np.max(expected))


@pytest.mark.parametrize("name", sorted(MIXES))
def test_a_seed_repeats_and_no_share_changes_nothing(name: str) -> None:
    images, labels = _labelled(6)
    transform = batch_transform(MIXES[name][1])(_context())
    torch.manual_seed(3)
    first = transform(images, labels)
    torch.manual_seed(3)
    second = transform(images, labels)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    same, targets = batch_transform(MIXES[name][1])(_context(mix_probability=0.0))(images, labels)
    assert torch.equal(same, images)
    assert targets.argmax(1).tolist() == labels.tolist()


@pytest.mark.parametrize("name", sorted(MIXES))
def test_an_augmentation_has_the_options_that_it_uses(name: str) -> None:
    used: set[str] = set()

    class Noted(Options):
        def __getitem__(self, key: str) -> Any:
            used.add(key)
            return super().__getitem__(key)

    part = host().augmentations[name].value
    assert part.batch is not None
    options = Noted(part.option_values({}))
    torch.manual_seed(0)
    for _ in range(20):
        part.batch(AugmentationContext(16, CLASSES, options))(*_labelled(4))
    part.image(AugmentationContext(16, CLASSES, options))
    assert used == set(part.options)


def test_a_trial_measures_mixed_images_draws_them_and_repeats(tmp_path: Path) -> None:
    settings = {"epochs": "2", "warmup_epochs": "0", "batch_size": "16", "lr": "3e-3"}
    folder = live(tmp_path, "mixing/both", **settings)
    result = folder.result().json()
    mixed = result["mixed"]
    assert mixed["n"] == 40
    assert 1 <= mixed["m"] <= 4
    assert 0 <= mixed["all_m"] <= mixed["top_m"] <= 1
    assert 0 <= folder.history()[0].train_top1_clean <= 1
    assert (folder.path / "figures" / "mixed.png").stat().st_size > 1000
    again = live(tmp_path, "mixing/both", store="again", **settings).result().json()
    assert {k: again[k] for k in ("mixed", "test", "retrieval")} == {
        k: result[k] for k in ("mixed", "test", "retrieval")
    }


def test_mixed_targets_do_not_fit_losses_of_hard_labels(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs hard_targets, which augmentation 'cutmix' does not provide"):
        planned(tmp_path, "triplet/batch-hard", augmentation="cutmix")
    with pytest.raises(UsageError, match="needs hard_targets"):
        planned(tmp_path, "mixing/random", loss="triplet")
