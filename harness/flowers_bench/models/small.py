"""`petals_vit`: a vision transformer that learns images of 64 pixels in minutes, known to timm once this is imported.

timm's own tiny transformers cut an image into patches of 16 pixels, of which 64 pixels have 16; they learn drawn flowers slowly.
This one sees 64 patches through three strided convolutions instead of one projection (Xiao et al. 2021, "Early convolutions
help transformers see better", arXiv:2106.14881), and is timm's `VisionTransformer` in all else.
"""

from __future__ import annotations

import itertools
from typing import Any

from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

default_cfgs = generate_default_cfgs(
    {
        "petals_vit.untrained": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 64, 64),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj.0",
            "classifier": "head",
        }
    }
)


class ConvStem(PatchEmbed):  # type: ignore[misc]
    """Embed patches of 8 pixels by three 3x3 convolutions of stride 2: images (N, 3, S, S) to tokens (N, (S / 8)^2, D)."""

    def __init__(self, *args: Any, in_chans: int = 3, embed_dim: int = 64, **kwargs: Any) -> None:
        super().__init__(*args, in_chans=in_chans, embed_dim=embed_dim, **kwargs)
        widths = (in_chans, embed_dim // 4, embed_dim // 2)
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.GELU()]
        self.proj = nn.Sequential(*layers, nn.Conv2d(widths[-1], embed_dim, 3, 2, 1))


@register_model  # type: ignore[untyped-decorator]
def petals_vit(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Build the transformer: 6 blocks of 64 channels and 2 heads, 0.3 million parameters."""
    shape = {"img_size": 64, "patch_size": 8, "embed_dim": 64, "depth": 6, "num_heads": 2, "embed_layer": ConvStem}
    model: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        "petals_vit",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": 3, "feature_cls": "getter"},
        **{**shape, **kwargs},
    )
    return model
