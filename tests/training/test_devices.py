"""One trial in several processes: the same batches, the same numbers but for the order of sums, and an end with a reason."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lives import live, planned
from torch import nn

from flowers_bench.cli.options import RunOptions, check_devices
from flowers_bench.contract.host import discover
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.executors.devices import run_on_devices
from flowers_bench.executors.local import run_all
from flowers_bench.measure.cost import PeakMemory
from flowers_bench.measure.energy import joules_of_all
from flowers_bench.nn import Output
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.build import Places, build_parts
from flowers_bench.training.distributed import Ranks
from flowers_bench.training.events import EpochFinished, Event, Starting
from flowers_bench.training.loop import Training
from flowers_bench.training.process import Interrupted, prepare_process
from flowers_bench.training.start import start_from_prefix
from flowers_bench.util.errors import UsageError

#: A step is proportional to the gradient, so that a difference in the last digits stays one.
RECIPE = {"optimizer": "sgd", "lr": "0.02", "epochs": "2", "warmup_epochs": "0", "clip_norm": "5"}
EPISODES = {"n_way": "3", "k_shot": "2", "n_query": "3", "episodes_per_epoch": "3", "eval_way": "3"}
#: The toy's 48 training images are no multiple of 14, and neither 14 nor the 6 that are left over is one of 4.
QUICK: dict[str, dict[str, str]] = {
    "transfer/scratch": {"batch_size": "14", "ema_decay": "0.9", "epochs": "1"},
    "toy/plain": {"batch_size": "14", "loss": "triplet", "dropout": "0", "images_per_class": "5"},
    "linear-probe/plain-head": {"batch_size": "14"},
}
WHOLE: dict[str, dict[str, str]] = {
    "transfer/scratch": {"batch_size": "14", "ema_decay": "0.9"},
    "triplet/batch-hard": {"batch_size": "14", "images_per_class": "5"},
    "linear-probe/plain-head": {"batch_size": "14", "augmentation": "fixed-views"},
    "prototypical/euclidean": EPISODES,
    "mixing/random": {"batch_size": "14"},
    "focal-margin/additive": {"batch_size": "14"},
    "transfer/k3": {"batch_size": "14", "precision": "bfloat16", "image_size": "32"},
}


def prepared(tmp_path: Path, name: str, devices: int, **settings: str) -> TrialFolder:
    item = planned(tmp_path, name, **{**RECIPE, **settings})  # type: ignore[arg-type]
    run = replace(item.run, threads=1, devices=devices, command=[])
    return Store(tmp_path / f"on-{devices}").prepare(item.trial, run)


def in_a_process(function: Callable[[], None]) -> None:
    """Of its own, as the executor starts trials: one that has computed nothing yet."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flowers_bench.executors.preload"])
    process = context.Process(target=function)  # type: ignore[attr-defined]
    process.start()
    process.join(200)
    assert process.exitcode == 0


def train(folders: Sequence[TrialFolder], count: int, stop: bool = False) -> None:
    def all_of_them(ranks: Ranks) -> None:
        for folder in folders:
            train_one(folder, ranks, stop)

    try:
        run_on_devices(count, all_of_them)
    except Interrupted:
        assert stop


def train_one(folder: TrialFolder, ranks: Ranks, stop: bool) -> None:
    """Trains, and leaves what this rank's model saw, what targets its loss saw, and what became of the model."""
    run = folder.run()
    place, places = DataPlace.of(run), Places.of(run)
    trial, host = folder.trial(), discover(places.plugins)
    device = prepare_process(run.threads, ranks.count)
    dataset = load_dataset(host, trial, place)
    parts, _ = build_parts(host, trial, places, dataset.class_names, device)
    dataset, _ = start_from_prefix(trial, parts, dataset, place.cache, lambda event: None)
    seen: list[torch.Tensor] = []
    targets: list[torch.Tensor] = []
    criterion = parts.criterion

    def watched(output: Output, target: torch.Tensor) -> torch.Tensor:
        targets.append(target.clone())
        return criterion(output, target)

    parts.criterion = watched
    training = Training(
        trial,
        parts,
        dataset.train,
        dataset.val,
        folder,
        stop_requested=lambda: stop and ranks.is_main,
        ranks=ranks,
    )
    training._forward.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].clone()) if module.training else None
    )
    training.run(lambda record: None)
    left = {"seen": seen, "targets": targets, "history": training.history, "model": parts.model.state_dict()}
    (folder.path / f"rank-{ranks.rank}.pickle").write_bytes(pickle.dumps(left))


