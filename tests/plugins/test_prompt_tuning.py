"""prompt-tuning: what prompts do to a network, and what they leave alone."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from built import CLASSES, build, host
from torch import Tensor

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench_plugins.prompt_tuning import LENGTHS

# Class token; registers and averaging; registers and attention pooling; class token, registers and averaging.
TRANSFORMERS = ["test_vit", "test_vit2", "test_vit3", "test_vit4"]


@pytest.mark.parametrize("backbone", [*TRANSFORMERS, "vit_small_patch14_dinov2"])
@pytest.mark.parametrize("deep", [False, True])
def test_without_prompts_it_is_the_plain_network(backbone: str, deep: bool) -> None:
    size = 28 if "patch14" in backbone else 32
    built = build("prompt-tuning", backbone=backbone, image_size=size, options={"prompt_length": 0, "deep": deep})
    plain = timm.create_model(backbone, num_classes=CLASSES, img_size=size)
    plain.load_state_dict({k: v for k, v in built.model.backbone.state_dict().items() if k != "blocks.prompts"})
    plain.requires_grad_(
        False
    )  # torch's matmul takes another path, with other last bits, where a weight has a gradient
    with torch.inference_mode():
        assert torch.equal(built.model.eval()(built.images).logits, plain.eval()(built.images))


def _by_hand(vit: torch.nn.Module, images: Tensor, prompts: Tensor) -> Tensor:
    """Equations 4-8 written out: prompts after the prefix, dropped before the norm."""
    tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
    prefix, length = vit.num_prefix_tokens, prompts.shape[1]
    for index, block in enumerate(vit.blocks.children()):
        if index == 0:
            row = [torch.cat([t[:prefix], prompts[0], t[prefix:]]) for t in tokens]
        elif len(prompts) > 1:
            row = [torch.cat([t[:prefix], prompts[index], t[prefix + length :]]) for t in tokens]
        else:
            row = list(tokens)
        tokens = block(torch.stack(row))
    kept = torch.cat([tokens[:, :prefix], tokens[:, prefix + length :]], dim=1)
    logits: Tensor = vit.forward_head(vit.norm(kept))
    return logits


@pytest.mark.parametrize("backbone", TRANSFORMERS)
@pytest.mark.parametrize("deep", [False, True])
def test_prompts_are_the_papers_equations(backbone: str, deep: bool) -> None:
    built = build("prompt-tuning", backbone=backbone, options={"prompt_length": 3, "deep": deep})
    vit = built.model.eval().backbone
    assert len(vit.blocks.prompts) == (len(vit.blocks) if deep else 1)
    with torch.inference_mode():
        found = built.model(built.images).logits
        expected = _by_hand(vit, built.images, vit.blocks.prompts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("backbone", TRANSFORMERS)
def test_prompts_reach_every_image_and_are_bounded_at_the_start(backbone: str) -> None:
    built = build("prompt-tuning", "p5", backbone=backbone)
    blocks = built.model.eval().backbone.blocks
    assert blocks.prompts.abs().max() <= math.sqrt(6 / (3 * 16 * 16 + blocks.prompts.shape[-1]))
    with torch.inference_mode():
        before = built.model(built.images).embedding
        blocks.prompts.normal_()
        after = built.model(built.images).embedding
    assert (before != after).any(1).all()


@pytest.mark.parametrize("variant", ["deep", "p10"])
def test_prompts_and_classifier_are_all_that_is_trained(variant: str) -> None:
    built = build("prompt-tuning", variant)
    assert built.trainable() == {"backbone.blocks.prompts", "backbone.head.weight", "backbone.head.bias"}
    prompts = built.model.backbone.blocks.prompts
    count = sum(p.numel() for p in built.model.parameters() if p.requires_grad)
    assert count == prompts.numel() + 64 * CLASSES + CLASSES
    assert prompts.shape == (6 if variant == "deep" else 1, 10, 64)


@pytest.mark.parametrize("length", LENGTHS)
def test_every_length_of_the_sweep_is_a_variant(length: int) -> None:
    technique = host().techniques["prompt-tuning"].value
    assert technique.variants[f"p{length}"].options["prompt_length"] == length


@pytest.mark.parametrize("backbone", ["test_resnet", "test_convnext", "deit_tiny_distilled_patch16_224"])
def test_other_backbones_are_refused(backbone: str) -> None:
    model = host().models["prompted"].value
    context = ModelContext(Backbone(backbone, Weights(), CLASSES, 224), CLASSES, 224, model.option_values({}))
    with torch.device("meta"), pytest.raises(UsageError, match="is not a vision transformer"):
        model.build(context)


def test_images_of_another_size_than_the_networks_own() -> None:
    built = build("prompt-tuning", "p5", image_size=64)
    with torch.inference_mode():
        assert built.model.eval()(built.images).logits.shape == (2 * CLASSES, CLASSES)


def test_the_baseline_trains_the_classifier_alone() -> None:
    built = build("prompt-tuning", "frozen")
    before = built.model.backbone.head.weight.clone()
    for optimizer in ("sgd", "adamw", "adam"):
        losses = built.train(2, optimizer)
        assert all(math.isfinite(loss) for loss in losses)
    assert not torch.equal(before, built.model.backbone.head.weight)
    assert sum(p.numel() for p in built.model.parameters() if p.requires_grad) == 64 * CLASSES + CLASSES
