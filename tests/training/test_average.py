"""The moving average of the weights: nothing of the initial ones stays, timm computes the same, a kill leaves no trace."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lives import TOY, live, planned, run_once_interrupted, training_of
from timm.utils.model_ema import ModelEmaV3
from torch import nn

from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.store.identity import config_id
from flowers_bench.training.average import Average, kept_share
from flowers_bench.training.process import Interrupted
from flowers_bench.training.trained import load_trained
from flowers_bench.training.trial import run_trial
from flowers_bench.util.errors import UsageError


def network() -> nn.Sequential:
    """Parameters, float buffers and an integer buffer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64))


def disturb(model: nn.Module) -> None:
    """Other values everywhere, as a step of training leaves them."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    model.train()(torch.randn(2, 3, 6, 6))


@given(st.floats(1e-6, 0.99999))
def test_after_a_hundred_updates_less_than_a_hundredth_of_the_start_is_left(decay: float) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = Average(model, decay)
        model.weight.fill_(0.0)
        for _ in range(100):
            average.update()
            assert abs(average.model.weight.item()) < 1e-12, "of the initial weights nothing stays"
        average = Average(model, decay)
        model.weight.fill_(1.0)
        average.update()
        model.weight.fill_(0.0)
        for _ in range(99):
            average.update()
    assert average.model.weight.item() < 0.01, "nor of those after the first step"


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.999, 0.99999])
def test_it_is_the_one_of_timm(decay: float) -> None:
    model = network()
    average, reference = Average(model, decay), ModelEmaV3(model, decay, use_warmup=True, foreach=False)
    for step in range(1, 40):
        disturb(model)
        average.update()
        reference.update(model, step)
        for name, mean in average.model.state_dict().items():
            assert torch.equal(mean, reference.module.state_dict()[name]), (step, name)


def test_all_at_once_is_each_on_its_own_to_the_bit() -> None:
    model = network()
    model[4].weight = model[3].weight  # under two names, it is averaged once
    average, alone = Average(model, 0.999), copy.deepcopy(model)
    for update in range(1, 40):
        disturb(model)
        average.update()
        with torch.no_grad():
            values = dict(model.named_parameters()) | dict(model.named_buffers())
            for name, mean in (dict(alone.named_parameters()) | dict(alone.named_buffers())).items():
                if mean.is_floating_point():
                    mean.lerp_(values[name], 1 - kept_share(0.999, update))
                else:
                    mean.copy_(values[name])
        assert average.model[1].num_batches_tracked == update
        for name, mean in average.model.state_dict().items():
            assert torch.equal(mean, alone.state_dict()[name]), (update, name)


def test_a_buffer_that_is_replaced_is_followed() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(1))

    model = Centred()
    average = Average(model, 0.5)
    for value in (1.0, 3.0):
        model.centre = torch.tensor([value])
        average.update()
    assert average.model.centre.item() == pytest.approx(2.2599, abs=1e-4)  # 1 / 2^(2/3) of 3, the rest of 1


def outcome(folder: TrialFolder) -> tuple[bytes, list[float], object]:
    result = folder.result()
    return folder.scores().logits.tobytes(), [record.val_nll for record in folder.history()], result.best_epoch


def test_stopped_and_continued_it_is_bit_equal(tmp_path: Path) -> None:
    calm = live(tmp_path, "toy/plain", store="calm", ema_decay="0.999")
    item = planned(tmp_path, "toy/plain", ema_decay="0.999")
    stopped = Store(tmp_path / "stopped").prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)
    for _ in range(2):
        with pytest.raises(Interrupted):
            run_once_interrupted(stopped)
    continued = training_of(stopped)
    continued._resume()
    assert continued._average is not None
    assert continued._average.updates == 2 * len(continued._batches(1))
    run_trial(stopped, lambda event: None)
    assert outcome(stopped) == outcome(calm)


def test_it_learns_as_the_network_does(tmp_path: Path) -> None:
    """Twelve steps; from the initial weights, 0.999 kept 99 % of them and stayed at chance."""
    settings = {"data.noise": "20", "dropout": "0", "lr": "0.05"}
    folder = live(tmp_path, "toy/plain", ema_decay="0.999", **settings)
    accuracy = folder.result().val.top1
    assert accuracy > 0.6
    assert accuracy > live(tmp_path, "toy/plain", **settings).result().val.top1 - 0.2


def test_only_trials_that_average_have_other_ids(tmp_path: Path) -> None:
    without, averaged = planned(tmp_path, "toy/plain").trial, planned(tmp_path, "toy/plain", ema_decay="0.9").trial
    assert "ema_warmup" not in without.facts()["recipe"]
    assert averaged.facts()["recipe"]["ema_warmup"] is True
    before = averaged.facts()
    del before["recipe"]["ema_warmup"]
    assert averaged.id != config_id(before)


def test_a_trial_from_before_the_warm_up_predicts_but_is_not_continued(tmp_path: Path) -> None:
    folder = live(tmp_path, "toy/short", ema_decay="0.9")
    config = folder.config().json()
    del config["recipe"]["ema_warmup"]
    config["id"] = config_id(config)
    old = TrialFolder(folder.path.rename(folder.path.with_name(config["id"])))
    (old.path / "config.json").write_text(json.dumps(config))
    result = json.loads((old.path / "result.json").read_text())
    (old.path / "result.json").write_text(json.dumps({**result, "id": config["id"]}))
    assert load_trained(old, torch.device("cpu"), [TOY]).model is not None
    with pytest.raises(UsageError, match="written by another version"):
        run_trial(old, lambda event: None)
