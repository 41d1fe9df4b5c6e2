"""`petals_vit`: timm knows it, it is a plain vision transformer, and takes images of any size that eight divides."""

from __future__ import annotations

import pytest
import torch

from flowers_bench.models.backbones import check_backbone, check_image_size, stages, vision_transformer
from flowers_bench.models.network import bare_network, size_argument, timm_with_small_networks, usual_size
from flowers_bench.util.errors import UsageError


@pytest.mark.parametrize("size", [64, 96])
def test_it_gives_scores_at_any_size(size: int) -> None:
    model = timm_with_small_networks().create_model("petals_vit", num_classes=5, **size_argument("petals_vit", size))
    assert vision_transformer(model.eval())(torch.zeros(2, 3, size, size)).shape == (2, 5)
    assert model.pos_embed.shape == (1, 1 + (size // 8) ** 2, 64)


def test_its_parts_are_named_as_those_of_timms_transformers() -> None:
    network = bare_network("petals_vit", 64)
    assert network.classifier == ("head",)
    assert [stage.name for stage in stages(network.model)] == [f"blocks.{i}" for i in range(6)]
    assert sum(p.numel() for p in network.model.parameters()) < 0.35e6
    assert usual_size("petals_vit") == 64


def test_it_is_checked_like_any_other() -> None:
    check_backbone("petals_vit")
    check_image_size("petals_vit", 64)
    with pytest.raises(UsageError, match="image_size=60"):
        check_image_size("petals_vit", 60)
