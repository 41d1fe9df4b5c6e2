"""What is said to be the cost: counts against formulas written out, times against known times, meters against files."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from scipy.stats import binom
from torch import nn
from torch.nn import functional as F

from flowers_bench.measure import inference
from flowers_bench.measure.cost import Flops, PeakMemory, flops, training_cost
from flowers_bench.measure.energy import Meter
from flowers_bench.measure.hardware import bfloat16_in_hardware
from flowers_bench.measure.inference import OtherLoad, inference_cost, quantile, speed, timings
from flowers_bench.measure.total_cost import TotalCost, total_cost
from flowers_bench.ops import DeformConv2d
from flowers_bench.store.folder import TrialFolder
from flowers_bench.store.records import Epoch

torch.set_num_threads(1)
CPU = torch.device("cpu")


def test_flops_of_convolutions_and_linear_layers_by_formula() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 1, 1, groups=4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12 * 4 * 4, 10),
    ).eval()
    by_hand = 2 * (8 * 8 * 8 * 3 * 9 + 12 * 8 * 8 * 2 * 9 + 192 * 10)
    assert flops(net, torch.zeros(1, 3, 16, 16)) == Flops(by_hand, ())


def test_flops_where_a_module_is_called_with_a_trainable_tensor() -> None:
    layer, prompt = nn.Linear(4, 5, bias=False), nn.Parameter(torch.zeros(3, 4))
    assert flops(lambda image: layer(prompt), torch.zeros(1, 3, 8, 8)) == Flops(2 * 3 * 4 * 5, ())


def test_flops_of_a_transformer_count_its_attention() -> None:
    dim, depth, tokens, hidden = 192, 12, 197, 768
    net = timm.create_model("vit_tiny_patch16_224", num_classes=10).eval()
    attention = 2 * tokens * tokens * dim
    block = tokens * dim * 3 * dim + attention + tokens * dim * dim + 2 * tokens * dim * hidden
    by_hand = 2 * (196 * 768 * dim + depth * block + dim * 10)
    assert flops(net, torch.zeros(1, 3, 224, 224)) == Flops(by_hand, ())


def test_flops_of_our_operator_are_its_formula() -> None:
    conv = DeformConv2d(4, 6, 3, padding=1)
    found = flops(lambda x: conv(x, torch.zeros(1, 18, 8, 8)), torch.zeros(1, 4, 8, 8))
    assert found == Flops(2 * 64 * 9 * (4 * 6 + 4 * 4), ())


def test_an_unknown_operation_is_named() -> None:
    from torchvision.ops import deform_conv2d

    weight = torch.zeros(2, 3, 3, 3)

    def run(x: torch.Tensor) -> torch.Tensor:
        return torch.fft.rfft(deform_conv2d(x, torch.zeros(1, 18, 6, 6), weight)) + F.conv2d(x, weight)[..., :4]

    found = flops(run, torch.zeros(1, 3, 8, 8))
    assert found.counted == 2 * 36 * 2 * 27
    assert found.uncounted == ("aten._fft_r2c", "torchvision.deform_conv2d")


@pytest.mark.parametrize("name", ["densenet121", "efficientnet_b0", "convnext_atto"])
def test_backbones_have_no_unknown_operation(name: str) -> None:
    with torch.device("meta"):
        net, image = timm.create_model(name, num_classes=7).eval(), torch.zeros(1, 3, 64, 64)
    assert flops(net, image).uncounted == ()


def test_parameters_and_what_was_trained() -> None:
    net = nn.Sequential(nn.Linear(10, 4), nn.Linear(4, 2).double())
    net[0].requires_grad_(False)
    cost = training_cost(net, [], 0, 0)
    assert (cost.parameters, cost.trainable_parameters, cost.trained_bytes) == (54, 10, 80)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_peak_memory_sees_what_was_allocated() -> None:
    before = PeakMemory.so_far(CPU).rss
    now = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    block = np.ones(before - now + 2**25, np.uint8)  # with it, more than the process ever had
    assert before + 2**24 <= PeakMemory.so_far(CPU).rss <= before + 2**26
    del block


NET = nn.Linear(2, 1)


def epoch(number: int, **more: float) -> Epoch:
    return Epoch.read(
        {"epoch": number, "train_seconds": 2.0, "wait_seconds": 0.5, "seconds": 3.0, "images": 100, **more}
    )


def test_training_cost_adds_up() -> None:
    found = training_cost(NET, [epoch(1), epoch(2), epoch(3)], best_epoch=2, fit_seconds=0.5)
    assert found.json() == {
        "parameters": 3,
        "trainable_parameters": 3,
        "trained_bytes": 12,
        "epochs": 3,
        "train_seconds": 6.0,
        "data_wait_share": 0.25,
        "fit_seconds": 0.5,
        "seconds": 9.5,
        "seconds_to_best": 6.5,
        "train_images_per_second": 50.0,
    }
    assert training_cost(NET, [], 0, 0.5).train_images_per_second is None


def test_energy_is_reported_only_if_every_epoch_was_measured() -> None:
    both = [epoch(1, package_joules=5.0), epoch(2, package_joules=7.0)]
    assert training_cost(NET, both, 1, 0).package_joules == 12
    assert training_cost(NET, [*both, epoch(3)], 1, 0).package_joules is None


def test_rapl_counters_are_read_summed_and_unwound(tmp_path: Path) -> None:
    def write(zone: str, microjoules: int) -> None:
        (tmp_path / zone).mkdir(exist_ok=True)
        (tmp_path / zone / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("10000000\n")

    for zone, start in (("intel-rapl:0", 9_000_000), ("intel-rapl:0:0", 0), ("intel-rapl:1", 1_000_000)):
        write(zone, start)
    meter = Meter(CPU, tmp_path)
    write("intel-rapl:0", 500_000)  # wrapped around at 10 J
    write("intel-rapl:0:0", 3_000_000)  # part of package 0
    write("intel-rapl:1", 3_000_000)
    assert meter.lap() == pytest.approx({"package_joules": 1.5 + 2.0})
    assert meter.lap() == {"package_joules": 0}
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.lap() == {}


def test_no_counter_no_energy(tmp_path: Path) -> None:
    assert Meter(CPU, tmp_path).lap() == {}
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("not a number")
    assert Meter(CPU, tmp_path).lap() == {}


def test_speed_of_something_whose_time_is_known() -> None:
    """5 ms a call and 1 ms an image: latency 6 ms, and a batch pays until the call's own time is spread thin."""

    def run(images: torch.Tensor) -> None:
        time.sleep(0.005 + 0.001 * len(images))

    found = speed(run, torch.zeros(1, 3, 2, 2))
    latency, throughput = found.latency, found.throughput
    assert 6 <= latency.p50_ms.value < 12
    assert latency.p50_ms.low <= latency.p50_ms.value <= latency.p50_ms.high
    assert latency.p95_ms.value >= latency.p50_ms.value
    batch = throughput.batch
    assert batch >= 8
    assert 0.5 * batch / (0.005 + 0.001 * batch) < throughput.images_per_second <= batch / (0.005 + 0.001 * batch)
    assert throughput.low <= throughput.images_per_second <= throughput.high


