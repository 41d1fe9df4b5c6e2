"""multiscale-vgg: block and attention against their equations, and what of the backbone is kept and trained."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from built import CLASSES, build, host
from timm.layers import SEModule
from timm.models.vgg import VGG
from torch import nn

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench.nn import train_mode
from flowers_bench_plugins.multiscale_vgg.layers import keep_features, multiscale_block

CNNS = ["test_resnet", "test_efficientnet", "test_convnext"]


def test_the_block_starts_as_the_identity() -> None:
    features = torch.randn(2, 8, 5, 5)
    assert torch.equal(multiscale_block(8)(features), features)


def test_the_block_is_its_equation() -> None:
    torch.manual_seed(0)
    block = multiscale_block(8).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter)
    features = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    parallel, mix, last = block.inner
    seen = []
    for size, (conv, norm, _) in zip((1, 3, 5), parallel.branches, strict=True):
        assert conv.weight.shape == (2, 8, size, size)
        # A convolution by hand: unfold the neighbourhoods, multiply.
        patches = F.unfold(features, size, padding=size // 2)
        response = (conv.weight.flatten(1) @ patches).view(2, 2, 5, 5)
        scaled = response / (1 + norm.eps) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]
        seen.append(scaled.clamp_min(0))
    mixed = torch.einsum("nchw,oc->nohw", torch.cat(seen, 1), mix.weight.flatten(1))
    expected = features + mixed / (1 + last.eps) ** 0.5 * last.weight[:, None, None] + last.bias[:, None, None]
    torch.testing.assert_close(block(features), expected)


def test_attention_weighs_channels_by_the_images_averages() -> None:
    torch.manual_seed(0)
    module = SEModule(16).double()
    features = torch.randn(2, 16, 3, 3, dtype=torch.float64)
    hidden = F.relu(features.mean((2, 3)) @ module.fc1.weight.flatten(1).T + module.fc1.bias)
    gate = torch.sigmoid(hidden @ module.fc2.weight.flatten(1).T + module.fc2.bias)
    torch.testing.assert_close(module(features), features * gate[:, :, None, None])


@pytest.mark.parametrize("backbone", CNNS)
def test_the_backbones_features_are_kept_and_its_head_is_not(backbone: str) -> None:
    built = build("multiscale-vgg", "head", backbone=backbone, image_size=64)
    plain = timm.create_model(backbone, num_classes=CLASSES)
    kept = built.model.backbone.state_dict()
    left = plain.load_state_dict(kept, strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith(("fc.", "head.", "classifier.")) for name in left.missing_keys)
    with torch.inference_mode():
        found = built.model.eval().backbone.forward_features(built.images)
        assert torch.equal(found, plain.eval().forward_features(built.images))


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_keeps_its_convolutions_alone(name: str) -> None:
    with torch.device("meta"):
        vgg = timm.create_model(name, num_classes=CLASSES)
        assert keep_features(vgg, 224) == 512
    assert {key.split(".")[0] for key in vgg.state_dict()} == {"features"}
    assert sum(p.ndim == 4 for p in vgg.parameters()) == 13


@pytest.mark.parametrize(
    ("variant", "block", "attention"),
    [("both", True, True), ("block", True, False), ("attention", False, True), ("head", False, False)],
)
def test_variants_have_what_they_say(variant: str, block: bool, attention: bool) -> None:
    model = build("multiscale-vgg", variant, backbone="test_resnet", image_size=64).model
    sizes = sorted(m.kernel_size[0] for m in model.extension.modules() if isinstance(m, nn.Conv2d) and m.bias is None)
    assert sizes == ([1, 1, 3, 5] if block else [])
    assert any(isinstance(m, SEModule) for m in model.modules()) == attention


def test_frozen_backbone_stays_and_the_rest_is_trained() -> None:
    built = build("multiscale-vgg", "frozen-features", backbone="test_resnet", image_size=64)
    assert built.trainable() == {n for n, _ in built.model.named_parameters() if not n.startswith("backbone.")}


def test_a_resnets_frozen_baseline_trains_its_last_layer() -> None:
    built = build("multiscale-vgg", "frozen", backbone="test_resnet", image_size=64)
    assert built.trainable() == {"backbone.fc.weight", "backbone.fc.bias"}


@pytest.mark.parametrize("variant", ["frozen", "full"])
def test_plain_vgg_is_torchvisions_classifier_and_all(variant: str) -> None:
    technique = host().techniques["multiscale-vgg"].value
    model = host().models[technique.variants[variant].model].value
    options = model.option_values(technique.variants[variant].options)
    with torch.device("meta"):
        theirs = torchvision.models.vgg16(num_classes=102)
        ours = model.build(ModelContext(Backbone("vgg16", Weights(), 102, 224), 102, 224, options))
    theirs.features.requires_grad_(variant == "full")
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert trained[0] == trained[1]
    dropped = [[m.p for m in net.modules() if isinstance(m, nn.Dropout)] for net in (ours, theirs)]
    assert dropped[0] == dropped[1] == [0.5, 0.5]
    assert trained[0] == {"frozen": 119_963_750, "full": 134_678_438}[variant]


class _TinyVgg:
    """In the place of a `Backbone`: VGG with one convolution and thin hidden layers."""

    def create(self) -> nn.Module:
        model = VGG([4, "M"], num_classes=CLASSES, mlp_ratio=0.01)
        model.default_cfg = {"classifier": "head.fc"}
        return model


def test_a_frozen_vggs_hidden_layers_learn_and_drop_while_it_trains() -> None:
    model = host().models["plain-cnn"].value.build(ModelContext(_TinyVgg(), CLASSES, 32, {"freeze": -1}))
    trained = {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {"pre_logits", "head"}
    train_mode(model)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert not torch.equal(model(images).logits, model(images).logits)
        assert torch.equal(*(model.eval()(images).logits for _ in range(2)))


@pytest.mark.parametrize("backbone", ["test_resnet", "test_efficientnet"])
def test_another_cnns_plain_baseline_is_that_network(backbone: str) -> None:
    built = build("multiscale-vgg", "full", backbone=backbone, image_size=64)
    plain = timm.create_model(backbone, num_classes=CLASSES)
    plain.load_state_dict(built.model.backbone.state_dict())
    train_mode(built.model)
    with torch.no_grad():
        assert torch.equal(built.model(built.images).logits, plain.train()(built.images))


@pytest.mark.parametrize("backbone", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_backbones_without_a_feature_map_are_refused(backbone: str) -> None:
    model = host().models["multiscale"].value
    context = ModelContext(Backbone(backbone, Weights(), CLASSES, 224), CLASSES, 224, model.option_values({}))
    with torch.device("meta"), pytest.raises(UsageError, match="no feature map"):
        model.build(context)
