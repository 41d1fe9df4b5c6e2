"""Steps of plugins: the host's seeds, rates, ranks and clipping under them, and the same bits after a kill."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lives import TOY, ignore, live, planned
from safetensors.torch import load_file
from torch import nn

from flowers_bench.contract.host import discover
from flowers_bench.contract.technique import Recipe
from flowers_bench.data.reopen import DataPlace, load_dataset
from flowers_bench.executors.devices import run_on_devices
from flowers_bench.executors.local import run_all
from flowers_bench.nn import Output
from flowers_bench.plan.planning import plan
from flowers_bench.plan.request import Request
from flowers_bench.store.folder import Store, TrialFolder
from flowers_bench.training.build import Places, build_parts
from flowers_bench.training.distributed import ALONE, Ranks
from flowers_bench.training.events import EpochFinished, Event
from flowers_bench.training.loop import Training
from flowers_bench.training.losses import Losses
from flowers_bench.training.optimizer import build_optimizer
from flowers_bench.training.process import Interrupted, prepare_process
from flowers_bench.training.start import start_from_prefix
from flowers_bench.training.steps import Images, Trained, TrainingBatch
from flowers_bench.training.trained import load_trained
from flowers_bench.util.errors import TrialFailed, UsageError

OWN = Path(__file__).parents[1] / "own_steps.py"


def prepared(tmp_path: Path, name: str, store: str = "runs", devices: int = 1, **asked: Any) -> TrialFolder:
    item = planned(tmp_path, name, files=[OWN], **asked)
    run = replace(item.run, threads=1, devices=devices, command=[])
    return Store(tmp_path / store).prepare(item.trial, run, item.labels)


def training_of(folder: TrialFolder, ranks: Ranks = ALONE, **how: Any) -> Training:
    trial, run, host = folder.trial(), folder.run(), discover([TOY, OWN])
    device = prepare_process(run.threads, ranks.count)
    dataset = load_dataset(host, trial, DataPlace.of(run))
    parts, _ = build_parts(host, trial, Places.of(run), dataset.class_names, device)
    dataset, _ = start_from_prefix(trial, parts, dataset, DataPlace.of(run).cache, ignore)
    return Training(
        trial, parts, dataset.train, dataset.val, folder, ignore, ranks=ranks, unlabelled=dataset.unlabelled, **how
    )


def left(training: Training) -> dict[str, torch.Tensor]:
    """What was trained, of model, loss and step."""
    parts = [training.parts.model, training.parts.criterion, training.parts.step]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    torch.use_deterministic_algorithms(False)
    return {f"{i} {k}": v.clone() for i, module in enumerate(modules) for k, v in module.state_dict().items()}


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("step", ["own-usual", "with-images"])
def test_the_usual_step_written_by_a_plugin_gives_the_usual_bits(tmp_path: Path, step: str) -> None:
    usual = training_of(prepared(tmp_path, "own/plain"))
    usual.run(ignore)
    own = training_of(prepared(tmp_path, "own/plain", step=step))
    own.run(ignore)
    assert usual.trial.id != own.trial.id
    assert_equal(left(usual), left(own))
    assert [record.train_loss for record in usual.history] == [record.train_loss for record in own.history]


def test_the_usual_step_is_not_named_in_a_trial(tmp_path: Path) -> None:
    usual = planned(tmp_path, "toy/plain").trial
    assert "step" not in usual.facts()
    sharp = planned(tmp_path, "toy/plain", step="sharp", files=[OWN]).trial
    assert sharp.facts()["step"] == "sharp"
    assert sharp.options["rho"] == 0.05
    assert sharp.code.keys() == {"toy", "own_steps", "augmentation standard"}
    assert prepared(tmp_path, "own/sharp").trial().step == "sharp"


class Small(nn.Module):
    """Two layers in float64, whose sizes a reference can repeat."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 5), nn.Linear(5, 4)
        self.double()

    def forward(self, images: torch.Tensor) -> Output:
        embedding = torch.tanh(self.first(images.mean((2, 3))))
        return Output(self.last(embedding), embedding)


def batch_of(model: nn.Module, criterion: Any, recipe: Recipe, images: torch.Tensor, targets: torch.Tensor) -> Any:
    optimizer = build_optimizer(recipe, model, criterion)
    optimizer.param_groups[0]["lr"] = recipe.lr
    trained = Trained(model, criterion, None, model, False, recipe, optimizer, None, ALONE, torch.no_grad, 0)
    trained = replace(trained, autocast=torch.enable_grad)
    return TrainingBatch(trained, images, targets, len(images), Images(images), (1, 0, 1))


