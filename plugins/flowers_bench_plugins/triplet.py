"""Triplet loss: an image lies closer to images of its class than to any others, by a margin.

Papers: Schroff et al. 2015, "FaceNet" (arXiv:1503.03832), equation 1 and section 3.2 for semi-hard mining; Hermans et
al. 2017, "In defense of the triplet loss for person re-identification" (arXiv:1703.07737), equations 3 to 5 for
batches of P classes x K images, batch-hard mining and the soft margin; Van der Merwe 2020, "Triplet entropy loss"
(arXiv:2012.03775) for the sum with cross-entropy; Musgrave et al. 2020 (arXiv:2003.08505) for the sober view.

With embeddings on the unit sphere, D the Euclidean distance, an anchor a, a positive p of its class and a negative n:

    margin        l(a, p, n) = max(0, D(a, p) - D(a, n) + m)
    soft margin   l(a, p, n) = log(1 + exp(D(a, p) - D(a, n)))

Which triplets of a batch count (`mining`), each loss being the mean over them:

    batch-hard    per anchor its farthest positive and its nearest negative
    semi-hard     per anchor and positive the nearest negative that is farther than the positive; where there is none,
                  the farthest negative
    all           all triplets, the mean over those with a loss above zero
    random        per anchor one positive and one negative by chance: what the study did

Nothing here classifies: an image's class is voted by its nearest training images, or is that of the nearest class mean
(variant `nearest-mean`). `entropy` adds a linear classifier on the embedding, with cross-entropy, and predicts by that.

What differs from the paper: FaceNet's distance is squared, and Hermans' embedding is not normalised; here it is
128-dimensional and normalised, as in FaceNet and the study. Distances between such vectors are at most 2, so that a
soft margin never comes near zero, as it does in Hermans. His embedding is two layers with batch norm, here one linear
layer. Hermans trains 25,000 steps of P = 18, K = 4, by Adam at 3e-4, which falls after 15,000; on few images such a training
only memorises, so there are 60 epochs with a cosine here, and P = 16 fits data sets with 17 classes. FaceNet takes
semi-hard negatives from within the margin; where the nearest one beyond the positive is farther than that, the loss is
zero here, and where there is none beyond it, the farthest counts. Van der Merwe's networks are of speech, and their
margin is not soft.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from flowers_bench import Loss, LossContext, Model, ModelContext, Option, Recipe, Technique, Variant, hookimpl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output


# m has no effect on a soft margin; it is given so that no search tries values of it.
SOFT: dict[str, float] = {"soft_margin": True, "margin": 0.2}


def build_embedding(context: ModelContext) -> nn.Module:
    """Build the backbone with a projection to `embedding_dim` in place of its classifier, its first `freeze` stages
    frozen."""
    return _embedder(context, classify=False)


def build_embedding_classifier(context: ModelContext) -> nn.Module:
    """Build the same with a linear classifier on the embedding."""
    return _embedder(context, classify=True)


def _embedder(context: ModelContext, classify: bool) -> nn.Module:
    from torch import nn

    from flowers_bench.backbones import freeze_stages, replace_classifier, stages
    from flowers_bench.nn import Embedder, L2Normalize

    dim, normalize = context.options.integer("embedding_dim"), context.options.flag("normalize")
    width = 0

    def project(features: int, classes: int) -> nn.Module:
        nonlocal width
        width = dim or features
        linear = nn.Linear(features, dim) if dim else nn.Identity()
        return nn.Sequential(linear, L2Normalize() if normalize else nn.Identity())

    backbone = context.backbone.create()
    count = context.options.integer("freeze")
    freeze_stages(backbone, len(stages(backbone)) if count == -1 else count)
    replace_classifier(backbone, project)
    return Embedder(backbone, nn.Linear(width, context.num_classes) if classify else None)


def distances(x: Tensor) -> Tensor:
    """Compute the Euclidean distance between all pairs: (N, D) to (N, N). Its gradient is zero, not infinite, at
    distance zero."""
    squared = (x[:, None] - x[None]).square().sum(-1)
    return squared.clamp_min(1e-12).sqrt()


def batch_hard(d: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Pick, for each anchor, its farthest positive and its nearest negative.

    Args:
        d: distances (N, N).
        same: bool (N, N), whether two images are of one class.

    Returns:
        D(a, p) and D(a, n) of the T chosen triplets, (T,) each.
    """
    import torch

    positive = d.masked_fill(~_others(same), -torch.inf).amax(1)
    negative = d.masked_fill(same, torch.inf).amin(1)
    # There is no triplet where the anchor is alone in its class, or the batch has no other class.
    usable = positive.isfinite() & negative.isfinite()
    return positive[usable], negative[usable]


