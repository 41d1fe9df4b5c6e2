"""Deformable convolutions: every 3x3 convolution of some stages learns where to sample.

Papers: Dai et al. 2017, "Deformable Convolutional Networks" (arXiv:1703.06211), equation 2; Zhu et al. 2019,
"Deformable ConvNets v2" (arXiv:1811.11168), equation 1, which adds a mask per sample:

    y(p) = sum over taps k of  w_k * x(p + p_k + offset_k(p)) * mask_k(p)

Offsets and masks come from a convolution on the same input. It starts at zero, so that every offset is 0 and every
mask 1, and the new layer inherits the replaced one's weight: at the first step the network computes exactly what it
computed before, pretrained or not. Offsets and masks learn at a tenth of the rate, as in v2: they move pixels by whole
units where weights move by hundredths. In v1 (`stage3-v1`) they learn at the full one.

The default variant and its plain twin start with a classifier that fits the pretrained features (a linear probe; Kumar et al. 2022,
arXiv:2202.10054), so that what differs between them is not how a fresh one happened to start.

What differs from the paper: v2's masks are sigmoids and start at one half, which halves a pretrained layer's response;
here they are twice that, from 0 to 2, and start at one. All input channels of a layer share one set of offsets, where
v1's detectors have four. The papers replace layers of the last stage (v1) or of the last three (v2, here `stages2-4`) of an
ImageNet network, train detectors and segmenters by SGD, and v1 widens the last stage (stride 1, dilation 2); here it is a
classifier, its strides as they were, trained by AdamW. Deformable RoI pooling and v2's feature mimicking, which are for
detectors, are left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowers_bench import Model, ModelContext, Option, Recipe, StoredRecord, Technique, UsageError, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn

    from flowers_bench import FigureContext


#: Of pretrained variants; those from scratch have the technique's.
FINE_TUNING = {"lr": 1e-3, "epochs": 20, "warmup_epochs": 1}
#: A plain twin has no offsets: so its training may be the very one that `transfer` calls by other names.
NO_OFFSETS: dict[str, float] = {}
#: Of the default variant and its twin: the classifier starts as a linear probe, and its rate is that of what is good already.
FROM_PROBE = {"classifier_start": "probe", "lr": 3e-4, "epochs": 20, "warmup_epochs": 0}


def build_deformable(context: ModelContext) -> nn.Module:
    """Make every 3x3 convolution of the backbone's `stages` deformable; freeze the stages before the first of them if
    `freeze_earlier`. Raises `UsageError` if the backbone has no such stage or no 3x3 convolution there."""
    from flowers_bench.backbones import freeze_stages
    from flowers_bench.nn import Classifier

    backbone, chosen = context.backbone.create(), stage_numbers(context.options.text("stages"))
    for stage in chosen:
        replace_convolutions(backbone, stage, context.options.flag("modulated"))
    if context.options.flag("freeze_earlier"):
        freeze_stages(backbone, chosen[0] - 1)
    return Classifier(backbone)


def stage_numbers(text: str) -> list[int]:
    """Read `3` or `2,3,4`: each once, in ascending order. Raises `UsageError` for anything else."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 0 < len(part) < 4 and int(part) for part in parts):
        raise UsageError(f"stages={text}: expected the numbers of stages, from 1, such as 3 or 2,3,4.")
    return sorted({int(part) for part in parts})


def replace_convolutions(backbone: nn.Module, stage: int, modulated: bool) -> list[str]:
    """Replace the 3x3 convolutions of a stage (from 1) in place, and give the names of these modules. Raises
    `UsageError` as `build_deformable` does."""
    from torch import nn

    from flowers_bench.backbones import stages
    from flowers_bench.ops import OffsetDeformConv2d

    found = stages(backbone)
    if stage > len(found):
        raise UsageError(
            f"there is no stage {stage}: this backbone has {len(found)} ({', '.join(s.name for s in found)})."
        )
    replaced = []
    for name in found[stage - 1].modules:
        module = backbone.get_submodule(name)
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and not isinstance(module.padding, str):
            parent, _, child = name.rpartition(".")
            setattr(
                backbone.get_submodule(parent),
                child,
                OffsetDeformConv2d.from_conv(module, modulated=modulated),
            )
            replaced.append(name)
    if not replaced:
        raise UsageError(f"stage {stage} ({found[stage - 1].name}) has no 3x3 convolution to replace.")
    return replaced


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "deformable",
            "any CNN with the 3x3 convolutions of some stages made deformable",
            needs=frozenset({"conv3x3"}),
            options={
                "stages": Option("3", "which of the backbone's stages, from 1, such as 3 or 2,3,4", formerly="stage"),
                "modulated": Option(True, "a learned mask per sample (v2), or offsets only (v1)"),
                "freeze_earlier": Option(False, "freeze the stages before the first of them"),
            },
            build=build_deformable,
        )
    ]


def _stage(stage: int, pretrained: bool) -> Variant:
    if pretrained:
        return Variant(
            f"stage {stage} deformable, pretrained, earlier stages frozen",
            options={"stages": str(stage), "freeze_earlier": True},
            weights="pretrained",
            recipe=FINE_TUNING,
            baseline=f"plain{stage}-pretrained",
        )
    return Variant(f"stage {stage} deformable, from scratch", options={"stages": str(stage)}, baseline="plain")