def test_sharp_is_sharpness_aware_minimisation() -> None:
    torch.manual_seed(0)
    model = Small()
    images, targets = torch.randn(6, 3, 2, 2, dtype=torch.float64), torch.arange(6) % 4
    before = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    recipe = Recipe(optimizer="sgd", lr=0.5, weight_decay=0.0)
    step = discover([TOY, OWN]).steps["sharp"].value

    def loss_at(at: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(model, at, (images,)).logits, targets)

    gradient = torch.autograd.grad(loss_at(before), list(before.values()))
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    there = {
        k: p.detach().add(0.05 * g / norm).requires_grad_() for (k, p), g in zip(before.items(), gradient, strict=True)
    }
    sharp = torch.autograd.grad(loss_at(there), list(there.values()))
    # Nesterov's first step, of momentum 0.9, goes 1.9 times as far.
    expected = {k: p.detach() - 0.5 * 1.9 * g for (k, p), g in zip(before.items(), sharp, strict=True)}

    from flowers_bench import StepContext

    run = step.build(StepContext(["a"] * 4, 5, 2, {"rho": 0.05}, model))
    batch = batch_of(model, lambda output, target: F.cross_entropy(output.logits, target), recipe, images, targets)
    run(batch)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), expected[name])
    plain = [p.detach() - 0.5 * 1.9 * g for p, g in zip(before.values(), gradient, strict=True)]
    assert not torch.allclose(plain[0], expected["first.weight"], rtol=1e-4)


def test_clipping_counts_the_parameters_of_the_loss() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.full((4,), 3.0, dtype=torch.float64))

        def forward(self, output: Output, target: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(output.logits * self.scale, target)

    torch.manual_seed(0)
    model, criterion = Small(), Scaled()
    images, targets = torch.randn(6, 3, 2, 2, dtype=torch.float64), torch.arange(6) % 4
    batch = batch_of(model, criterion, Recipe(lr=1e-9, clip_norm=1e-3), images, targets)
    batch.backward(batch.loss())
    assert sum(p.grad.square().sum() for p in batch.parameters) > 1e-3
    assert len(batch.parameters) == 5
    batch.update()
    norm = torch.cat([p.grad.flatten() for p in [*model.parameters(), criterion.scale]]).norm()
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_a_loss_of_others_that_is_clipped_has_another_id(tmp_path: Path) -> None:
    item = planned(tmp_path, "own/twins", files=[OWN], clip_norm="1")
    assert item.trial.code["clipping"] == "revision 2"
    assert "clipping" not in planned(tmp_path, "own/twins", files=[OWN]).trial.code
    assert "clipping" not in planned(tmp_path, "own/plain", files=[OWN], clip_norm="1").trial.code


def test_a_step_that_denies_to_read_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="uses_images=False"):
        training_of(prepared(tmp_path, "own/plain", step="liar")).run(ignore)


@pytest.mark.parametrize("name", ["toy/plain", "own/sharp", "own/four"])
def test_losses_that_are_read_late_give_the_same_bits(tmp_path: Path, name: str) -> None:
    """As on a GPU, with one loss a step, two, or four with an update each."""
    early, late = (training_of(prepared(tmp_path, name, store)) for store in ("early", "late"))
    object.__setattr__(late._trained, "losses", Losses(late=True))
    for training in (early, late):
        training.run(ignore)
    assert_equal(left(early), left(late))
    assert [record.train_loss for record in early.history] == [record.train_loss for record in late.history]


def test_a_loss_that_is_not_finite_ends_the_trial(tmp_path: Path) -> None:
    with pytest.raises(TrialFailed, match=r"the loss is nan at epoch 1, step 1 of 3.*--set lr="):
        training_of(prepared(tmp_path, "toy/explode", step="four")).run(ignore)


#: Each with what it is asked for.
CASES: dict[str, dict[str, Any]] = {
    "own/sharp": {},
    "own/four": {"ema_decay": "0.9"},
    "own/learned": {},
    "own/both": {"shots": 6},
    "own/twins": {"clip_norm": "0.5"},
    "own/thawing": {},
    "toy/plain": {"optimizer": "heavy-ball", "schedule": "linear", "epochs": "3"},
}