def semi_hard(d: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Pick, for each anchor and positive, the nearest negative that is farther than the positive, else the farthest.
    Arguments and result are those of `batch_hard`."""
    import torch

    anchor, positive = _others(same).nonzero(as_tuple=True)
    limit = d[anchor, positive]
    to_negative = d[anchor].masked_fill(same[anchor], torch.nan)
    farther = to_negative.masked_fill(~(to_negative > limit[:, None]), torch.inf).amin(1)
    farthest = to_negative.nan_to_num(nan=-torch.inf).amax(1)
    negative = torch.where(farther.isfinite(), farther, farthest)
    usable = negative.isfinite()
    return limit[usable], negative[usable]


def every_triplet(d: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Pick all triplets. Arguments and result are those of `batch_hard`."""
    anchor, positive, negative = (_others(same)[:, :, None] & ~same[:, None, :]).nonzero(as_tuple=True)
    return d[anchor, positive], d[anchor, negative]


def random_triplet(d: Tensor, same: Tensor) -> tuple[Tensor, Tensor]:
    """Pick, for each anchor, one positive and one negative by chance. Arguments and result are those of
    `batch_hard`."""
    import torch

    others = _others(same)
    anchor = (others.any(1) & ~same.all(1)).nonzero().squeeze(1)
    if len(anchor) == 0:  # drawing from nothing is an error
        return d[anchor, anchor], d[anchor, anchor]
    # They are drawn on the CPU, so that a seed means the same on every device.
    positive = torch.multinomial(others[anchor].float().cpu(), 1).squeeze(1).to(d.device)
    negative = torch.multinomial((~same[anchor]).float().cpu(), 1).squeeze(1).to(d.device)
    return d[anchor, positive], d[anchor, negative]


def _others(same: Tensor) -> Tensor:
    """Find pairs of one class, bool (N, N), an image with itself excluded."""
    import torch

    return same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)


MINING: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "batch-hard": batch_hard,
    "semi-hard": semi_hard,
    "all": every_triplet,
    "random": random_triplet,
}


def triplet_loss(embedding: Tensor, labels: Tensor, mining: str, margin: float, soft_margin: bool) -> Tensor:
    """Compute the mean over the mined triplets of a batch: (N, D), (N,) to a scalar; zero if the batch has no
    triplet."""
    import torch.nn.functional as F

    d = distances(embedding)
    positive, negative = MINING[mining](d, labels[:, None] == labels)
    if len(positive) == 0:
        return embedding.sum() * 0
    losses = F.softplus(positive - negative) if soft_margin else F.relu(positive - negative + margin)
    if mining == "all":
        # Nearly all triplets are easy, with a loss of zero: a mean over all would vanish (Hermans 2017, section 2).
        return losses.sum() / (losses > 0).sum().clamp_min(1)
    return losses.mean()