def _plain_pretrained(stage: int) -> Variant:
    return Variant(
        f"the plain twin of stage{stage}-pretrained: stages before {stage} frozen, nothing deformable",
        model="classifier",
        options={"freeze": stage - 1},
        weights="pretrained",
        recipe={**FINE_TUNING, "lr_scale": NO_OFFSETS},
    )


@hookimpl
def register_techniques() -> list[Technique]:
    stages = (1, 3, 4)
    return [
        Technique(
            name="deformable",
            summary="3x3 convolutions of some stages sample at learned offsets",
            papers=(
                "Dai et al. 2017, Deformable Convolutional Networks, arXiv:1703.06211",
                "Zhu et al. 2019, Deformable ConvNets v2: More Deformable, Better Results, arXiv:1811.11168",
            ),
            model="deformable",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=3e-3, lr_scale={"*offset_conv*": 0.1}, epochs=60, warmup_epochs=3),
            variants={
                "stages2-4": Variant(
                    "stages 2 to 4 deformable (v2's own), pretrained, everything trained",
                    options={"stages": "2,3,4"},
                    weights="pretrained",
                    recipe=FROM_PROBE,
                    baseline="plain-pretrained",
                ),
                "plain-pretrained": Variant(
                    "the plain twin of stages2-4: the same network, nothing deformable, pretrained, everything trained",
                    model="classifier",
                    weights="pretrained",
                    recipe={**FROM_PROBE, "lr_scale": NO_OFFSETS},
                ),
                **{f"stage{s}": _stage(s, pretrained=False) for s in stages},
                "stage3-v1": Variant(
                    "stage 3 deformable without masks (v1), from scratch",
                    options={"modulated": False},
                    recipe={"lr_scale": {}},
                    baseline="plain",
                ),
                "plain": Variant(
                    "the plain twin: the same network, nothing deformable, from scratch",
                    model="classifier",
                    recipe={"lr_scale": NO_OFFSETS},
                ),
                **{f"stage{s}-pretrained": _stage(s, pretrained=True) for s in stages},
                **{f"plain{s}-pretrained": _plain_pretrained(s) for s in stages},
            },
            default="stages2-4",
        )
    ]


@hookimpl  # `trial` is plain JSON values: see flowers_bench.hookspecs
def trial_figures(trial: StoredRecord, context: FigureContext, directory: Path) -> None:
    """Draw where the last deformable layer samples: the taps at the central output position, on test images."""
    if trial["model"] != "deformable":
        return
    from flowers_bench.ops import OffsetDeformConv2d

    layers = [module for module in context.model.modules() if isinstance(module, OffsetDeformConv2d)]
    draw_sampling(context, layers[-1], directory / "sampling.png")


def draw_sampling(context: FigureContext, layer: nn.Module, path: Path) -> None:
    """Draw one panel per image: the regular 3x3 grid of the central output position as circles, the learned one as dots
    whose area is the mask. `layer` is an `OffsetDeformConv2d` of the model."""
    import matplotlib
    import torch

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    inputs: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    with torch.inference_mode():
        context.model(context.normalize(context.images))
        handle.remove()
        grid, points, mask = sampling_points(layer, inputs[0])
    scale = context.images.shape[-1] / inputs[0].shape[-1]
    figure, axes = plt.subplots(1, len(context.images), figsize=(2.2 * len(context.images), 2.6), squeeze=False)
    for axis, image, name, found, weight in zip(
        axes[0], context.images, (context.class_names[i] for i in context.labels), points, mask, strict=True
    ):
        axis.imshow(image.permute(1, 2, 0).numpy())
        axis.scatter(*((grid + 0.5) * scale - 0.5).T, s=18, facecolors="none", edgecolors="white", linewidths=0.8)
        axis.scatter(*((found + 0.5) * scale - 0.5).T, s=12 * weight, color="crimson")
        axis.set_title(str(name)[:24], fontsize=7, parse_math=False)
        axis.set_axis_off()
    figure.suptitle("sampling of the centre: regular grid (circles), learned (dots, area = mask)", fontsize=8)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def sampling_points(layer: Any, features: Any) -> tuple[Any, Any, Any]:
    """Compute where the central output position samples, in input pixels: regular (9, 2), learned (N, 9, 2) as (x, y),
    and mask (N, 9). `features` (N, C, H, W) is the layer's input; offset channels are (dy, dx) per tap."""
    import numpy as np

    offset, mask = layer.offset_and_mask(features)
    count, _, height, width = offset.shape
    row, column = height // 2, width // 2
    taps = np.stack(np.meshgrid(np.arange(3), np.arange(3), indexing="ij"), -1).reshape(9, 2)
    origin = np.array([row * layer.stride[0] - layer.padding[0], column * layer.stride[1] - layer.padding[1]])
    regular = origin + taps * np.array(layer.dilation)
    moved = offset[:, :18, row, column].float().cpu().numpy().reshape(count, 9, 2)
    weight = np.ones((count, 9)) if mask is None else mask[:, :9, row, column].float().cpu().numpy()
    return regular[:, ::-1], (regular + moved)[:, :, ::-1], weight
