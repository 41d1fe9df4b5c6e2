"""Visual prompt tuning: the transformer stays as it is, and a few learned tokens among its input steer it.

Paper: Jia et al. 2022, "Visual prompt tuning" (arXiv:2203.12119), section 3.2. With x the class token, E the patch
tokens, P the prompts, L_i the i-th block:

    shallow, eq. 4-6    [x_1, Z_1, E_1] = L_1([x_0, P, E_0]),    [x_i, Z_i, E_i] = L_i([x_i-1, Z_i-1, E_i-1])
    deep, eq. 7-8       [x_i, __ , E_i] = L_i([x_i-1, P_i-1, E_i-1])                 new prompts for every block

Only the prompts and the classifier are trained: p D values (shallow) or depth p D (deep), and D C + C for the head.
Prompts start uniform within +-sqrt(6 / (3 patch^2 + D)), as Xavier would start a patch embedding.

What differs from the paper: any timm VisionTransformer is taken as it is. Registers and other prefix tokens stay in
front, prompts come after them (without a position they would do the same anywhere). Prompts are removed after the last
block, so the network's own norm and pooling (class token, average, attention) see the tokens that they were trained on,
and never a prompt. Where a network normalises before its first block (CLIP's), prompts are added after that.

The paper trains ViT-B/16 in batches of 128 by SGD with momentum 0.9, on images of 256 px cropped at random to 224 and
flipped, and chooses rate, weight decay and prompt length on validation; the gradient is not clipped. Here the batch is
64, as a pass over a thousand images would otherwise be eight steps, at a rate that is smaller by the paper's own rule
(base rate times batch / 256); the momentum is Nesterov's; crops, flips and jitter are those of every technique here, so
that the baselines differ from it in nothing else; and the gradient is clipped, for the reason at the recipe. The
prompts have no dropout, and none is projected, as in the authors' default.

Prompts from text are left out, for the reason that docs/techniques.md gives.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn

# The prompt lengths of the study's sweep.
LENGTHS = (5, 10, 15, 25, 50, 75, 100, 500, 1000)
# The recipe of full fine-tuning, for comparison; that of focal-margin's baseline too.
FULL = {
    "optimizer": "adamw",
    "lr": 2e-4,
    "layer_decay": 0.75,
    "weight_decay": 0.05,
    "warmup_epochs": 3,
    "epochs": 30,
    "batch_size": 32,
    "clip_norm": 1.0,
}


def build_prompted(context: ModelContext) -> nn.Module:
    """Build a frozen VisionTransformer with `prompt_length` learned tokens and a trainable classifier. Raises
    `UsageError` for any other kind of backbone."""
    from flowers_bench.backbones import train_only_classifier, vision_transformer
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.prompt_tuning.layers import PromptedBlocks

    backbone = vision_transformer(context.backbone.create())
    train_only_classifier(backbone)
    rows, columns = backbone.patch_embed.patch_size
    backbone.blocks = PromptedBlocks(
        backbone.blocks,
        length=context.options.integer("prompt_length"),
        dim=backbone.embed_dim,
        prefix=backbone.num_prefix_tokens,
        deep=context.options.flag("deep"),
        bound=math.sqrt(6 / (3 * rows * columns + backbone.embed_dim)),
    )
    return Classifier(backbone)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "prompted",
            "a frozen vision transformer with learned tokens among its input",
            needs=frozenset({"tokens"}),
            options={
                "prompt_length": Option(
                    10, "how many learned tokens; 0: none", minimum=0, maximum=10000, search=(5, 100)
                ),
                "deep": Option(False, "new prompts for every block, or one set for the first"),
            },
            build=build_prompted,
            provides=frozenset({"logits", "embedding", "tokens"}),
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="prompt-tuning",
            summary="learned tokens steer a frozen vision transformer",
            papers=("Jia et al. 2022, Visual prompt tuning, arXiv:2203.12119",),
            model="prompted",
            loss="cross-entropy",
            augmentation="standard",
            # The paper uses SGD, 10 of 100 epochs of warm-up, a cosine, batch 64, and a grid for the rate, of which this
            # is the middle (base 1.0 for 256 images). It chooses rate, weight decay and length on validation data. It
            # does not clip the gradient; without that, this rate diverges on features as long as DINOv2's.
            recipe=Recipe(
                optimizer="sgd",
                lr=0.25,
                weight_decay=1e-4,
                warmup_epochs=10,
                epochs=100,
                batch_size=64,
                clip_norm=1.0,
            ),
            backbone="vit_base_patch16_224",
            weights="pretrained",
            variants={
                "deep": Variant(
                    "10 new prompts in every block (VPT-deep)",
                    options={"deep": True, "prompt_length": 10},
                    baseline="frozen",
                ),
                **{
                    f"p{length}": Variant(
                        f"{length} prompts at the input (VPT-shallow)",
                        options={"prompt_length": length},
                        baseline="frozen",
                    )
                    for length in LENGTHS
                },
                "frozen": Variant("no prompts: only the classifier is trained", options={"prompt_length": 0}),
                "full": Variant("full fine-tuning", model="classifier", options={"freeze": 0}, recipe=FULL),
            },
            default="deep",
        )
    ]
