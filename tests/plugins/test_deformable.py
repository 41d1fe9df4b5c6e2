"""The deformable technique: at the first step it computes what the plain network computes, and it learns from there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from flowers_bench import ModelContext, UsageError
from flowers_bench.contract.pictures import FigureContext
from flowers_bench.data.pixels import Normalizer
from flowers_bench.models.backbones import Backbone, stages
from flowers_bench.models.weights import Weights
from flowers_bench.nn import Classifier, train_mode
from flowers_bench.ops import OffsetDeformConv2d
from flowers_bench.training.optimizer import build_optimizer
from flowers_bench_plugins.deformable import (
    build_deformable,
    draw_sampling,
    register_models,
    register_techniques,
    replace_convolutions,
)

CNNS = ["resnet10t", "mobilenetv2_035", "test_efficientnet", "regnetx_002"]


def context(name: str, **options: object) -> ModelContext:
    torch.manual_seed(0)
    given = {"stages": "3", "modulated": True, "freeze_earlier": False, **options}
    return ModelContext(Backbone(name, Weights(), 5, 64), 5, 64, given)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize("name", CNNS)
def test_first_step_is_the_plain_network(name: str, modulated: bool) -> None:
    """STUDY.md, defect 9: zero offsets, mask 1 and the inherited weight make it the plain convolution."""
    deformable = build_deformable(context(name, modulated=modulated)).double().eval()
    plain = Classifier(context(name).backbone.create()).double().eval()
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected, found = plain(images), deformable(images)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.embedding, expected.embedding, rtol=1e-9, atol=1e-9)


def test_exactly_the_3x3_convolutions_of_the_stage_are_replaced() -> None:
    backbone = context("resnet18").backbone.create()
    replaced = replace_convolutions(backbone, 3, modulated=True)
    assert replaced == ["layer3.0.conv1", "layer3.0.conv2", "layer3.1.conv1", "layer3.1.conv2"]
    found = [n for n, m in backbone.named_modules() if isinstance(m, OffsetDeformConv2d)]
    assert found == replaced
    assert backbone.get_submodule("layer3.0.downsample.0").kernel_size == (1, 1)


@pytest.mark.parametrize(
    ("name", "stages", "words"),
    [
        ("resnet10t", "9", "no stage 9"),
        ("resnet10t", "3,9", "no stage 9"),
        ("test_vit", "1", "no 3x3 convolution"),
        *(("resnet10t", text, "such as 3 or 2,3,4") for text in ("", "0", "-1", "2,", "2;3", "two", "1e1", "2" * 5000)),
    ],
)
def test_what_does_not_fit_is_refused(name: str, stages: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        build_deformable(context(name, stages=stages))


def test_several_stages_are_replaced_and_those_before_them_frozen() -> None:
    model = build_deformable(context("resnet18", stages="4, 2,3", freeze_earlier=True))
    found = [n.split(".")[1] for n, m in model.named_modules() if isinstance(m, OffsetDeformConv2d)]
    assert found == ["layer2"] * 4 + ["layer3"] * 4 + ["layer4"] * 4
    frozen = {n.split(".")[1] for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}


def test_a_stored_trial_has_the_former_name_of_the_option() -> None:
    (model,) = register_models()
    assert model.option_values({"stage": 4})["stages"] == "4"
    assert model.option_values({"stages": "2,3", "stage": 4})["stages"] == "2,3"


def one_step(model: nn.Module, steps: int = 3) -> list[float]:
    technique = register_techniques()[0]
    optimizer = build_optimizer(technique.recipe.changed(lr="0.003"), model, None)
    torch.manual_seed(1)
    images, labels = torch.randn(6, 3, 64, 64), torch.arange(6) % 5
    losses = []
    for _ in range(steps):
        train_mode(model)
        loss = nn.functional.cross_entropy(model(images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_offsets_learn_at_their_own_rate_and_everything_gets_a_gradient() -> None:
    model = build_deformable(context("resnet10t"))
    optimizer = build_optimizer(register_techniques()[0].recipe, model, None)
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert scale[id(parameter)] == (0.1 if "offset_conv" in name else 1.0), name
    one_step(
        model, 3
    )  # residual branches end in a batch norm that starts at zero: nothing reaches them in the first step
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    moved = [m.offset_conv.weight.abs().max() for m in model.modules() if isinstance(m, OffsetDeformConv2d)]
    assert all(value > 0 for value in moved)


def test_offsets_of_v1_learn_at_the_full_rate() -> None:
    technique = register_techniques()[0]
    recipe = technique.recipe.changed(**technique.variants["stage3-v1"].recipe)
    groups = build_optimizer(recipe, build_deformable(context("resnet10t", modulated=False)), None).param_groups
    assert {group["lr_scale"] for group in groups} == {1.0}


def test_earlier_stages_stay_bit_equal_when_frozen() -> None:
    model = build_deformable(context("test_resnet", freeze_earlier=True))
    frozen = tuple(f"backbone.{m}." for s in stages(model.backbone)[:2] for m in s.modules)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    one_step(model)
    for name, value in model.state_dict().items():
        if name.startswith(frozen):
            assert torch.equal(before[name], value), name
    assert not torch.equal(before["backbone.fc.weight"], model.state_dict()["backbone.fc.weight"])


def test_the_sampling_picture_is_drawn(tmp_path: Path) -> None:
    model = build_deformable(context("test_resnet")).eval()
    layer = [m for m in model.modules() if isinstance(m, OffsetDeformConv2d)][-1]
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8)
    normalize = Normalizer((0.5,) * 3, (0.5,) * 3, torch.device("cpu"))
    names = ["$odd_{name}", "<b>", "plain"]
    draw_sampling(FigureContext(model, images, [0, 1, 2], names, normalize), layer, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
