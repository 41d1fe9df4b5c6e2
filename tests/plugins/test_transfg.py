"""transfg: which patches are chosen and what becomes of them, head by head with timm's own attention; the contrast as a double loop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from built import CLASSES, build, host
from torch import Tensor, nn

from flowers_bench import ModelContext, UsageError
from flowers_bench.models.backbones import Backbone
from flowers_bench.models.weights import Weights
from flowers_bench_plugins.transfg.layers import attention_of
from flowers_bench_plugins.transfg.loss import contrast


def of(technique: str, backbone: str = "test_vit", size: int = 64) -> Any:
    model: Any = build("transfg", technique, backbone, image_size=size).model.double().eval()
    return model


def timms_attention(block: Any, tokens: Tensor) -> Tensor:
    """What timm's unfused attention multiplies the values by, seen through values that are unit vectors."""
    attention = block.attn
    attention.fused_attn = False
    seen: list[Tensor] = []
    handle = attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    attention(block.norm1(tokens))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    "backbone", ["test_vit", "test_vit2", "vit_tiny_patch16_224", "vit_little_patch16_reg4_gap_256"]
)
def test_attention_is_timms(backbone: str) -> None:
    torch.manual_seed(0)
    network: Any = Backbone(backbone, Weights(), CLASSES, 64).create().double().eval()
    tokens = torch.randn(2, 9, network.embed_dim, dtype=torch.float64)
    for block in network.blocks[:2]:
        torch.testing.assert_close(attention_of(block, tokens), timms_attention(block, tokens))


def test_the_last_block_sees_the_patches_that_were_looked_at() -> None:
    torch.manual_seed(1)
    model = of("transfg")
    vit = model.backbone
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for block in vit.blocks:
            block.attn.qkv.weight.mul_(8)  # heads that look at different places
        output = model(images)
        tokens = vit.norm_pre(vit._pos_embed(vit.patch_embed(images)))
        maps = []
        *before, last = list(vit.blocks)
        for block in before:
            maps.append(timms_attention(block, tokens).numpy())
            tokens = block(tokens)
        places = set()
        for image in range(3):
            chosen = []
            for head in range(vit.blocks[0].attn.num_heads):
                product = np.eye(tokens.shape[1])
                for one in maps:
                    product = one[image, head] @ product
                chosen.append(1 + int(product[0, 1:].argmax()))
            places |= set(chosen)
            seen = torch.stack([tokens[image, place] for place in (0, *chosen)])[None]
            vector = vit.norm(last(seen))[:, 0]
            torch.testing.assert_close(output.embedding[image : image + 1], vector)
            torch.testing.assert_close(output.logits[image : image + 1], vit.head(vector))
    assert len(places) > 2


def test_choosing_passes_no_gradient_and_everything_else_gets_one() -> None:
    built = build("transfg", backbone="test_vit", image_size=64)
    built.criterion(built.model.train()(built.images), built.labels).backward()
    assert all(p.grad is not None and bool(p.grad.count_nonzero()) for p in built.model.parameters())


def test_the_contrast_is_the_papers_sum() -> None:
    torch.manual_seed(0)
    embedding, labels = torch.randn(6, 4, dtype=torch.float64), [0, 1, 1, 2, 0, 1]
    vectors = embedding.numpy()
    total = 0.0
    for i in range(6):
        for j in range(6):
            s = vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j])
            total += 1 - s if labels[i] == labels[j] else max(s - 0.4, 0)
    assert contrast(embedding, torch.tensor(labels), 0.4).item() == pytest.approx(total / 36, rel=1e-9)


def test_it_learns() -> None:
    losses = build("transfg", backbone="test_vit", image_size=64).train(15)
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("backbone", ["vit_base_patch16_siglip_gap_224", "test_resnet"])
def test_others_are_refused(backbone: str) -> None:
    part = host().models["selected-parts"].value
    context = ModelContext(Backbone(backbone, Weights(), CLASSES, 64), CLASSES, 64, part.option_values({}))
    with torch.device("meta"), pytest.raises(UsageError, match=r"class token|not a vision transformer"):
        part.build(context)


def test_its_blocks_keep_their_names() -> None:
    plain = Backbone("test_vit", Weights(), CLASSES, 64).create()
    ours: nn.Module = of("transfg").backbone
    assert list(ours.state_dict()) == list(plain.state_dict())