def left_by(folder: TrialFolder, rank: int = 0) -> Any:
    return pickle.loads((folder.path / f"rank-{rank}.pickle").read_bytes())


class Pair(NamedTuple):
    """What one process left, and what each of several did."""

    name: str
    alone: Any
    ranks: list[Any]


@pytest.fixture(
    scope="module", params=[(QUICK, 2), *(pytest.param((WHOLE, n), marks=pytest.mark.slow) for n in (2, 4))]
)
def pairs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> list[Pair]:
    """The same trials by one process and by several."""
    cases: Mapping[str, Mapping[str, str]]
    cases, count = request.param
    tmp_path = tmp_path_factory.mktemp("trained")
    folders = {n: [prepared(tmp_path, name, n, **more) for name, more in cases.items()] for n in (1, count)}
    for n, these in folders.items():
        in_a_process(partial(train, these, n))
    return [
        Pair(name, left_by(alone), [left_by(together, rank) for rank in range(count)])
        for name, alone, together in zip(cases, folders[1], folders[count], strict=True)
    ]


def test_each_step_sees_the_batch_of_one_process_once(pairs: list[Pair]) -> None:
    for name, alone, ranks in pairs:
        assert len(alone["seen"]) >= 3, name
        for step, batch in enumerate(alone["seen"]):
            shares = [rank["seen"][step] for rank in ranks]
            assert torch.equal(torch.cat(shares), batch), name
            assert max(map(len, shares)) - min(map(len, shares)) <= 1, name
            for rank in ranks:
                assert torch.equal(rank["targets"][step], alone["targets"][step]), name


def test_the_model_becomes_that_of_one_process(pairs: list[Pair]) -> None:
    for name, alone, ranks in pairs:
        loose = {"rtol": 2e-2, "atol": 1e-2} if name == "transfer/k3" else {"rtol": 1e-3, "atol": 2e-5}
        for key, value in alone["model"].items():
            torch.testing.assert_close(
                ranks[0]["model"][key], value, **loose, msg=lambda text, at=f"{name} {key}": f"{at}: {text}"
            )
        for one, other in zip(alone["history"], ranks[0]["history"], strict=True):
            for key in ("epoch", "images", "train_loss", "val_top1", "val_nll", "train_top1_clean"):
                assert getattr(other, key) == pytest.approx(getattr(one, key), abs=loose["atol"] * 5), (name, key)


def test_interrupted_on_two_devices_and_continued_on_one(tmp_path: Path) -> None:
    settings = {"batch_size": "14", "image_size": "16", "dropout": "0", "epochs": "3"}
    alone, moved = (prepared(tmp_path, "toy/plain", n, **settings) for n in (1, 2))
    in_a_process(partial(train, [alone], 1))
    in_a_process(partial(train, [moved], 2, stop=True))
    assert not (moved.path / "rank-0.pickle").exists()
    assert (moved.path / "checkpoint.pt").exists()
    in_a_process(partial(train, [moved], 1))
    expected, found = left_by(alone), left_by(moved)
    assert len(found["seen"]) == len(expected["seen"]) * 2 // 3
    assert [record.epoch for record in found["history"]] == [1, 2, 3]
    for key, value in expected["model"].items():
        torch.testing.assert_close(found["model"][key], value, rtol=1e-3, atol=2e-5)


