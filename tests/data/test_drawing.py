"""Images drawn by parameters: by seed, epoch and image alone; the distributions of the standard augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from flowers_bench import AugmentationContext
from flowers_bench.contract.host import discover
from flowers_bench.data.drawing import ByParameters, UniformNumbers, times_before
from flowers_bench_plugins.common import STANDARD, StandardParameters, random_boxes, standard_parameters

ONCE = np.zeros(1, np.int64)


def images(count: int = 9) -> list[torch.Tensor]:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 60, (count, 2))
    return [torch.from_numpy(random.integers(0, 256, (3, *size)).astype(np.uint8)) for size in sizes]


def test_the_numbers_are_numpys_philox() -> None:
    found = UniformNumbers(123, 5, 7).of(np.array([3]), 2, ONCE)[0]
    words = np.random.Philox(key=123, counter=[0, 0, 2, 0]).random_raw(20)[12:16]
    expected = [half / 2**32 for word in words for half in (int(word) % 2**32, int(word) >> 32)]
    assert found.tolist() == expected[:7]


def test_an_images_numbers_depend_on_seed_epoch_image_and_turn() -> None:
    def of(seed: int, row: int, epoch: int, time: int) -> float:
        return float(UniformNumbers(seed, 4, 3).of(np.array([row]), epoch, np.array([time]))[0, 0])

    usual = of(1, 2, 3, 0)
    assert usual == of(1, 2, 3, 0)
    assert len({usual, of(2, 2, 3, 0), of(1, 1, 3, 0), of(1, 2, 4, 0), of(1, 2, 3, 1)}) == 5
    many = UniformNumbers(1, 4000, 5).of(np.arange(4000), 1, np.zeros(4000, int))
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(np.corrcoef(many.T) - np.eye(5)).max() < 0.06
    assert abs(many.mean(0) - 0.5).max() < 0.02


def test_an_image_is_the_same_whatever_the_batch() -> None:
    by = ByParameters.seeded(images(), StandardParameters(0.3, 0.4), 16, 5, "augment")
    together = by.draw(np.arange(9), 2)
    assert torch.equal(together[[7, 1, 7]], by.draw(np.array([7, 1, 7]), 2))
    fresh = ByParameters.seeded(images(), StandardParameters(0.3, 0.4), 16, 5, "augment")
    fresh.draw(np.arange(9), 1)
    assert torch.equal(together[4], fresh.draw(np.array([4]), 2)[0])
    again = by.draw(np.array([7, 7]), 2, np.array([0, 1]))
    assert torch.equal(again[0], together[7])
    assert not torch.equal(again[1], together[7])


def test_versions_are_told_apart_and_stay() -> None:
    by = ByParameters.seeded(images(), StandardParameters(0.3, 0.4), 16, 0, "view", views=3)
    drawn = by.draw(np.arange(27), 0)
    assert drawn.shape == (27, 3, 16, 16)
    assert len({one.numpy().tobytes() for one in drawn}) > 20
    assert torch.equal(drawn[[26, 5]], by.draw(np.array([26, 5]), 0))


def test_drawing_leaves_torchs_random_state() -> None:
    before = torch.get_rng_state()
    ByParameters.seeded(images(), StandardParameters(0.3, 0.4), 16, 5, "augment").draw(np.arange(9), 2)
    assert torch.equal(before, torch.get_rng_state())


def test_turns_are_counted_through_the_epoch() -> None:
    batches = [np.array([4, 2, 4]), np.array([], int), np.array([2, 9, 4])]
    assert [times.tolist() for times in times_before(batches)] == [[0, 0, 1], [], [1, 0, 2]]
    assert times_before([]) == [] or not len(times_before([])[0])


@pytest.mark.parametrize("size", [(200, 300), (64, 64), (100, 31), (3, 40), (1, 1), (2, 16)])
def test_boxes_are_torchvisions(size: tuple[int, int]) -> None:
    count, min_scale = 2000, 0.35
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=(min_scale, 1.0))
    image = torch.zeros(3, *size, dtype=torch.uint8)
    keys = ("top", "left", "height", "width")
    drawn = [theirs.make_params([image]) for _ in range(count)]
    expected = np.array([[one[key] for key in keys] for one in drawn])
    numbers = np.random.default_rng(1).random((count, 22))
    found = random_boxes(np.tile(size, (count, 1)), numbers, min_scale)
    corner, extent = found[:, :2], found[:, 2:]
    assert (corner >= 0).all()
    assert (extent > 0).all()
    assert (corner + extent <= size).all()
    for column in range(4):
        assert ks_2samp(found[:, column], expected[:, column]).pvalue > 1e-4, keys[column]
    for shown in (lambda box: box[:, 2] * box[:, 3], lambda box: box[:, 3] / box[:, 2]):
        assert ks_2samp(shown(found), shown(expected)).pvalue > 1e-4


def test_the_boxes_that_fit_nowhere_lie_in_the_middle_as_torchvisions_do() -> None:
    found = random_boxes(np.array([[100, 7], [7, 100], [60, 59]]), np.zeros((3, 22)) + 0.999, 1.0)
    assert found.tolist() == [[45, 0, 9, 7], [0, 45, 7, 9], [0, 0, 60, 59]]


def test_half_are_mirrored_and_factors_are_of_the_jitters_range() -> None:
    count = 4000
    parameters = StandardParameters(0.3, 0.4)
    made = parameters(np.tile((50, 50), (count, 1)), np.random.default_rng(2).random((count, parameters.numbers)))
    assert made.matrix is not None
    assert made.of_mean is not None
    assert abs(made.mirrored.mean() - 0.5) < 0.03
    both = made.matrix.sum(2)  # a grey stays grey: brightness times contrast
    assert np.allclose(both, both[:, :1])
    assert 0.6**2 <= both.min() < 0.42
    assert 1.8 < both.max() <= 1.4**2
    brightness = both[:, 0] + made.of_mean
    assert ks_2samp(brightness, np.random.default_rng(3).uniform(0.6, 1.4, count)).pvalue > 1e-4
    plain = StandardParameters(0.3, 0.0)
    assert plain(np.array([[5, 5]]), np.zeros((1, plain.numbers))).matrix is None


def test_drawn_by_parameters_it_is_on_average_what_the_transform_draws() -> None:
    part = discover(only_built_in=True).augmentations["standard"].value
    context = AugmentationContext(24, 3, part.option_values({}))
    random = np.random.default_rng(4)
    image = torch.from_numpy(np.kron(random.integers(0, 256, (3, 3, 4)), np.ones((1, 9, 9))).astype(np.uint8))
    torch.manual_seed(0)
    transform = part.image(context)
    theirs = torch.stack([transform(image) for _ in range(600)]).double()
    ours = (
        ByParameters.seeded([image] * 600, part.parameters(context), 24, 0, "augment").draw(np.arange(600), 1).double()
    )
    spread = theirs.std(0).clamp_min(1)
    errors = ((ours.mean(0) - theirs.mean(0)) / (spread * (2 / 600) ** 0.5)).abs()  # of neighbours, much alike
    assert float(errors.max()) < 5
    assert float(errors.mean()) < 2.5
    assert float((ours.std(0) / spread - 1).abs().mean()) < 0.1


def test_the_mixing_augmentations_and_fixed_views_state_them_too() -> None:
    augmentations = discover(only_built_in=True).augmentations
    with_parameters = {name for name, found in augmentations.items() if found.value.parameters is not None}
    assert with_parameters == {"standard", "fixed-views", *(name for name in augmentations if "mix" in name)}
    for name in with_parameters:
        part = augmentations[name].value
        assert part.revision == 2
        assert set(STANDARD) <= set(part.options)
        assert part.parameters(AugmentationContext(8, 2, part.option_values({}))) == standard_parameters(
            AugmentationContext(8, 2, part.option_values({}))
        )
