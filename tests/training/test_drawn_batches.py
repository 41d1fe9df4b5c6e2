"""Training on images drawn by parameters: the same bits whatever the batch, and drawn ahead or in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lives import planned, training_of
from torch import Tensor

from flowers_bench.store.folder import Store
from flowers_bench.training.build import Parts
from flowers_bench.training.loop import Drawn, Training


def prepared(tmp_path: Path, name: str = "transfer/scratch", **settings: Any) -> Training:
    item = planned(tmp_path, name, **{"epochs": "2", "warmup_epochs": "0", "batch_size": "14", **settings})
    return training_of(Store(tmp_path / "runs").prepare(item.trial, replace(item.run, threads=1, command=[])))


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


@pytest.mark.parametrize("name", ["transfer/scratch", "mixing/random"])
def test_drawing_ahead_changes_no_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for ahead in (False, True):
        monkeypatch.setattr(Training, "_draws_ahead", lambda self, ahead=ahead: ahead)
        training = prepared(tmp_path / str(ahead), name)
        assert training._parameters_alone()
        model = training.run(lambda record: None)
        ends.append(([record.train_loss for record in training.history], model.state_dict()))
    assert ends[0][0] == ends[1][0]
    assert all(torch.equal(value, ends[1][1][key]) for key, value in ends[0][1].items())


def test_it_draws_ahead_on_a_gpu_and_where_nothing_draws_from_torchs_generator(tmp_path: Path) -> None:
    training = prepared(tmp_path)
    assert not training._draws_ahead()
    training.parts.normalize.device = torch.device("cuda")
    assert training._draws_ahead()
    training.parts.parameters = None
    assert not training._draws_ahead()
    assert not prepared(tmp_path, augmentation="trivial-augment")._parameters_alone()


def test_fixed_versions_are_few_and_their_revision_is_part_of_what_is_stored(tmp_path: Path) -> None:
    training = prepared(tmp_path, augmentation="fixed-views", views="2")
    found = [by_row(training, epoch) for epoch in range(1, 7)]
    for row in found[0]:
        assert len({epoch[row].numpy().tobytes() for epoch in found}) <= 2
    shown = {epoch[row].numpy().tobytes() for epoch in found for row in epoch}
    assert 1.6 * len(found[0]) < len(shown) <= 2 * len(found[0])
    parts: Parts = training.parts
    assert parts.drawing["revision"] == 2
