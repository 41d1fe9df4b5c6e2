"""Features of a network that is not trained, and which of a transformer's tokens they are made of.

Paper: Oquab et al. 2024, "DINOv2: learning robust visual features without supervision" (arXiv:2304.07193), appendix B.3: a
linear evaluation that looks at the class token of the last block or of the last four, with or without the mean of the
patch tokens. With LN the network's last norm, c_b and E_b the class and patch tokens behind block b of B:

    pooled        what the network itself gives to its classifier
    class         LN(c_B)
    class-mean    [LN(c_B), mean of LN(E_B)]
    last4         [LN(c_B-3), LN(c_B-2), LN(c_B-1), LN(c_B)]
    last4-mean    [LN(c_B-3), LN(c_B-2), LN(c_B-1), LN(c_B), mean of LN(E_B)]

Nothing here is a technique: `gaussian-head` and `ridge` are fitted to these features, and `--predictor` fits any other to them.

What differs from the paper: the authors choose among the four on validation data, by linear classifiers that are trained
by SGD; here it is an option (`--set tokens=`), and chosen so by `--search`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, UsageError, hookimpl

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import nn

#: How many blocks' class tokens are taken, and whether the mean of the patches joins them.
TOKENS = {"class": (1, False), "class-mean": (1, True), "last4": (4, False), "last4-mean": (4, True)}
POOLED = "pooled"


def build_frozen_features(context: ModelContext) -> nn.Module:
    """Build the frozen backbone without its classifier. Raises `UsageError` where tokens are asked of a network without a
    class token."""
    from torch import nn

    from flowers_bench.backbones import replace_classifier, vision_transformer
    from flowers_bench.nn import Embedder, freeze
    from flowers_bench_plugins.frozen_features.layers import OfTokens

    backbone = context.backbone.create()
    chosen = context.options.text("tokens")
    replace_classifier(backbone, lambda features, classes: nn.Identity())
    if chosen != POOLED:
        transformer = vision_transformer(backbone)
        blocks, mean = TOKENS[chosen]
        _refuse_without_tokens(transformer, blocks, context)
        backbone = OfTokens(transformer, blocks, mean)
    freeze(backbone)
    return Embedder(backbone)


def _refuse_without_tokens(transformer: VisionTransformer, blocks: int, context: ModelContext) -> None:
    lacks = "a class token" if transformer.cls_token is None else f"{blocks} blocks"
    if transformer.cls_token is None or len(transformer.blocks) < blocks:
        raise UsageError(
            f"tokens={context.options.text('tokens')}: backbone {context.backbone.name} does not have {lacks}. "
            f"Say --set tokens={POOLED}."
        )


@hookimpl
def register_models() -> list[Model]:
    tokens = (POOLED, *TOKENS)
    return [
        Model(
            "frozen-features",
            "any timm backbone without a classifier, frozen; of a transformer with a choice of tokens",
            options={"tokens": Option(POOLED, "which tokens make the feature", choices=tokens, search=tokens)},
            build=build_frozen_features,
            provides=frozenset({"embedding"}),
        )
    ]