def test_a_batch_that_does_not_pay_is_not_taken() -> None:
    found = speed(lambda images: time.sleep(0.002 * len(images) ** 1.3), torch.zeros(1, 3, 2, 2))
    assert found.throughput.batch == 1


def test_a_batch_that_no_longer_fits_is_halved() -> None:
    """Another process took the memory since the size was chosen."""

    def run(images: torch.Tensor) -> None:
        if len(images) > 2:
            raise torch.OutOfMemoryError

    image = torch.zeros(1, 3, 2, 2)
    batch, seconds = inference._throughput(run, image, 8)
    assert batch == 2
    assert len(seconds) >= inference.RUNS
    with pytest.raises(torch.OutOfMemoryError):
        inference._throughput(lambda images: run(torch.zeros(3)), image, 4)


def test_warm_up_is_not_counted() -> None:
    calls: list[float] = []

    def run(images: torch.Tensor) -> None:
        calls.append(0)
        time.sleep(0.05 if len(calls) <= 2 else 0.001)

    assert np.median(timings(run, torch.zeros(1), 0, 10)) < 0.02
    assert len(calls) == 12


@pytest.mark.parametrize("p", [0.5, 0.95])
def test_quantile_interval_covers(p: float) -> None:
    """Exactly: the chance that the bounds' ranks enclose the quantile, by the binomial distribution."""
    n = 120
    value, low, high = quantile(np.arange(1, n + 1.0), p)
    assert value == pytest.approx(1 + p * (n - 1))
    assert low is not None
    assert high is not None
    assert binom.cdf(high - 1, n, p) - binom.cdf(low - 1, n, p) >= 0.95
    assert quantile(np.arange(12.0), 0.95)[2] is None


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((12, 0), True)])
def test_bfloat16_is_in_the_hardware_of_gpus_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert bfloat16_in_hardware(torch.device("cuda")) is expected


def test_machine_state_stands_beside_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "SECONDS", 0.01)
    monkeypatch.setattr(inference, "bfloat16_in_hardware", lambda device: True)
    net = nn.Conv2d(3, 4, 3).eval()
    kinds = []
    found = inference_cost(lambda x: kinds.append(net(x).dtype), torch.zeros(1, 3, 8, 8))
    assert set(found.json()) == {"float32", "bfloat16", "seconds", "threads", "governor", "other_cores_busy"}
    assert found.threads == 1
    assert set(kinds) == {torch.float32, torch.bfloat16}


def test_own_work_is_no_other_load() -> None:
    load = OtherLoad()
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    busy = load.cores_busy()
    assert busy is None or busy >= 0


def test_an_attempt_is_noted_whole_beside_others(tmp_path: Path) -> None:
    """Two runs note one at the same moment, and a disk that is full leaves what was there."""
    folder = TrialFolder(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seconds: folder.note_attempt(seconds, "done"), range(40)))
    assert sorted(attempt.seconds for attempt in folder.attempts()) == list(range(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            folder.note_attempt(1, "done")
    assert len(folder.attempts()) == 40


def test_failed_and_repeated_attempts_are_in_the_total(tmp_path: Path) -> None:
    done, failed, fresh = (TrialFolder(tmp_path / name) for name in ("a", "b", "c"))
    for folder in (done, failed, fresh):
        folder.path.mkdir()
    done.note_attempt(10, "failed")
    done.note_attempt(5.5, "done")
    failed.note_attempt(2, "failed")
    (failed.path / "failure.json").write_text('{"kind": "killed", "error": "x"}')
    assert total_cost([done, failed, fresh]) == TotalCost(trials=3, failed=1, attempts=3, seconds=17.5)
