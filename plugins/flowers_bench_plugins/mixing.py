"""MixUp and CutMix: train on images that are mixed from two, with targets mixed alike.

Papers: Zhang et al. 2018, "mixup: beyond empirical risk minimization" (arXiv:1710.09412), section 2; Yun et al. 2019,
"CutMix" (arXiv:1905.04899), equations 1 and 2.

Both are one formula. A batch x with one-hot targets y is mixed with itself in another order (x', y'), under a mask M
with values in [0, 1] whose mean is lambda:

    x <- M * x + (1 - M) * x'            y <- lambda * y + (1 - lambda) * y'

    MixUp       M = lambda everywhere, lambda ~ Beta(alpha, alpha)
    CutMix      M = 0 in a box of the image's shape whose area is (1 - lambda) of it, centred anywhere, and 1 outside;
                what the image's border cuts off is taken into account: lambda is then the mean of M

What can be chosen by `--augmentation`: `mixup`, `cutmix`; `mixup-or-cutmix`, one of them by chance for each batch (the
study's); `mixup-and-cutmix`, both at once: first a box is pasted, then the result is blended, so that up to four
classes meet in an image (what the study wished for); `mixup-or-cutmix-per-image`, where each image has its own
choice and its own lambda.

Mixed images say little about how well the training images are known: the clean training accuracy is measured without
any of this. How many of the mixed classes are found among the top m is measured on mixed test images (`mixed` in the
result).

What differs from the paper: the mixup paper's alpha on ImageNet is 0.2, CutMix's is 1; both are options. CutMix mixes
half of the batches of CIFAR, all of ImageNet's and all of them here; `mix_probability` changes it. Both papers train
from scratch; here a pretrained network is fine-tuned, as in the study, but longer than plainly: mixing needs time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flowers_bench import Augmentation, AugmentationContext, Option, Options, Recipe, Technique, Variant, hookimpl
from flowers_bench_plugins.common import STANDARD, standard_augmentation, standard_parameters

if TYPE_CHECKING:
    from torch import Tensor

    from flowers_bench import FigureContext


def beta(alpha: float, count: int) -> Tensor:
    """Draw (count,) values from Beta(alpha, alpha)."""
    import torch

    return torch.distributions.Beta(alpha, alpha).sample((count,))


def mixup_mask(lam: Tensor, height: int, width: int) -> Tensor:
    """Make masks with lambda everywhere: (N,) to (N, 1, H, W)."""
    return lam[:, None, None, None].expand(-1, 1, height, width)


def cutmix_mask(lam: Tensor, height: int, width: int) -> Tensor:
    """Make masks with 0 in a box of share 1 - lambda at a random place, and 1 outside: (N,) to (N, 1, H, W)."""
    import torch

    def outside(length: int) -> Tensor:
        # True (N, length) where a row or column is outside of the box, in whole pixels. The image's border cuts the box off.
        half = (length * (1 - lam).sqrt()).int() // 2
        centre = torch.randint(length, lam.shape)
        place = torch.arange(length)
        return (place < (centre - half)[:, None]) | (place >= (centre + half)[:, None])

    rows, columns = outside(height), outside(width)
    return (rows[:, :, None] | columns[:, None, :])[:, None].float()


def blend(images: Tensor, targets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the formula above: images (N, 3, H, W), targets (N, C) and mask (N or 1, 1, H, W) to images and targets."""
    import torch

    mask = mask.to(images.device)
    other = torch.randperm(len(images)).to(images.device)
    lam = mask.mean((1, 2, 3))[:, None]
    return mask * images + (1 - mask) * images[other], lam * targets + (1 - lam) * targets[other]


Mix = Callable[[AugmentationContext, "Tensor", "Tensor"], "tuple[Tensor, Tensor]"]


