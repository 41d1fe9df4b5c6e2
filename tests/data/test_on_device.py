"""Decoded images in a device's memory, and drawn by processes: the same pixels, in order."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest
import torch

from flowers_bench.data import on_device
from flowers_bench.data.drawing import ByParameters
from flowers_bench.data.on_device import OnDevice, fit_on
from flowers_bench.data.processes import in_order_by_processes
from flowers_bench_plugins.common import StandardParameters

CPU = torch.device("cpu")


def images(count: int = 7) -> list[torch.Tensor]:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 60, (count, 2))
    return [torch.from_numpy(random.integers(0, 256, (3, *size)).astype(np.uint8)) for size in sizes]


def test_copied_images_are_the_same_and_their_channels_lie_beside_each_other() -> None:
    given = images()
    copy = OnDevice.copied(given, CPU)
    assert len(copy) == len(given)
    for i, image in enumerate(given):
        assert torch.equal(copy[i], image)
        assert copy[i].stride() == (1, 3 * image.shape[2], 3)
        assert copy[i].untyped_storage().data_ptr() == copy.pixels.untyped_storage().data_ptr()
    assert len(OnDevice.copied([], CPU)) == 0


def test_drawn_from_there_they_have_the_same_bits() -> None:
    given, parameters = images(), StandardParameters(0.3, 0.4)
    rows = np.array([6, 0, 3, 3])
    there = ByParameters.seeded(OnDevice.copied(given, CPU), parameters, 16, 5, "augment").draw(rows, 1)
    assert torch.equal(there, ByParameters.seeded(given, parameters, 16, 5, "augment").draw(rows, 1))


def test_they_fit_where_they_take_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = [images(3), images(2)]
    needed = sum(image.numel() for split in splits for image in split)
    for free, fits in ((4 * needed, True), (4 * needed - 4, False)):
        monkeypatch.setattr(on_device, "free_bytes", lambda device, free=free: free)
        assert fit_on(CPU, splits) is fits


def slow_first(index: int) -> tuple[int, int]:
    time.sleep(0.2 if index == 0 else 0)
    if index == 5:
        raise ValueError("the sixth")
    return index, os.getpid()


def test_processes_give_results_in_order_and_raise_in_turn() -> None:
    before = torch.get_rng_state()
    results = in_order_by_processes(slow_first, 8, workers=2, pin=False)
    found = [next(results) for _ in range(5)]
    assert [index for index, _ in found] == [0, 1, 2, 3, 4]
    assert len({pid for _, pid in found} - {os.getpid()}) == 2
    with pytest.raises(ValueError, match="the sixth"):
        next(results)
    assert torch.equal(before, torch.get_rng_state()), "torch's global generator was drawn from"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu() -> None:
    given, parameters = images(), StandardParameters(0.3, 0.4)
    assert fit_on(torch.device("cuda"), [given])
    copy = OnDevice.copied(given, torch.device("cuda"))
    assert all(torch.equal(copy[i].cpu(), image) for i, image in enumerate(given))
    drawn = ByParameters.seeded(copy, parameters, 16, 5, "augment").draw(np.arange(7), 1)
    expected = ByParameters.seeded(given, parameters, 16, 5, "augment").draw(np.arange(7), 1)
    assert drawn.is_cuda
    assert torch.equal(drawn.cpu(), expected)
