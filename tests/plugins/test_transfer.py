"""The transfer technique, and initial weights: loaded, reported, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone, stages
from flowers_bench.models.weights import Weights
from flowers_bench.models.weights.files import read_tensors
from flowers_bench.models.weights.source import resolve_weights
from flowers_bench_plugins.common import build_classifier
from flowers_bench_plugins.transfer import register_techniques


def saved(path: Path, classes: int = 7) -> Path:
    torch.manual_seed(5)
    state = timm.create_model("test_resnet", num_classes=classes).state_dict()
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


@pytest.mark.parametrize("extension", [".pth", ".safetensors"])
def test_weights_from_a_file_are_all_but_the_classifier(tmp_path: Path, extension: str) -> None:
    path = saved(tmp_path / f"w{extension}")
    backbone = Backbone("test_resnet", resolve_weights(str(path), "test_resnet")[0], 3, 64)
    torch.manual_seed(0)
    model = backbone.create()
    source = read_tensors(path)
    for name, value in model.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, source[name]), name
    assert model.state_dict()["fc.weight"].shape[0] == 3
    assert backbone.report.missing == ()
    assert backbone.report.classifier == "initialised afresh"
    assert backbone.report.loaded == len(source) - 2


def test_a_classifier_of_the_same_size_is_not_taken_over(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", classes=3)
    model = Backbone("test_resnet", resolve_weights(str(path), "test_resnet")[0], 3, 64).create()
    assert not torch.equal(model.state_dict()["fc.weight"], read_tensors(path)["fc.weight"])


@pytest.mark.parametrize(("asked", "words"), [("nope.pth", "no such file"), ("not_a_tag", "timm has no such weights")])
def test_unknown_weights_are_refused(asked: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        resolve_weights(asked, "resnet18")


@pytest.mark.parametrize("freeze", [0, 2, -1])
def test_what_is_trained(freeze: int) -> None:
    context = ModelContext(Backbone("test_resnet", Weights(), 3, 64), 3, 64, {"freeze": freeze})
    model = build_classifier(context)
    assert isinstance(model.backbone, nn.Module)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    found = stages(model.backbone)
    frozen = found if freeze == -1 else found[:freeze]
    untouched = {f"backbone.{m}." for stage in frozen for m in stage.modules}
    assert {"backbone.fc.weight", "backbone.fc.bias"} <= trained
    assert not any(name.startswith(tuple(untouched)) for name in trained) or not untouched
    if freeze == -1:
        assert trained == {"backbone.fc.weight", "backbone.fc.bias"}


def test_every_k_of_the_study_is_a_variant() -> None:
    (technique,) = register_techniques()
    assert {"scratch", "k0", "k1", "k2", "k3", "k4"} <= set(technique.variants)
    for name, variant in technique.variants.items():
        assert variant.baseline is None or variant.baseline in technique.variants, name


def test_real_weights_load_whole(shared: Path) -> None:
    for name, file in (
        ("mobilenetv2_100", "mobilenetv2_100.pth"),
        ("tf_efficientnet_lite0", "tf_efficientnet_lite0.pth"),
    ):
        path = shared / "weights" / file
        backbone = Backbone(name, resolve_weights(str(path), name)[0], 102, 64)
        backbone.create()
        assert backbone.report.missing == ()
        assert backbone.report.unexpected == ()


def test_real_vision_transformer_is_resampled(shared: Path) -> None:
    path = shared / "weights" / "vit_small_patch14_dinov2.focus.fp16.safetensors"
    backbone = Backbone("vit_small_patch14_dinov2", resolve_weights(str(path), "vit_small_patch14_dinov2")[0], 17, 112)
    model = backbone.create()
    assert model.pos_embed.shape[1] == 64 + 1
    assert backbone.report.missing == ()
