"""The starter set: which networks, which techniques, and what they take."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flowers_bench.contract.host import discover
from flowers_bench.data.survey import ClassSize, Survey
from flowers_bench.plan import starter, threads
from flowers_bench.plan.starter import EMBEDDED, Network, Rates, choose, find_networks, measure_rates
from flowers_bench.training import process
from flowers_bench.util.errors import UsageError

PHOTOS = Survey(
    root=Path("photos"),
    by_rule=True,
    classes=10,
    images={"train": 600, "val": 200, "test": 200},
    smallest=ClassSize("rose", 100),
    largest=ClassSize("tulip", 100),
    fewest_to_train=60,
    sizes=((400, 300),) * 1000,
    bytes=10**8,
    copies=0,
    seconds_to_decode=0.01,
    notes=(),
    looked={},
)
CNN = Network("resnet18", "pretrained", "here", 224, 11_000_000, transformer=False)
VIT = Network("vit_tiny_patch16_224", "pretrained", "here", 224, 5_000_000, transformer=True)


@pytest.fixture
def nothing_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "cached_weights", lambda name: None)
    monkeypatch.setattr(starter, "hub_answers", lambda: False)


def labels(found: starter.StarterSet) -> list[tuple[str, str]]:
    return [(one.label, one.network.backbone) for one in found.chosen]


def test_frozen_features_first_then_what_is_trained() -> None:
    found = choose(discover(), PHOTOS, [CNN, VIT], [Rates(100, 50), Rates(100, 40)], 3)
    assert labels(found)[:3] == [
        ("knn/k5", "resnet18"),
        ("linear-probe/logistic", "resnet18"),
        ("linear-probe/logistic", "vit_tiny_patch16_224"),
    ]
    assert set(labels(found)[3:]) == {("transfer/k3", "resnet18"), ("lora/qv", "vit_tiny_patch16_224")}
    costs = [one.seconds for one in found.chosen]
    assert costs == sorted(costs), "an answer after the first minute takes the cheap ones first"


def test_the_estimate_is_images_by_speed() -> None:
    found = choose(discover(), PHOTOS, [CNN], [Rates(100, 50)], 3)
    by_label = {one.label: one.seconds for one in found.chosen}
    overhead = starter.OVERHEAD + starter.MEASURING / 100
    assert by_label["linear-probe/logistic"] == pytest.approx(1000 / 100 + 3 * overhead)
    epochs = discover().techniques["transfer"].value.recipe.epochs
    assert by_label["transfer/k3"] == pytest.approx(3 * (epochs * (600 / 50 + 200 / 100) + 1000 / 100 + overhead))
    features = 1000 / 100  # which neighbours and logistic regression share
    assert found.seconds == pytest.approx(sum(by_label.values()) + found.decoding - features)
    assert found.cache_bytes == 1000 * 3 * 256 * 341
    assert found.store_bytes == 4 * 11_000_000 * (3 + 4)


def test_what_would_take_too_long_is_left_out_and_the_cheap_stays() -> None:
    found = choose(discover(), PHOTOS, [CNN], [Rates(0.1, 0.05)], 3)
    assert labels(found) == [("knn/k5", "resnet18"), ("linear-probe/logistic", "resnet18")]
    assert [one.label for one in found.left_out] == ["transfer/k3"]


def test_few_photographs_have_one_neighbour_and_no_fine_tuning() -> None:
    few = replace(PHOTOS, images={"train": 10, "val": 10, "test": 10}, fewest_to_train=1)
    found = choose(discover(), few, [CNN], [Rates(100, 50)], 3)
    assert [one.label for one in found.chosen] == ["knn/k1", "linear-probe/logistic"]
    assert any(
        "fine-tuning is left out: there are 1 training photographs of each class" in note for note in found.notes
    )
    assert any("10 test photographs can tell large differences only" in note for note in found.notes)


def test_without_weights_those_of_drawn_flowers_are_taken_and_said(nothing_here: None) -> None:
    (network,) = find_networks([], None)
    assert (network.backbone, network.weights) == (EMBEDDED, "petals")
    found = choose(discover(), PHOTOS, [network], [Rates(100, 50)], 3)
    assert any("drawn flowers only" in note for note in found.notes)


def test_what_is_here_is_taken_before_what_can_be_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starter, "hub_answers", lambda: True)
    monkeypatch.setattr(starter, "cached_weights", lambda name: Path("x") if name == "resnet18" else None)
    assert [(n.backbone, n.fetched) for n in find_networks([], None)] == [("resnet18", False)]
    monkeypatch.setattr(starter, "cached_weights", lambda name: None)
    assert [(n.backbone, n.fetched) for n in find_networks([], None)] == [(starter.CONVOLUTIONAL[0], True)]
    monkeypatch.setattr(starter, "cached_weights", lambda name: Path("x") if "vit_" in name else None)
    assert [n.transformer for n in find_networks([], None)] == [True]


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("resnet18.pth", "resnet18"),
        ("resnet18-5c106cde.pth", "resnet18"),
        ("tf_efficientnet_lite0.pth", "tf_efficientnet_lite0"),
        ("vit_small_patch14_dinov2.focus.fp16.safetensors", "vit_small_patch14_dinov2"),
    ],
)
def test_a_files_name_tells_its_network(tmp_path: Path, name: str, backbone: str) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / name)
    if name.endswith("safetensors"):
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(1)}, tmp_path / name)
    (network,) = find_networks([str(tmp_path / name)], None)
    assert network.backbone == backbone
    assert network.transformer == ("vit" in backbone)


@pytest.mark.parametrize(
    ("weights", "backbone", "words"),
    [
        (["mine.pth"], None, "its name does not tell the network. Say it: --backbone"),
        (["absent/resnet18.pth"], None, "absent/resnet18.pth"),
        (["a1_in1k"], None, "say the network too"),
        (["mine.pth", "mine.pth"], "resnet18", "--backbone goes with one --weights"),
        ([], "resnet34", "its weights are not on this machine and cannot be fetched"),
    ],
)
def test_mistakes_about_weights_are_said(
    nothing_here: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: list[str],
    backbone: str | None,
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"w": torch.zeros(1)}, "mine.pth")
    with pytest.raises(UsageError, match=words):
        find_networks(weights, backbone)


def test_trials_side_by_side_and_a_busy_machine_are_counted() -> None:
    found = choose(discover(), PHOTOS, [CNN], [Rates(100, 50, at_once=2, slowdown=4.0)], 3)
    by_label = {one.label: one.seconds for one in found.chosen}
    overhead, epochs = (
        4 * starter.OVERHEAD + starter.MEASURING / 100,
        discover().techniques["transfer"].value.recipe.epochs,
    )
    assert by_label["linear-probe/logistic"] == pytest.approx(1000 / 100 + 2 * overhead), "of three, two at once"
    assert by_label["transfer/k3"] == pytest.approx(2 * (epochs * (600 / 50 + 200 / 100) + 10 + overhead))


def test_speed_is_measured_in_images_per_second() -> None:
    usual = torch.get_num_threads()
    found = measure_rates(Network.of(EMBEDDED, "petals", "", 64), 3, 1)
    assert 0 < found.training < found.forward
    assert found.at_once == 1
    assert found.slowdown >= 1 - 0.01
    assert torch.get_num_threads() == usual


@pytest.mark.parametrize(("backbone", "side", "seeds", "expected"), [(EMBEDDED, 64, 3, 1), ("resnet18", 224, 3, 3)])
def test_speed_is_measured_with_the_threads_of_a_trial(
    monkeypatch: pytest.MonkeyPatch, backbone: str, side: int, seeds: int, expected: int
) -> None:
    """On four cores that torch would use three of: of a small network, three trials run at once, with one each."""
    monkeypatch.setattr(threads, "available_cores", lambda: 4)
    monkeypatch.setattr(process, "choose_device", lambda asked: torch.device("cpu"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    seen: list[int] = []
    monkeypatch.setattr(starter, "_rate", lambda run: float(seen.append(torch.get_num_threads()) or 1))
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        found = measure_rates(Network.of(backbone, "none", "", side), 3, seeds)
    finally:
        torch.set_num_threads(usual)
    assert seen == [expected, expected]
    assert found.at_once == (3 if backbone == EMBEDDED else 1)


def test_the_rate_is_the_mean_after_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that sets things up, and then some of which every other one has to wait for other programs."""
    clock = [0.0]
    took = iter([100.0, *[0.1, 0.4] * 2])
    monkeypatch.setattr(starter.time, "perf_counter", lambda: clock[0])

    def call() -> None:
        clock[0] += next(took)

    assert starter._rate(call) == pytest.approx(4 * 4 / 1.0)


def test_another_programs_share_of_the_core_is_a_slowdown(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr(starter.time, "perf_counter", lambda: next(clock) / 1000)
    monkeypatch.setattr(starter.time, "thread_time", lambda: next(clock) / 4000)
    assert starter._slowdown() == pytest.approx(4, rel=0.05)
