"""Training on images drawn by parameters: the same bits whatever the batch, and drawn ahead or in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from lives import planned, training_of
from torch import Tensor

from flowers_bench.store.folder import Store
from flowers_bench.training import feeding, loop
from flowers_bench.training.build import Parts
from flowers_bench.training.distributed import Ranks
from flowers_bench.training.feeding import Feeding, choose_feeding
from flowers_bench.training.loop import Drawn, Training


def prepared(tmp_path: Path, name: str = "transfer/scratch", device: str = "cpu", **settings: Any) -> Training:
    item = planned(tmp_path, name, **{"epochs": "2", "warmup_epochs": "0", "batch_size": "14", **settings})
    run = replace(item.run, threads=1, command=[])
    return training_of(Store(tmp_path / "runs").prepare(item.trial, run), device=device)


def drawn(training: Training, epoch: int) -> Iterator[Drawn]:
    return training._draw_all(epoch, training._chosen(epoch, training._batches(epoch)))


def by_row(training: Training, epoch: int) -> dict[int, Tensor]:
    steps = zip(training._batches(epoch), drawn(training, epoch), strict=True)
    return {int(row): image for rows, step in steps for row, image in zip(rows, step.images, strict=True)}


def test_an_images_version_depends_on_no_batch_and_changes_with_the_epoch(tmp_path: Path) -> None:
    first, second = prepared(tmp_path), prepared(tmp_path, batch_size="5")
    one, other = by_row(first, 1), by_row(second, 1)
    assert one.keys() == other.keys() == set(range(len(first.train)))
    assert all(torch.equal(image, other[row]) for row, image in one.items())
    assert not any(torch.equal(image, one[row]) for row, image in by_row(first, 2).items())


def test_an_image_that_comes_twice_in_an_epoch_is_drawn_anew(tmp_path: Path) -> None:
    training = prepared(
        tmp_path, "prototypical/euclidean", n_way="3", k_shot="4", n_query="6", episodes_per_epoch="4", eval_way="3"
    )
    versions: dict[int, set[bytes]] = {}
    batches = training._batches(1)
    for rows, step in zip(batches, drawn(training, 1), strict=True):
        for row, image in zip(rows.tolist(), step.images, strict=True):
            versions.setdefault(row, set()).add(image.numpy().tobytes())
    assert sum(map(len, batches)) == sum(map(len, versions.values())) > len(versions)


def trained(place: Path, name: str, feeding: Feeding, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Any:
    """Losses and weights of a training whose images are drawn that way."""
    monkeypatch.setattr(loop, "choose_feeding", lambda *given: feeding)
    training = prepared(place, name, **settings)
    model = training.run(lambda record: None)
    assert training.feeding is feeding
    assert bool(training.parts.unlabelled) == bool(len(training.unlabelled))
    return [record.train_loss for record in training.history], model.state_dict()


def assert_equal_bits(one: Any, other: Any) -> None:
    assert one[0] == other[0]
    assert all(torch.equal(value, other[1][key]) for key, value in one[1].items())


@pytest.mark.parametrize("feeding", [Feeding.ON_DEVICE, Feeding.BY_THREAD, Feeding.BY_PROCESSES])
@pytest.mark.parametrize("name", ["transfer/scratch", "mixing/random"])
def test_how_images_are_drawn_by_parameters_changes_no_bit(
    name: str, feeding: Feeding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_turn = trained(tmp_path / "in turn", name, Feeding.IN_TURN, monkeypatch)
    assert_equal_bits(in_turn, trained(tmp_path / "other", name, feeding, monkeypatch))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("transfer/scratch", {"augmentation": "trivial-augment"}), ("fixmatch/fixmatch", {"shots": 2, "batch_size": "3"})],
)
def test_processes_draw_what_is_drawn_in_turn(
    name: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's global generator, seeded for each step: its state goes on from there, and second views have seeds of their own."""
    in_turn = trained(tmp_path / "in turn", name, Feeding.IN_TURN, monkeypatch, **settings)
    assert_equal_bits(in_turn, trained(tmp_path / "other", name, Feeding.BY_PROCESSES, monkeypatch, **settings))


@pytest.mark.parametrize(
    ("device", "ranks", "by_parameters", "compiled", "fit", "expected"),
    [
        ("cpu", 1, True, True, (True,), Feeding.IN_TURN),
        ("cpu", 1, False, True, (True,), Feeding.IN_TURN),
        ("cuda", 1, True, True, (True,), Feeding.ON_DEVICE),
        ("cuda", 1, True, True, (False,), Feeding.BY_THREAD),
        ("cuda", 1, True, False, (True,), Feeding.BY_THREAD),
        ("cuda", 1, False, True, (True,), Feeding.BY_PROCESSES),
        ("cuda", 2, True, True, (True, True), Feeding.ON_DEVICE),
        ("cuda", 2, True, True, (True, False), Feeding.IN_TURN),
        ("cuda", 2, False, True, (True, True), Feeding.IN_TURN),
        ("mps", 1, True, True, (True,), Feeding.BY_THREAD),
        ("mps", 1, False, True, (True,), Feeding.IN_TURN),
    ],
)
def test_what_draws_depends_on_the_device_the_ranks_and_what_fits(
    device: str, ranks: int, by_parameters: bool, compiled: bool, fit: tuple[bool, ...], expected: Feeding,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(feeding, "draws_on", lambda kind: compiled)
    monkeypatch.setattr(feeding, "fit_on", lambda place, splits: fit[0])
    monkeypatch.setattr(Ranks, "all_gather", lambda self, value: [value, *fit[1:]])
    assert choose_feeding(torch.device(device), Ranks(0, ranks), by_parameters, [[], []]) is expected


def test_stored_activations_need_no_images(tmp_path: Path) -> None:
    training = prepared(tmp_path)
    assert training.feeding is Feeding.IN_TURN
    training.parts.stored = mock.Mock()
    assert Training(training.trial, training.parts, training.train, training.val, training.folder).feeding is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("other", [Feeding.ON_DEVICE, Feeding.BY_THREAD, Feeding.BY_PROCESSES])
def test_on_a_gpu_every_way_gives_the_same_images(
    other: Feeding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    for way in (Feeding.IN_TURN, other):
        monkeypatch.setattr(loop, "choose_feeding", lambda *given, way=way: way)
        training = prepared(tmp_path / way.name, device="cuda")
        assert training.parts.normalize.device.type == "cuda"
        shown.append([step.images.cpu() for step in drawn(training, 1)])
    assert all(torch.equal(one, two) for one, two in zip(*shown, strict=True))


def test_fixed_versions_are_few_and_their_revision_is_part_of_what_is_stored(tmp_path: Path) -> None:
    training = prepared(tmp_path, augmentation="fixed-views", views="2")
    found = [by_row(training, epoch) for epoch in range(1, 7)]
    for row in found[0]:
        assert len({epoch[row].numpy().tobytes() for epoch in found}) <= 2
    shown = {epoch[row].numpy().tobytes() for epoch in found for row in epoch}
    assert 1.6 * len(found[0]) < len(shown) <= 2 * len(found[0])
    parts: Parts = training.parts
    assert parts.drawing["revision"] == 2