@pytest.mark.parametrize("name", list(CASES))
def test_interrupted_and_continued_is_bit_equal(tmp_path: Path, name: str) -> None:
    calm = training_of(prepared(tmp_path, name, **CASES[name]))
    calm.run(ignore)
    folder = prepared(tmp_path, name, "disturbed", **CASES[name])
    for _ in range(2):
        with pytest.raises(Interrupted):
            training_of(folder, stop_requested=lambda: True).run(ignore)
    resumed = training_of(folder)
    resumed.run(ignore)
    assert_equal(left(calm), left(resumed))
    assert [r.val_nll for r in calm.history] == [r.val_nll for r in resumed.history]
    assert [r.train_loss for r in calm.history] == [r.train_loss for r in resumed.history]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["own/learned", "own/both", "own/thawing"])
def test_killed_and_run_again_is_bit_equal(tmp_path: Path, name: str) -> None:
    asked = {**CASES[name], "epochs": "8"}
    calm, struck = (prepared(tmp_path, name, store, **asked) for store in ("calm", "struck"))
    run_all([calm], ignore, timeout=120)
    rng, kills = random.Random(0), 0
    for _ in range(20):
        after = rng.randint(1, 6)

        def kill(folder: TrialFolder, event: Event, after: int = after) -> None:
            if isinstance(event, EpochFinished) and event.record.epoch >= after:
                import psutil

                for process in psutil.Process().children(recursive=True):
                    if any(Path(file.path).parent == folder.path for file in process.open_files()):
                        process.kill()

        (end,) = run_all([struck], kill, timeout=120)
        kills += "SIGKILL" in end.reason
        if end.state == "done":
            break
    run_all([struck], ignore, timeout=120)
    assert kills
    tables = [np.stack(list(folder.predictions()["logits"])).tobytes() for folder in (calm, struck)]
    assert tables[0] == tables[1]


def train_on(folders: Sequence[TrialFolder], count: int) -> None:
    def all_of_them(ranks: Ranks) -> None:
        for folder in folders:
            training = training_of(folder, ranks)
            training.run(ignore)
            torch.save([left(training), [r.train_loss for r in training.history]], folder.path / f"{ranks.rank}.pt")

    run_on_devices(count, all_of_them)


def in_a_process(function: Any) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flowers_bench.executors.preload"])
    process = context.Process(target=function)  # type: ignore[attr-defined]
    process.start()
    process.join(200)
    assert process.exitcode == 0


def test_two_ranks_agree_with_one(tmp_path: Path) -> None:
    """The toy's 48 images are no multiple of 14; of one image, or of 3 unlabelled ones, nothing is divided."""
    recipe = {"optimizer": "sgd", "lr": "0.02", "warmup_epochs": "0", "epochs": "2", "batch_size": "14"}
    whole = {name: {**recipe, **more, "dropout": "0"} for name, more in CASES.items() if name.startswith("own/")}
    del whole["own/thawing"]["dropout"]
    folders = {n: [prepared(tmp_path, name, f"on-{n}", n, **more) for name, more in whole.items()] for n in (1, 2)}
    for count, these in folders.items():
        in_a_process(partial(train_on, these, count))
    for name, alone, together in zip(whole, folders[1], folders[2], strict=True):
        expected, losses = torch.load(alone.path / "0.pt")
        found = [torch.load(together.path / f"{rank}.pt") for rank in range(2)]
        assert found[0][1] == pytest.approx(losses, rel=1e-3), name
        for key, value in expected.items():
            torch.testing.assert_close(
                found[0][0][key], value, rtol=2e-3, atol=5e-5, msg=lambda t, at=f"{name} {key}": f"{at}: {t}"
            )


def test_unlabelled_images_are_those_that_shots_leave_out(tmp_path: Path) -> None:
    folder = prepared(tmp_path, "own/both", shots=6)
    assert folder.config().dataset.n_unlabelled == 24
    assert "n_unlabelled" not in planned(tmp_path, "own/plain", files=[OWN], shots=6).trial.dataset
    training = training_of(folder)
    rows = training._unlabelled_rows(1, [16, 8])
    assert [len(part) for part in rows] == [32, 16]
    assert np.bincount(np.concatenate(rows)).tolist() == [2] * 24  # each had its turn twice
    labelled = {training.train.images[i].numpy().tobytes() for i in range(len(training.train))}
    others = {training.unlabelled[i].numpy().tobytes() for i in range(24)}
    assert len(others) == 24
    assert not labelled & others
    with pytest.raises(
        UsageError, match=r"step 'both' learns from images without labels, and toy has none. Give --shots K"
    ):
        planned(tmp_path, "own/both", files=[OWN])


def test_labelled_images_are_drawn_alike_with_and_without_unlabelled_ones(tmp_path: Path) -> None:
    seen = []
    for step in ("own-usual", "both"):
        training = training_of(prepared(tmp_path, "own/both", shots=6, step=step))
        seen.append([drawn.images for drawn in training._draw_all(1, training._chosen(1, training._batches(1)))])
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one, other)