def the_trial_and_its_ranks(folder: TrialFolder) -> list[psutil.Process]:
    """The process that holds the trial's lock, and those that it forked."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if any(Path(file.path) == folder.path / ".lock" for file in process.open_files()):
                return [process, *sorted(process.children(), key=lambda child: child.pid)]
    raise AssertionError("the trial does not run")


def all_end(processes: list[psutil.Process]) -> bool:
    """Within five seconds."""
    for _ in range(50):
        if not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        (0, "its process was killed by SIGKILL"),
        pytest.param(1, "device 0 was killed by SIGKILL", marks=pytest.mark.slow),
        (2, "device 1 was killed by SIGKILL"),
    ],
)
def test_a_process_that_dies_ends_the_trial_with_the_reason(tmp_path: Path, victim: int, reason: str) -> None:
    folder = prepared(tmp_path, "toy/plain", 2, epochs="10000", image_size="16")
    processes: list[psutil.Process] = []
    ports: list[Any] = []

    def kill(of: TrialFolder, event: Event) -> None:
        if isinstance(event, EpochFinished) and event.record.epoch == 2:
            processes.extend(the_trial_and_its_ranks(folder))
            ports.extend(port for process in processes for port in process.net_connections("inet"))
            processes[victim].kill()

    (outcome,) = run_all([folder], kill, timeout=100)
    assert (outcome.state, outcome.kind) == ("failed", "killed")
    assert reason in outcome.reason
    assert (folder.path / "checkpoint.pt").exists()
    assert len(processes) == 3
    assert all_end(processes)
    assert ports
    assert {port.laddr.ip for port in ports} <= {"127.0.0.1", "::1"}


@pytest.mark.slow
def test_a_whole_life_on_two_devices(tmp_path: Path) -> None:
    settings = {**RECIPE, "epochs": "3", "dropout": "0"}
    alone = live(tmp_path, "toy/plain", store="alone", **settings)
    item = planned(tmp_path, "toy/plain", **settings)  # type: ignore[arg-type]
    together = Store(tmp_path / "together").prepare(
        item.trial, replace(item.run, threads=2, devices=2, command=[]), item.labels
    )
    assert together.id == alone.id
    events: list[type] = []
    (outcome,) = run_all([together], lambda folder, event: events.append(type(event)), timeout=200)
    assert outcome.state == "done"
    assert events.count(EpochFinished) == events.count(Starting) * 3 == 3
    one, other = (np.stack(list(folder.predictions()["logits"])) for folder in (alone, together))
    np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-4)
    found, expected = together.result(), alone.result()
    assert found.test.top1 == expected.test.top1
    assert (expected.hardware.devices, found.hardware.devices) == (1, 2)
    assert found.hardware.threads == 1
    assert found.cost.peak_rss_bytes > 0
    assert len(together.history()) == 3
    assert sorted(path.name for path in together.path.iterdir() if not path.name.startswith(".")) == sorted(
        [*(path.name for path in alone.path.iterdir() if not path.name.startswith(".")), "attempts.jsonl", "log.txt"]
    )


@pytest.mark.slow
def test_an_interrupt_lets_all_finish_their_epoch(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "toy/plain", 2, epochs="6")

    def interrupt(of: TrialFolder, event: Event) -> None:
        if isinstance(event, EpochFinished) and event.record.epoch == 2:
            os.kill(os.getpid(), signal.SIGINT)

    (outcome,) = run_all([folder], interrupt, timeout=100)
    assert outcome.state == "interrupted"
    assert 2 <= len(folder.history()) < 6
    (outcome,) = run_all([folder], lambda *event: None, timeout=100)
    assert outcome.state == "done"
    assert [record.epoch for record in folder.history()] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_said_once(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "toy/explode", 2)
    (outcome,) = run_all([folder], lambda *event: None, timeout=100)
    assert outcome.state == "failed"
    assert outcome.untrainable
    assert outcome.reason.startswith("the loss is nan at epoch 1, step 1 of")


@pytest.mark.slow
def test_a_plugin_that_raises_on_one_device_is_named(tmp_path: Path) -> None:
    plugin = tmp_path / "half.py"
    plugin.write_text(HALF)
    item = planned(tmp_path, "half", files=[plugin], image_size="16")
    folder = Store(tmp_path / "runs").prepare(
        item.trial, replace(item.run, threads=1, devices=2, command=[]), item.labels
    )
    (outcome,) = run_all([folder], lambda *event: None, timeout=100)
    assert outcome.state == "failed"
    assert outcome.kind == "crash"
    assert "on device 1: RuntimeError: only here" in outcome.reason


HALF = """
from flowers_bench import Augmentation, Recipe, Technique, Variant, hookimpl


def build(context):
    from torch import nn
    from torch import distributed
    from flowers_bench.nn import Output

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, context.num_classes)

        def forward(self, images):
            if self.training and distributed.is_initialized() and distributed.get_rank() == 1:
                raise RuntimeError("only here")
            embedding = images.mean((2, 3))
            return Output(self.fc(embedding), embedding)

    return Net()


@hookimpl
def register_models():
    from flowers_bench import Model

    return [Model("half-net", "raises on one device", build=build)]


@hookimpl
def register_techniques():
    recipe = Recipe(epochs=1, batch_size=16, image_size=16)
    parts = {"model": "half-net", "loss": "cross-entropy", "augmentation": "standard"}
    return [Technique("half", "for a test", (), **parts, recipe=recipe, variants={"it": Variant("it")}, default="it")]
"""


@given(st.integers(1, 300), st.integers(1, 20))
def test_shares_are_a_batch_in_order_and_equal_within_one_image(images: int, count: int) -> None:
    shares = [list(range(images))[Ranks(rank, count).share(images)] for rank in range(count)]
    if images < count:
        assert shares == [list(range(images))] * count
        return
    assert [row for share in shares for row in share] == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


class Centres(nn.Module):
    """A loss with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(4, 5, dtype=torch.float64))

    def forward(self, output: Output, target: torch.Tensor) -> torch.Tensor:
        return (output.embedding - self.centres[target]).square().sum(1).amax()


