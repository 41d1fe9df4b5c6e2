"""Precisions: losses and what is measured never see them, and where one cannot be had or trusted, a trial says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lives import TOY, ignore, live, planned, training_of
from torch import Tensor, nn

from flowers_bench.nn import Output
from flowers_bench.store.folder import Store
from flowers_bench.store.identity import Trial, trial_from_config
from flowers_bench.training.loop import Training
from flowers_bench.training.precision import refuse_undefined_gradients, refuse_unsupported, tf32_products
from flowers_bench.util.errors import UsageError


def strided(kernel: int = 3, stride: int = 2, train: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, kernel, stride, kernel // 2).requires_grad_(train))


@pytest.mark.parametrize(
    ("model", "side", "refused"),
    [
        (strided(), 1, True),
        (strided(stride=3), 2, True),
        (strided(), 2, False),
        (strided(kernel=1), 1, False),
        (strided(stride=1), 1, False),
        (strided(train=False), 1, False),
    ],
)
def test_strides_over_less_than_a_stride_are_refused(model: nn.Module, side: int, refused: bool) -> None:
    image = torch.zeros(1, 3, side, side)
    refuse_undefined_gradients(model, image, "float32")
    if refused:
        with pytest.raises(UsageError, match=r"precision=bfloat16: 0 would stride.*larger image_size"):
            refuse_undefined_gradients(model, image, "bfloat16")
    else:
        refuse_undefined_gradients(model, image, "bfloat16")
    assert not model[0]._forward_pre_hooks  # type: ignore[index]


@pytest.mark.parametrize(("stride", "side"), [(2, 2), (2, 3), (3, 3), (1, 1)])
def test_what_is_not_refused_has_the_gradient_of_float32(stride: int, side: int) -> None:
    torch.manual_seed(0)
    layer, images = nn.Conv2d(16, 32, 3, stride, 1, bias=False), torch.randn(8, 16, side, side)
    found = []
    for precise in (True, False):
        layer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=not precise):
            output = layer(images)
        output.float().square().sum().backward()
        assert layer.weight.grad is not None
        found.append(layer.weight.grad.clone())
    assert torch.allclose(found[1], found[0], atol=0.05 * float(found[0].abs().max()))


def test_a_trial_says_so_before_it_trains(tmp_path: Path) -> None:
    settings = {
        "precision": "bfloat16",
        "augmentation": "none",
        "epochs": "1",
        "warmup_epochs": "0",
        "batch_size": "16",
    }
    with pytest.raises(UsageError, match=r"backbone\.layer4\.0\.conv1"):
        live(tmp_path, "transfer/k2", **settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("focal-margin/focal", {}),
        ("triplet/batch-hard", {"batch_size": "8", "images_per_class": "4"}),
        ("prototypical/euclidean", {"n_way": "2", "k_shot": "2", "n_query": "2", "eval_way": "2"}),
    ],
)
def test_losses_get_float32_outside_of_autocast(tmp_path: Path, name: str, settings: dict[str, str]) -> None:
    settings = {"precision": "bfloat16", "image_size": "32", "epochs": "1", "warmup_epochs": "0", **settings}
    item = planned(tmp_path, name, **settings)
    folder = Store(tmp_path / "runs").prepare(item.trial, replace(item.run, threads=1, command=[]), item.labels)
    training, given, seen = training_of(folder), [], []
    model, criterion = training.parts.model, training.parts.criterion
    model.register_forward_hook(lambda module, images, output: given.append(output.logits.dtype))

    def watched(output: Output, target: Tensor) -> Tensor:
        seen.append((output.logits.dtype, output.embedding.dtype, torch.is_autocast_enabled("cpu")))
        return criterion(output, target)

    object.__setattr__(training._trained, "criterion", watched)
    training.run(ignore)
    assert torch.bfloat16 in given
    assert set(seen) == {(torch.float32, torch.float32, False)}
    torch.use_deterministic_algorithms(False)


def test_only_what_is_narrow_is_widened() -> None:
    output = Output(torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, 4, dtype=torch.float64))
    wide = output.widened()
    assert (wide.logits.dtype, wide.embedding.dtype, wide.teacher) == (torch.float32, torch.float64, None)


def tf32() -> tuple[str, ...]:
    """What a GPU would be told of its products now."""
    cudnn: Any = torch.backends.cudnn
    return tuple(place.fp32_precision for place in (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn))


def test_tf32_is_left_as_it_was_found() -> None:
    torch.backends.cudnn.allow_tf32 = False
    before = tf32()
    assert "tf32" not in before
    seen: set[str] = set()

    def fail() -> None:
        seen.update(tf32())
        raise ValueError("meant")

    with pytest.raises(ValueError, match="meant"), tf32_products():
        fail()
    assert seen == {"tf32"}
    assert tf32() == before
    # Who reads torch's older settings is not told that they contradict the newer ones.
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (False, False)


@pytest.mark.parametrize(
    ("device", "cuda", "capability", "why"),
    [
        ("cpu", "13.0", None, "this computes on cpu"),
        ("mps", None, None, "this computes on mps"),
        ("cuda", "13.0", (7, 5), "this one has 7.5"),
        ("cuda", None, (9, 4), "another maker's"),
        ("cuda", "13.0", (8, 0), None),
        ("cuda", "13.0", (12, 0), None),
    ],
)
def test_tf32_is_refused_where_nothing_multiplies_in_it(
    device: str, cuda: str | None, capability: tuple[int, int], why: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    for precision in ("float32", "bfloat16"):
        refuse_unsupported(precision, torch.device(device))
    if why is None:
        refuse_unsupported("tf32", torch.device(device))
    else:
        with pytest.raises(UsageError, match=rf"precision=tf32: .*{why}.*--set precision=float32"):
            refuse_unsupported("tf32", torch.device(device))


def test_a_trial_does_not_train_in_float32_instead(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="precision=tf32"):
        live(tmp_path, "toy/plain", precision="tf32", run={"device": "cpu"})


def test_the_command_says_so_in_one_line(flowers_bench: Any, tmp_path: Path) -> None:
    asked = ("--plugin", f"{TOY},toy/plain", "--data", "toy", "--seeds", "1", "--device", "cpu")
    done = flowers_bench(*asked, "--set", "precision=tf32", "--store", str(tmp_path / "runs"))
    assert done.returncode == 2
    assert "precision=tf32: only NVIDIA GPUs" in done.stderr
    assert "trained in tf32" in done.stderr
    assert "Traceback" not in done.stderr


def training_in(tmp_path: Path, name: str = "toy/plain", **settings: str) -> Training:
    item = planned(tmp_path, name, **{"epochs": "1", "warmup_epochs": "0", **settings})
    return training_of(Store(tmp_path / "runs").prepare(item.trial, replace(item.run, command=[]), item.labels))


def test_tf32_is_for_passes_and_not_for_losses_updates_or_measuring(tmp_path: Path) -> None:
    """A processor does not heed the setting, so that the trial runs here, and shows when it is set."""
    torch.backends.cudnn.allow_tf32 = False
    training, seen = training_in(tmp_path, precision="tf32"), set()
    model, criterion = training.parts.model, training.parts.criterion

    def see(what: str) -> None:
        seen.add((what, "tf32" in tf32()))

    def watched(output: Output, target: Tensor) -> Tensor:
        see("loss")
        return criterion(output, target)

    model.register_forward_pre_hook(lambda module, images: see("training" if module.training else "measuring"))
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: see("gradient"))
    assert training._optimizer is not None
    training._optimizer.register_step_pre_hook(lambda *_: see("update"))
    object.__setattr__(training._trained, "criterion", watched)
    training.run(ignore)
    on, off = {"training", "gradient"}, {"loss", "update", "measuring"}
    assert seen == {(what, True) for what in on} | {(what, False) for what in off}


@pytest.mark.parametrize(("asked", "expected"), [("float32", torch.float32), ("training", torch.bfloat16)])
def test_epochs_are_measured_in_the_precision_that_is_asked_for(
    tmp_path: Path, asked: str, expected: torch.dtype
) -> None:
    training = training_in(tmp_path, precision="bfloat16", validation_precision=asked)
    measured: list[torch.dtype] = []
    training.parts.model.body.register_forward_hook(  # type: ignore[union-attr]
        lambda module, images, output: None if module.training else measured.append(output.dtype)
    )
    training.run(ignore)
    assert set(measured) == {expected}
    torch.use_deterministic_algorithms(False)


def test_what_is_reported_is_measured_in_float32(tmp_path: Path) -> None:
    """The logits of the record are those that a float32 pass gives for the weights, to the bit."""
    settings = {"precision": "bfloat16", "validation_precision": "training"}
    folder = live(tmp_path, "toy/plain", **settings)
    table, training = folder.predictions(), training_of(folder)
    training._load_best(folder.weights())
    model = training.parts.model.eval()
    with torch.inference_mode():
        batch = torch.stack([training.val.images[i] for i in range(len(training.val.images))])
        logits = model(training.parts.normalize(batch)).logits
        with torch.autocast("cpu", torch.bfloat16):
            other = model(training.parts.normalize(batch)).logits.float()
    kept = torch.tensor(np.stack(list(table[table["split"] == "val"]["logits"])))
    torch.testing.assert_close(kept, logits, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(kept, other, rtol=1e-5, atol=1e-6)
    assert folder.result().hardware.trained_in == "bfloat16"


def test_stored_activations_are_used_whatever_epochs_are_measured_in(tmp_path: Path) -> None:
    asked = {"augmentation": "none", "freeze": "2", "image_size": "32", "epochs": "1", "warmup_epochs": "0"}
    folder = live(tmp_path, "transfer/k2", precision="bfloat16", validation_precision="training", **asked)
    used: Any = folder.result().cost.prefix_cache
    assert used["bytes"] > 0
    assert "computed_batch_sizes" not in used


def test_only_trials_that_choose_otherwise_have_other_ids(tmp_path: Path) -> None:
    def of(**settings: str) -> Trial:
        return planned(tmp_path, "toy/plain", **settings).trial

    plain, narrow = of(), of(precision="bfloat16")
    assert "validation_precision" not in {**plain.recipe.facts(), **narrow.recipe.facts()}
    assert of(validation_precision="float32").id == of(validation_precision="training").id == plain.id
    chosen = of(precision="bfloat16", validation_precision="training")
    assert len({plain.id, narrow.id, chosen.id, of(precision="tf32").id}) == 4
    assert trial_from_config({**chosen.facts(), "id": chosen.id}).recipe == chosen.recipe