def mixup(context: AugmentationContext, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images (N, 3, H, W) and targets (N, C) by one lambda for the batch, as in the paper's code."""
    return blend(images, targets, mixup_mask(beta(context.options.number("mixup_alpha"), 1), *images.shape[2:]))


def cutmix(context: AugmentationContext, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Mix images (N, 3, H, W) and targets (N, C) by one box for the batch, as in the paper's code."""
    return blend(images, targets, cutmix_mask(beta(context.options.number("cutmix_alpha"), 1), *images.shape[2:]))


def mixup_or_cutmix(context: AugmentationContext, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Apply MixUp or CutMix to the batch: a coin decides."""
    import torch

    return (mixup if torch.rand(()) < 0.5 else cutmix)(context, images, targets)


def mixup_and_cutmix(context: AugmentationContext, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Apply CutMix, then MixUp to its result."""
    return mixup(context, *cutmix(context, images, targets))


def mixup_or_cutmix_per_image(context: AugmentationContext, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Apply MixUp or CutMix to each image: each has a coin and a lambda of its own."""
    import torch

    count, _, height, width = images.shape
    blended = mixup_mask(beta(context.options.number("mixup_alpha"), count), height, width)
    pasted = cutmix_mask(beta(context.options.number("cutmix_alpha"), count), height, width)
    coin = torch.rand(count, 1, 1, 1) < 0.5
    return blend(images, targets, torch.where(coin, blended, pasted))


MIXES: dict[str, tuple[str, Mix]] = {
    "mixup": ("two images blended, targets alike", mixup),
    "cutmix": ("a box of another image pasted, targets by area", cutmix),
    "mixup-or-cutmix": ("MixUp or CutMix, by chance for each batch", mixup_or_cutmix),
    "mixup-and-cutmix": ("CutMix and then MixUp: up to four images in one", mixup_and_cutmix),
    "mixup-or-cutmix-per-image": ("MixUp or CutMix, by chance for each image", mixup_or_cutmix_per_image),
}


def batch_transform(mix: Mix) -> Callable[[AugmentationContext], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Turn `mix` into an augmentation's `batch`: hard labels (N,) become soft targets (N, C)."""

    def build(context: AugmentationContext) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        import torch
        import torch.nn.functional as F

        def transform(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            targets = F.one_hot(labels, context.num_classes).to(images.dtype)
            if torch.rand(()) >= context.options.number("mix_probability"):
                return images, targets
            return mix(context, images, targets)

        return transform

    return build


@hookimpl
def register_augmentations() -> list[Augmentation]:
    alphas = {
        "mixup_alpha": Option(
            0.2, "of MixUp's Beta(alpha, alpha): larger mixes more evenly", minimum=0.01, maximum=100, search=(0.1, 2.0)
        ),
        "cutmix_alpha": Option(1.0, "of CutMix's Beta(alpha, alpha)", minimum=0.01, maximum=100, search=(0.1, 2.0)),
    }
    share = Option(1.0, "share of the batches that are mixed", minimum=0, maximum=1, search=(0.3, 1.0))
    return [
        Augmentation(
            name,
            summary,
            options={
                **STANDARD,
                **{key: option for key, option in alphas.items() if key.removesuffix("_alpha") in name},
                "mix_probability": share,
            },
            image=standard_augmentation,
            parameters=standard_parameters,
            revision=2,
            batch=batch_transform(mix),
            provides=frozenset({"soft_targets"}),
        )
        for name, (summary, mix) in MIXES.items()
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="mixing",
            summary="training on images mixed from two, with mixed targets",
            papers=(
                "Zhang et al. 2018, mixup: beyond empirical risk minimization, arXiv:1710.09412",
                "Yun et al. 2019, CutMix: regularization strategy to train strong classifiers, arXiv:1905.04899",
            ),
            model="classifier",
            loss="cross-entropy",
            augmentation="mixup-or-cutmix",
            recipe=Recipe(optimizer="adamw", lr=1e-3, epochs=40, warmup_epochs=2),
            weights="pretrained",
            variants={
                "random": Variant("MixUp or CutMix, by chance for each batch", baseline="plain"),
                "mixup": Variant("MixUp alone", augmentation="mixup", baseline="plain"),
                "cutmix": Variant("CutMix alone", augmentation="cutmix", baseline="plain"),
                "both": Variant(
                    "both at once, up to four images in one", augmentation="mixup-and-cutmix", baseline="plain"
                ),
                "per-image": Variant(
                    "MixUp or CutMix, by chance for each image",
                    augmentation="mixup-or-cutmix-per-image",
                    baseline="plain",
                ),
                "plain": Variant("the twin without mixing", augmentation="standard"),
            },
            default="random",
        )
    ]


@hookimpl
def trial_figures(trial: Mapping[str, object], context: FigureContext, directory: Path) -> None:
    """Draw test images mixed as the training images were, with their labels; one row for each way to mix."""
    if trial["augmentation"] not in MIXES:
        return
    chosen = str(trial["augmentation"])
    options = trial["options"]
    assert isinstance(options, Mapping)
    # A coin decides for each whole batch, so that both outcomes are shown.
    rows = ["mixup", "cutmix"] if chosen == "mixup-or-cutmix" else [chosen]
    augmenting = AugmentationContext(context.images.shape[-1], len(context.class_names), Options(options))
    draw_mixed(context, augmenting, rows, directory / "mixed.png")


def telling_example(
    mix: Mix, augmenting: AugmentationContext, images: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    """Pick of 30 draws the one whose largest shares are nearest to two thirds: with a small alpha most draws show
    nothing."""
    import torch

    with torch.random.fork_rng(devices=[]):
        draws = []
        for seed in range(30):
            torch.manual_seed(seed)
            draws.append(mix(augmenting, images, targets))
    return min(draws, key=lambda draw: abs(float(draw[1].amax(1).mean()) - 2 / 3))


def draw_mixed(context: FigureContext, augmenting: AugmentationContext, rows: list[str], path: Path) -> None:
    """Draw one row per name in `MIXES`; above each image stand the classes in it, with their shares."""
    import matplotlib
    import torch
    import torch.nn.functional as F

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    images, labels = context.images.float() / 255, torch.tensor(list(context.labels))
    targets = F.one_hot(labels, augmenting.num_classes).float()
    figure, axes = plt.subplots(
        len(rows), len(images), figsize=(1.9 * len(images), 2.6 * len(rows)), squeeze=False, layout="constrained"
    )
    for row, name in zip(axes, rows, strict=True):
        mixed, shares = telling_example(MIXES[name][1], augmenting, images, targets)
        for axis, image, share in zip(row, mixed, shares, strict=True):
            axis.imshow(image.permute(1, 2, 0).clamp(0, 1).numpy())
            present = share.nonzero().squeeze(1).tolist()
            said = [
                f"{share[c]:.2f} {str(context.class_names[c])[:18]}" for c in sorted(present, key=lambda c: -share[c])
            ]
            axis.set_title("\n".join(said), fontsize=6, parse_math=False)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name, fontsize=7)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)