class Net(nn.Module):
    """Every kind of batch norm, with and without weights and statistics, and a branch that nothing comes of."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.BatchNorm2d(6, affine=False, momentum=None),
            nn.Flatten(),
        )
        self.last = nn.Sequential(nn.Linear(54, 5), nn.BatchNorm1d(5, track_running_stats=False))
        self.unused = nn.Linear(2, 2)
        self.double()

    def forward(self, images: torch.Tensor) -> Output:
        embedding = self.last(self.net(images))
        return Output(embedding[:, :0], embedding)


def one_step(images: int, device: str, path: Path, ranks: Ranks) -> None:
    net, loss = Net().to(device), Centres().to(device)
    batch = torch.randn(images, 3, 5, 5, dtype=torch.float64).to(device)
    target = (torch.arange(images) % 4).to(device)
    for _ in range(2):
        mine = batch[ranks.share(images)].clone().requires_grad_()
        output = ranks.forward(net, mine, images, seed=ranks.rank)
        assert output.logits.shape == (images, 0)
        net.zero_grad()
        loss.zero_grad()
        loss(output, target).backward()
        ranks.all_reduce_gradients(images, net, list(loss.parameters()))
    found = {
        **{name: p.grad for name, p in (*net.named_parameters(), *loss.named_parameters()) if p.grad is not None},
        **dict(net.named_buffers()),
        "draws": torch.rand(3),
    }
    torch.save(found, path / f"{ranks.count}-{ranks.rank}.pt")


def step_on(images: int, device: str, path: Path, count: int) -> None:
    run_on_devices(count, partial(one_step, images, device, path))


@pytest.mark.parametrize(
    ("images", "device", "count"),
    [
        (7, "cpu", 3),
        pytest.param(2, "cpu", 3, marks=pytest.mark.slow),
        pytest.param(7, "cuda", 2, marks=pytest.mark.gpu),
    ],
)
def test_gradients_and_statistics_are_those_of_the_whole_batch(
    tmp_path: Path, images: int, device: str, count: int
) -> None:
    if device == "cuda" and torch.cuda.device_count() < count:
        pytest.skip("needs two GPUs")
    for number in (1, count):
        in_a_process(partial(step_on, images, device, tmp_path, number))
    alone = torch.load(tmp_path / "1-0.pt", "cpu")
    ranks = [torch.load(tmp_path / f"{count}-{rank}.pt", "cpu") for rank in range(count)]
    assert "centres" in alone
    assert "unused.weight" not in alone
    for rank in ranks:
        assert rank.keys() == alone.keys()
        for key, value in alone.items():
            torch.testing.assert_close(rank[key], value, rtol=1e-9, atol=1e-9)
            assert torch.equal(rank[key], ranks[0][key])


def test_what_cannot_be_divided_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = partial(RunOptions.parse, plugin="toy", seeds=1, devices=2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    check_devices(asked(jobs=1))
    with pytest.raises(UsageError, match="--jobs gives this machine to several trials"):
        check_devices(asked(jobs=2))
    with pytest.raises(UsageError, match="--devices is for one machine"):
        check_devices(asked(jobs=1, executor="ray"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Little GPU")
    with pytest.raises(UsageError, match=r"--devices 2: 1 visible here \(Little GPU\)"):
        check_devices(asked(jobs=1))
    toy = Path(__file__).parents[1] / "toy.py"
    request = Request(["toy/plain"], "toy", tmp_path, 1, devices=17)
    with pytest.raises(UsageError, match="batches of 16 images cannot be divided"):
        plan(discover([toy]), request, [toy])


def test_what_several_processes_cost() -> None:
    assert PeakMemory.of_all([PeakMemory(3, None)]) == PeakMemory(3, None)
    assert PeakMemory.of_all([PeakMemory(3, 5), PeakMemory(4, 2)]) == PeakMemory(7, 5)
    assert joules_of_all([{"package_joules": 3.0}, {"package_joules": 3.5}]) == {"package_joules": 3.0}
    assert joules_of_all([{"package_joules": 3.0, "gpu_joules": 1.0}, {"gpu_joules": 2.0}]) == {
        "package_joules": 3.0,
        "gpu_joules": 3.0,
    }
    assert joules_of_all([{"gpu_joules": 1.0}, {}]) == {}
