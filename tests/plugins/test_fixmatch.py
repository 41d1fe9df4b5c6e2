"""fixmatch: its step is the paper's loss, written out image by image; its views are what it says; its twin sees no more than labels."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lives import TOY, planned
from torch import Tensor, nn

from flowers_bench import AugmentationContext, Step, StepContext, UsageError
from flowers_bench.contract.host import discover
from flowers_bench.nn import Output, evaluation_transform
from flowers_bench.training.build import Places, build_parts
from flowers_bench_plugins.fixmatch import GREY, build_fixmatch, covered, strong, weak

CONTEXT = AugmentationContext(32, 4, {})  # type: ignore[arg-type]


class Linear:
    """A batch for a linear model in float64."""

    def __init__(self, sharpness: float) -> None:
        torch.manual_seed(0)
        self.weight = nn.Parameter(sharpness * torch.randn(5, 3, dtype=torch.float64))
        draws = [torch.randn(n, 5, dtype=torch.float64) for n in (2, 14, 14)]
        self.images, self.unlabelled, self.unlabelled_second = draws
        self.targets = torch.tensor([0, 2])
        self.updates = 0

    def output(self, images: Tensor) -> Output:
        return Output(images @ self.weight, images)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.images @ self.weight, self.targets)

    def backward(self, loss: Tensor) -> None:
        self.weight.grad = None
        loss.backward()

    def update(self) -> None:
        self.updates += 1


def probabilities(scores: list[float]) -> list[float]:
    total = sum(map(math.exp, scores))
    return [math.exp(score) / total for score in scores]


@pytest.mark.parametrize(("threshold", "weight", "sharpness"), [(0.95, 1.0, 2.0), (0.6, 0.5, 1.0), (1.0, 1.0, 0.1)])
def test_the_step_is_the_papers_loss(threshold: float, weight: float, sharpness: float) -> None:
    batch = Linear(sharpness)
    options = {"sure_from": threshold, "unlabelled_weight": weight, "unlabelled_ratio": 7}
    loss = build_fixmatch(StepContext(["a", "b", "c"], 5, 8, options, nn.Identity()))(batch)  # type: ignore[arg-type]
    expected, taught, own = 0.0, 0, batch.weight.detach()
    slope = torch.zeros_like(own)
    for x, y in zip(batch.images, batch.targets.tolist(), strict=True):
        p = probabilities((x @ own).tolist())
        expected -= math.log(p[y]) / 2
        slope += torch.outer(x, torch.tensor(p) - F.one_hot(torch.tensor(y), 3)) / 2
    for easy, hard in zip(batch.unlabelled, batch.unlabelled_second, strict=True):
        q, p = (probabilities((u @ own).tolist()) for u in (easy, hard))
        if max(q) >= threshold:
            guess, taught = q.index(max(q)), taught + 1
            expected -= weight * math.log(p[guess]) / 14
            slope += weight * torch.outer(hard, torch.tensor(p) - F.one_hot(torch.tensor(guess), 3)) / 14
    assert (0 < taught < 14) == (threshold < 1)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(batch.weight.grad, slope, rtol=1e-6, atol=1e-8)
    assert batch.updates == 1


def test_the_weak_view_is_the_image_flipped_or_not_and_moved() -> None:
    torch.manual_seed(0)
    image = torch.randint(256, (3, 40, 36), dtype=torch.uint8)
    whole = evaluation_transform(32)(image)
    padded = [F.pad(one.float()[None], (4,) * 4, mode="reflect")[0].byte() for one in (whole, whole.flip(-1))]
    places = {
        one[:, y : y + 32, x : x + 32].numpy().tobytes(): (flipped, y, x)
        for flipped, one in enumerate(padded)
        for y in range(9)
        for x in range(9)
    }
    transform = weak(CONTEXT)
    seen = {places[transform(image).numpy().tobytes()] for _ in range(80)}
    assert {flipped for flipped, _, _ in seen} == {0, 1}
    assert len(seen) > 40


def test_the_square_is_grey_and_at_most_half_as_wide() -> None:
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32, dtype=torch.uint8)
    widths = []
    for _ in range(200):
        hidden = (covered(image) != 0).all(0)
        rows, columns = hidden.any(1), hidden.any(0)
        assert torch.equal(hidden, rows[:, None] & columns)  # one rectangle
        widths.append(int(max(rows.sum(), columns.sum())))
    assert max(widths) in (15, 16, 17)
    assert min(widths) <= 2
    assert not image.any()
    assert set(covered(image).unique().tolist()) <= {0, GREY}


def test_the_strong_view_differs_more() -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8).repeat_interleave(5, 2).repeat_interleave(5, 3)
    plain = evaluation_transform(32)
    far = [
        sum(float((transform(one).float() - plain(one).float()).abs().mean()) for one in images)
        for transform in (weak(CONTEXT), strong(CONTEXT))
    ]
    assert far[1] > 1.1 * far[0]


def test_it_needs_images_without_labels_and_its_twin_does_not(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"step 'fixmatch' learns from images without labels, and toy has none. Give --shots K"
    ):
        planned(tmp_path, "fixmatch/fixmatch")
    ours, twin = (planned(tmp_path, f"fixmatch/{name}", shots=4).trial for name in ("fixmatch", "labelled"))
    assert (twin.step, ours.step) == ("usual", "fixmatch")
    assert "n_unlabelled" in ours.dataset
    assert "n_unlabelled" not in twin.dataset
    assert (ours.recipe, ours.augmentation, ours.model) == (twin.recipe, twin.augmentation, twin.model)


def test_a_batch_has_as_many_as_the_option_says(tmp_path: Path) -> None:
    for settings, expected in (({}, 7), ({"unlabelled_ratio": "3"}, 3)):
        item = planned(tmp_path, "fixmatch/fixmatch", shots=4, **settings)
        places = Places.of(item.run)
        parts, _ = build_parts(discover([TOY]), item.trial, places, ["a", "b", "c", "d"], torch.device("cpu"))
        assert parts.unlabelled == expected
        assert parts.second_transform is not None


def test_an_option_that_there_is_not_cannot_say_how_many() -> None:
    with pytest.raises(UsageError, match="unlabelled='many' is none of its options"):
        Step("mine", "", build=lambda context: lambda batch: batch.loss(), unlabelled="many")
