"""A multi-scale block and channel attention after a CNN's features: petals and whole flowers in one look.

Papers: Simonyan & Zisserman 2015 (VGG, arXiv:1409.1556) for the backbone; Szegedy et al. 2015 (Inception,
arXiv:1409.4842), figure 2a, for parallel 1x1, 3x3 and 5x5 convolutions; He et al. 2015 (arXiv:1512.03385), equation
1, for the residual; Hu et al. 2018 (squeeze-and-excitation, arXiv:1709.01507), equations 2-4; Ioffe & Szegedy 2015
(batch norm, arXiv:1502.03167); Srivastava et al. 2014 (dropout). With F the backbone's features (C, H, W):

    block       M = F + BN(W_1x1 [f_1(F), f_3(F), f_5(F)])     f_k: k x k convolution to C / 4 channels, BN, ReLU
    attention   S = M * sigmoid(W_2 relu(W_1 mean(M)))         a weight per channel, from the image's averages
    head        z = W drop(h), h = relu(BN(V drop(BN(mean(S)))))

The last batch norm of the block starts at zero (Goyal et al. 2017, arXiv:1706.02677), so that the block begins as the
identity and pretrained features are not disturbed. VGG's own fully connected layers (120 of its 138 million
parameters) are dropped with the old head, and so is whatever any other backbone keeps after its features. Works after
any CNN that gives features (C, H, W).

The plain networks beside it (`full`, `frozen`) keep those layers, with dropout of 0.5 after each of
VGG's two (Simonyan & Zisserman 2015, section 3.1; torchvision's VGG has it, timm's has not). Only the last layer is
new. `frozen` trains all that follows the features, as freezing torchvision's `features` does: 119.5 million
parameters of VGG16, and of a ResNet the last layer.

What differs from the paper: the study names the modules and not their widths, nor where the attention stands; those are
ours. Inception's figure 2a has a fourth branch, which pools, and what it trained has 1x1 convolutions before the larger
ones (2b); in SENet the attention is in every block, here it is once, after the features. VGG was trained by SGD on
crops of several sizes; here AdamW, with pretrained layers at a tenth
of the new ones' rate and a plain network at that small rate throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn

# Dropout after each of VGG's two hidden fully connected layers.
VGG_DROPOUT = 0.5


def build_multiscale(context: ModelContext) -> nn.Module:
    """Build backbone, block, attention and head; the backbone's first `freeze` stages are frozen (-1: all of it).
    Raises `UsageError` if the backbone gives no feature map."""
    from timm.layers import SEModule
    from torch import nn

    from flowers_bench.backbones import freeze_stages
    from flowers_bench.nn import freeze
    from flowers_bench_plugins.multiscale_vgg.layers import Extended, keep_features, multiscale_block

    options = context.options
    backbone = context.backbone.create()
    channels = keep_features(backbone, context.image_size)
    frozen = options.integer("freeze")
    if frozen == -1:
        freeze(backbone)
    else:
        freeze_stages(backbone, frozen)
    extension = nn.Sequential()
    if options.flag("block"):
        extension.append(multiscale_block(channels))
    if options.flag("attention"):
        extension.append(SEModule(channels))
    hidden, dropout = options.integer("hidden"), options.number("dropout")
    neck = nn.Sequential(
        nn.BatchNorm1d(channels),
        nn.Dropout(dropout),
        nn.Linear(channels, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
    )
    classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, context.num_classes))
    return Extended(backbone, extension, neck, classifier)


def build_plain(context: ModelContext) -> nn.Module:
    """Build the backbone as it is, with a fresh last layer: the first `freeze` stages of its features are frozen (-1:
    all), never what follows them. Raises `UsageError` if the backbone gives no feature map."""
    from timm.models.vgg import VGG
    from torch import nn

    from flowers_bench.backbones import freeze_stages, stages
    from flowers_bench.nn import Classifier
    from flowers_bench_plugins.multiscale_vgg.layers import features

    backbone = context.backbone.create()
    _, after = features(backbone, context.image_size)
    count = context.options.integer("freeze")
    freeze_stages(backbone, len(stages(backbone)) if count == -1 else count)
    for name in after:
        backbone.get_submodule(name).requires_grad_(True)
    if isinstance(backbone, VGG):
        for module in backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = VGG_DROPOUT
    return Classifier(backbone)


@hookimpl
def register_models() -> list[Model]:
    freeze = "how many of the backbone's first stages are frozen; -1: all"
    return [
        Model(
            "plain-cnn",
            "any CNN as it is, with a fresh last layer; what follows its features is never frozen",
            needs=frozenset({"stages"}),
            options={"freeze": Option(0, freeze, minimum=-1, maximum=100)},
            build=build_plain,
        ),
        Model(
            "multiscale",
            "any CNN with a residual multi-scale block, channel attention and a head of its own",
            needs=frozenset({"stages"}),
            options={
                "block": Option(True, "the residual block of 1x1, 3x3 and 5x5 convolutions"),
                "attention": Option(True, "squeeze-and-excitation"),
                "freeze": Option(0, freeze, minimum=-1, maximum=100),
                "hidden": Option(512, "width of the head's hidden layer", minimum=1, maximum=65536),
                "dropout": Option(0.5, "of the head", minimum=0, maximum=0.95, search=(0.0, 0.7)),
            },
            build=build_multiscale,
        ),
    ]


def _ablation(summary: str, **options: bool) -> Variant:
    return Variant(summary, options=options, baseline="full")


@hookimpl
def register_techniques() -> list[Technique]:
    frozen, full = {"freeze": -1}, {"freeze": 0}
    return [
        Technique(
            name="multiscale-vgg",
            summary="a CNN's features seen at three scales and weighed by channel",
            papers=(
                "Simonyan & Zisserman 2015, Very deep convolutional networks, arXiv:1409.1556",
                "Szegedy et al. 2015, Going deeper with convolutions, arXiv:1409.4842",
                "Hu et al. 2018, Squeeze-and-excitation networks, arXiv:1709.01507",
            ),
            model="multiscale",
            loss="cross-entropy",
            augmentation="standard",
            # No paper trains this combination. As usual, pretrained layers are tuned at a tenth of the new ones' rate.
            recipe=Recipe(optimizer="adamw", lr=1e-3, lr_scale={"backbone.*": 0.1}, epochs=30, warmup_epochs=2),
            backbone="vgg16",
            weights="pretrained",
            variants={
                "both": _ablation("multi-scale block and squeeze-and-excitation"),
                "block": _ablation("the multi-scale block alone", attention=False),
                "attention": _ablation("squeeze-and-excitation alone", block=False),
                "head": _ablation("neither: only the head with batch norm and dropout", block=False, attention=False),
                "bn": Variant("on VGG16 with batch norm", backbone="vgg16_bn", baseline="full-bn"),
                "frozen-features": Variant("both, the backbone frozen", options=frozen, baseline="frozen"),
                # The plain network's classifier is part of its backbone, so that all has one small rate, as in the study.
                "frozen": Variant(
                    "the plain backbone, its features frozen, what follows them trained",
                    model="plain-cnn",
                    options=frozen,
                    recipe={"lr": 1e-4, "lr_scale": {}},
                ),
                "full": Variant(
                    "the plain backbone, everything trained",
                    model="plain-cnn",
                    options=full,
                    recipe={"lr": 1e-4, "lr_scale": {}},
                ),
                "full-bn": Variant(
                    "plain VGG16 with batch norm, everything trained",
                    model="plain-cnn",
                    options=full,
                    backbone="vgg16_bn",
                    recipe={"lr": 1e-4, "lr_scale": {}},
                ),
            },
            default="both",
        )
    ]
