"""Low-rank adaptation: the transformer's weights stay, and learn an update of few numbers beside them.

Paper: Hu et al. 2021, "LoRA: low-rank adaptation of large language models" (arXiv:2106.09685), equation 3:

    h = W x + (alpha / r) B A x        A is r x in, B is out x r; only A and B are trained

A starts random and B at zero, so the first step is the plain network. Afterwards W + (alpha / r) B A can be written
into W (`LowRank.merged` in `layers.py`): unlike prompts, the trained network costs nothing extra.

The paper adapts the attention's query and value projections (its table 5: better than one of them at twice the rank).
timm computes query, key and value by one linear layer; its three thirds are adapted each by an A and a B of their own,
as if they were three layers. The classifier, which is new, is trained in full; everything else is frozen.

What differs from the paper: the paper says that A starts Gaussian, its library (loralib) draws it as a linear layer's
weight, uniform within +-1 / sqrt(in); so it is here. alpha is twice the rank in every variant, so that a rank changes
nothing else; the paper sets it to the first rank tried, or to a constant. Its models are of language, trained by AdamW
with linear decay, some with dropout before A; here it is a cosine and no dropout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn

# Which thirds of the fused query-key-value layer get an update, and whether the output projection does.
TARGETS = {"qv": ((0, 2), False), "qkv": ((0, 1, 2), False), "qkvo": ((0, 1, 2), True)}


def build_lora(context: ModelContext) -> nn.Module:
    """Build a frozen VisionTransformer with low-rank updates in every attention and a trainable classifier. Raises
    `UsageError` for any other kind of backbone, or attention."""
    from flowers_bench.backbones import train_only_classifier, vision_transformer
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.lora.layers import adapt_attention

    backbone = vision_transformer(context.backbone.create())
    train_only_classifier(backbone)
    options = context.options
    thirds, output = TARGETS[options.text("targets")]
    adapt_attention(backbone.blocks, options.integer("rank"), options.number("lora_alpha"), thirds, output)
    return Classifier(backbone)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "lora",
            "a frozen vision transformer with low-rank updates in its attention",
            needs=frozenset({"tokens"}),
            options={
                "rank": Option(8, "r, the rank of each update", minimum=1, maximum=1024, search=(2, 32)),
                "lora_alpha": Option(
                    16.0, "the update's scale, which is divided by the rank", minimum=0, maximum=10000
                ),
                "targets": Option("qv", "which projections: query, key, value, output", choices=tuple(TARGETS)),
            },
            build=build_lora,
            revision=2,  # A starts as in loralib; in revision 1 it was normal, with three times the variance
            provides=frozenset({"logits", "embedding", "tokens"}),
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="lora",
            summary="low-rank updates of a frozen vision transformer's attention",
            papers=("Hu et al. 2021, LoRA: low-rank adaptation of large language models, arXiv:2106.09685",),
            model="lora",
            loss="cross-entropy",
            augmentation="standard",
            # The paper trains language models by AdamW with rates of 2e-4 to 5e-4 and warm-up. Its decay is linear, not a cosine.
            recipe=Recipe(optimizer="adamw", lr=5e-4, weight_decay=0.01, warmup_epochs=2, epochs=30, batch_size=32),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={
                "qv": Variant("rank 8 on query and value, as in the paper", baseline="frozen"),
                "qkvo": Variant(
                    "rank 8 on query, key, value and output", options={"targets": "qkvo"}, baseline="frozen"
                ),
                **{
                    f"r{rank}": Variant(
                        f"rank {rank} on query and value, the same scale alpha / r",
                        options={"rank": rank, "lora_alpha": 2.0 * rank},
                        baseline="frozen",
                    )
                    for rank in (1, 2, 4, 16, 64)
                },
                "frozen": Variant(
                    "linear probe: only the classifier is trained", model="classifier", options={"freeze": -1}
                ),
                "full": Variant(
                    "full fine-tuning",
                    model="classifier",
                    options={"freeze": 0},
                    recipe={
                        "lr": 2e-4,
                        "layer_decay": 0.75,
                        "weight_decay": 0.05,
                        "warmup_epochs": 3,
                        "clip_norm": 1.0,
                    },
                ),
            },
            default="qv",
        )
    ]
