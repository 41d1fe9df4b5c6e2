"""bfloat16: losses never see it, and where it cannot be trusted, a trial says so and does not train."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lives import ignore, live, planned, training_of
from torch import Tensor, nn

from flowers_bench.nn import Output
from flowers_bench.store.folder import Store
from flowers_bench.training.precision import refuse_undefined_gradients
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