def test_a_need_of_a_second_view_is_refused_where_there_is_none(tmp_path: Path) -> None:
    for how in ({"loss": "twins"}, {"step": "both", "shots": 6}):
        with pytest.raises(UsageError, match="needs second_view, which augmentation 'standard' does not provide"):
            planned(tmp_path, "own/plain", files=[OWN], **how)


def test_what_unfreezes_later_is_left_alone_until_then(tmp_path: Path) -> None:
    training = training_of(prepared(tmp_path, "own/thawing", weight_decay="0.1"))
    first = [training._model.first.weight.detach().clone()]
    training.run(lambda record: first.append(training._model.first.weight.detach().clone()))
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    optimized = {id(p) for group in training._optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for p in training._model.parameters()}


def test_what_changes_with_the_epoch_is_loaded_as_it_was_in_the_best_one(tmp_path: Path) -> None:
    folder = live(tmp_path, "own/thawing", files=[OWN])
    result = folder.result()
    assert result.cost.prefix_cache["reason"] == "what is frozen may change with the epoch"
    parts = load_trained(folder, torch.device("cpu"), [TOY, OWN])
    assert parts.model.scale == 1 + result.best_epoch / 3
    table = folder.predictions()
    rows = table[table["split"] == "test"]
    dataset = load_dataset(discover([TOY, OWN]), folder.trial(), DataPlace.of(folder.run()))
    logits = parts.evaluator.fit(parts.model, dataset.train)(dataset.test.images).logits
    assert logits == pytest.approx(np.stack(list(rows["logits"])), rel=1e-4, abs=1e-5)


def test_frozen_layers_are_computed_once_unless_the_step_reads_images(tmp_path: Path) -> None:
    for step, expected in (("sharp", True), ("with-images", False)):
        folder = live(
            tmp_path,
            "linear-probe/plain-head",
            step=step,
            augmentation="none",
            files=[OWN],
            epochs="1",
            warmup_epochs="0",
        )
        assert folder.result().cost.prefix_cache["training"] is expected
        assert load_file(next(folder.path.glob("*.safetensors")))


def test_optimisers_and_schedules_of_plugins_and_of_timm(tmp_path: Path) -> None:
    training = training_of(prepared(tmp_path, "toy/plain", optimizer="heavy-ball", schedule="linear", ball="0.7"))
    assert training._optimizer.param_groups[0]["momentum"] == 0.7
    assert training.trial.options["ball"] == 0.7
    assert training.trial.code.keys() == {"toy", "own_steps", "augmentation standard"}
    assert training.parts.schedule.factor(0.25, training.trial.recipe) == 0.75
    assert type(training_of(prepared(tmp_path, "toy/plain", optimizer="lamb"))._optimizer).__name__ == "Lamb"
    hill = planned(tmp_path, "toy/plain", files=[OWN], schedule="hill").trial.recipe
    assert hill.warmup_epochs == 0
    for settings, words in (
        ({"optimizer": "adamx"}, "unknown optimizer 'adamx'. Did you mean 'adam"),
        ({"optimizer": "adahessian"}, "second derivatives"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'. Did you mean 'cosine'"),
        ({"schedule": "hill", "warmup_epochs": "1"}, "schedule 'hill' warms up by itself"),
    ):
        with pytest.raises(UsageError, match=words):
            planned(tmp_path, "toy/plain", files=[OWN], **settings)


def test_a_setting_leaves_alone_the_baseline_that_it_would_change(tmp_path: Path) -> None:
    files = [TOY, OWN]
    host = discover(files)

    def rho(*names: str, **settings: str) -> dict[str, Any]:
        request = Request(list(names), "toy", tmp_path, 1, settings={"image_size": "16", **settings})
        return {item.label: item.trial.options.get("rho") for item in plan(host, request, files)}

    with pytest.raises(UsageError, match="this is what own/sharp, own/flat differ by"):
        rho("own/sharp", "own/flat", rho="0.3")
    assert rho("own/flat", rho="0.3") == {"own/flat": 0.3}
    request = Request(
        ["prompt-tuning"],
        "petals",
        tmp_path,
        1,
        "test_vit",
        "none",
        settings={"prompt_length": "3", "image_size": "32", "data.species": "4"},
    )
    lengths = {item.labels[0].variant: item.trial.options["prompt_length"] for item in plan(host, request, files)}
    assert lengths == {"deep": 3, "frozen": 0}
