"""Second-order pooling: an image is known by which features occur together, not by how strong each is.

Papers: Lin et al. 2015, "Bilinear CNN models for fine-grained visual recognition" (arXiv:1504.07889), section 3; Li et al. 2018,
"Towards faster training of global covariance pooling networks by iterative matrix square root normalization" (iSQRT-COV,
arXiv:1712.01034), section 3. A network's last feature map has n places; with x_i its D channels at place i,

    average        the mean of x_i                                                                                     D values
    bilinear       B = 1/n sum of x_i x_i^T;   y = sign(B) |B|^(1/2);   y / |y|                                     D * D values
    isqrt-cov      S = 1/n sum of (x_i - m) (x_i - m)^T,  m the mean;   the matrix square root of S             D (D + 1) / 2 values

The root comes without eigenvalues, whose gradients are unstable: from A = S / tr(S), Y_0 = A and Z_0 = I, five Newton-Schulz steps

    Y_k = 1/2 Y_k-1 (3 I - Z_k-1 Y_k-1)          Z_k = 1/2 (3 I - Z_k-1 Y_k-1) Z_k-1          root = tr(S)^(1/2) Y_5

and of the root, which is symmetric, the upper triangle is taken. A linear classifier follows. In all variants the last reduction of the feature map is left out
(the last pooling in Lin, the last stride in Li), so that n is four times as large.

What differs from the paper: Lin multiplies the 512 channels of two networks, here one network's own, which a 1x1 convolution with batch norm
and ReLU reduces to D = 64 first, in every variant, as Li does it to 256: on few images 262,144 features would only be remembered, and would not fit where test images' features are kept. Lin
trains the classifier first and then everything by SGD at 448 pixels; here all is trained at once, what is new at five times the rate, by AdamW. Under
the root of |B| stands 1e-5 more, as its slope at zero is infinite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn

POOLINGS = ("average", "bilinear", "isqrt")


def build_second_order(context: ModelContext) -> nn.Module:
    """Build backbone, reduction, pooling and classifier; the backbone's first `freeze` stages are frozen (-1: all of it). Raises
    `UsageError` if the backbone gives no feature map."""
    from flowers_bench.backbones import freeze_stages
    from flowers_bench.nn import freeze
    from flowers_bench_plugins.multiscale_vgg.layers import keep_features
    from flowers_bench_plugins.second_order.layers import SecondOrder, keep_resolution

    options = context.options
    backbone = context.backbone.create()
    found = keep_features(backbone, context.image_size)
    keep_resolution(backbone)
    frozen = options.integer("freeze")
    if frozen == -1:
        freeze(backbone)
    else:
        freeze_stages(backbone, frozen)
    return SecondOrder(backbone, found, options.integer("channels"), options.text("pooling"), context.num_classes)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "second-order-pooling",
            "any CNN whose last features are pooled by their products",
            needs=frozenset({"stages"}),
            options={
                "pooling": Option("bilinear", "how a feature map becomes a vector", choices=POOLINGS),
                "channels": Option(
                    64, "D, the channels that are multiplied", minimum=2, maximum=1024, search=(32, 128)
                ),
                "freeze": Option(
                    0, "how many of the backbone's first stages are frozen; -1: all", minimum=-1, maximum=100
                ),
            },
            build=build_second_order,
        )
    ]


def _technique(name: str, summary: str, paper: str, pooling: str) -> Technique:
    return Technique(
        name=name,
        summary=summary,
        papers=(paper,),
        model="second-order-pooling",
        loss="cross-entropy",
        augmentation="standard",
        recipe=Recipe(
            optimizer="adamw", lr=3e-4, lr_scale={"classifier.*": 5.0, "reduce.*": 5.0}, epochs=20, warmup_epochs=1
        ),
        weights="pretrained",
        variants={
            pooling: Variant(summary, options={"pooling": pooling}, baseline="average"),
            "average": Variant("the twin with average pooling", options={"pooling": "average"}),
        },
        default=pooling,
    )


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        _technique(
            "bilinear",
            "a CNN's last features are pooled by their products",
            "Lin et al. 2015, Bilinear CNN models for fine-grained visual recognition, arXiv:1504.07889",
            "bilinear",
        ),
        _technique(
            "isqrt-cov",
            "a CNN's last features are pooled by the square root of their covariance",
            "Li et al. 2018, Towards faster training of global covariance pooling networks by iterative matrix square root "
            "normalization, arXiv:1712.01034",
            "isqrt",
        ),
    ]