def build_triplet(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build the triplet loss of the embedding; targets are hard (N,)."""
    options = context.options
    mining, margin, soft = options.text("mining"), options.number("margin"), options.flag("soft_margin")
    return lambda output, target: triplet_loss(output.embedding, target, mining, margin, soft)


def build_triplet_entropy(context: LossContext) -> Callable[[Output, Tensor], Tensor]:
    """Build cross-entropy of the logits plus `triplet_weight` times the triplet loss of the embedding; targets are hard
    (N,)."""
    import torch.nn.functional as F

    triplet, weight = build_triplet(context), context.options.number("triplet_weight")
    return lambda output, target: F.cross_entropy(output.logits, target) + weight * triplet(output, target)


@hookimpl
def register_models() -> list[Model]:
    options = {
        "embedding_dim": Option(128, "D; 0: the backbone's own features, no projection", minimum=0, maximum=65536),
        "normalize": Option(True, "embeddings have length 1"),
        "freeze": Option(0, "how many of the backbone's first stages are frozen; -1: all", minimum=-1, maximum=100),
    }
    return [
        Model(
            "embedding",
            "any timm backbone with a projection, no classifier",
            options=options,
            build=build_embedding,
            provides=frozenset({"embedding"}),
        ),
        Model(
            "embedding-classifier",
            "any timm backbone with a projection and a linear classifier on it",
            options=options,
            build=build_embedding_classifier,
        ),
    ]


@hookimpl
def register_losses() -> list[Loss]:
    options = {
        "mining": Option("batch-hard", "which triplets of a batch count", choices=tuple(MINING)),
        "margin": Option(0.2, "m, where the margin is not soft", minimum=0, maximum=10, search=(0.05, 1.0)),
        "soft_margin": Option(False, "log(1 + exp(.)) in place of the margin"),
        "images_per_class": Option(4, "K of the P x K batches, P = batch_size / K", minimum=2, maximum=1000),
    }
    weight = Option(1.0, "weight of the triplet loss beside cross-entropy", minimum=0, maximum=1000, search=(0.1, 10.0))
    return [
        Loss(
            "triplet",
            "same class close, other classes far",
            needs=frozenset({"embedding", "hard_targets"}),
            options=options,
            build=build_triplet,
            sampler="pk",
            predictor="knn",
            probabilities=False,
        ),
        Loss(
            "triplet-entropy",
            "the triplet loss plus cross-entropy",
            needs=frozenset({"embedding", "logits", "hard_targets"}),
            options={**options, "triplet_weight": weight},
            build=build_triplet_entropy,
            sampler="pk",
        ),
    ]


def _variant(summary: str, recipe: Mapping[str, object] | None = None, **options: bool | float | str) -> Variant:
    return Variant(summary, options=options, recipe=recipe or {}, baseline="cross-entropy")


@hookimpl
def register_techniques() -> list[Technique]:
    return [
        Technique(
            name="triplet",
            summary="a learned distance: triplets of anchor, positive and negative, prediction by neighbours",
            papers=(
                "Schroff et al. 2015, FaceNet: a unified embedding for face recognition and clustering, arXiv:1503.03832",
                "Hermans et al. 2017, In defense of the triplet loss for person re-identification, arXiv:1703.07737",
                "Van der Merwe 2020, Triplet entropy loss, arXiv:2012.03775",
                "Musgrave et al. 2020, A metric learning reality check, arXiv:2003.08505",
            ),
            model="embedding",
            loss="triplet",
            augmentation="standard",
            recipe=Recipe(optimizer="adam", lr=3e-4, weight_decay=0.0, batch_size=64, epochs=60, warmup_epochs=3),
            weights="pretrained",
            variants={
                "batch-hard": Variant(
                    "hardest positive and negative, soft margin", options=SOFT, baseline="cross-entropy"
                ),
                "batch-hard-margin": _variant("hardest positive and negative, margin 0.2"),
                "semi-hard": _variant("FaceNet's mining, margin 0.2", mining="semi-hard"),
                "all": _variant("all triplets that are not yet right, margin 0.2", mining="all"),
                "random": _variant("a random positive and negative per anchor, margin 0.2", mining="random"),
                "nearest-mean": Variant(
                    "as batch-hard, predicting by class means",
                    options=SOFT,
                    predictor="nearest-mean",
                    baseline="cross-entropy",
                ),
                "entropy": Variant(
                    "plus cross-entropy, predicting by the classifier (Van der Merwe 2020)",
                    model="embedding-classifier",
                    loss="triplet-entropy",
                    options=SOFT,
                    # On vectors of length 1 a classifier must grow large weights before its logits say anything.
                    recipe={"lr_scale": {"classifier.*": 10.0}},
                    baseline="cross-entropy",
                ),
                "cross-entropy": Variant(
                    "the twin without triplets: a linear classifier, shuffled batches",
                    model="classifier",
                    loss="cross-entropy",
                ),
            },
            default="batch-hard",
        )
    ]
