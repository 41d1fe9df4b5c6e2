"""Language: classes are told by what is written about them, alone or beside a few images.

An image tower f and a text tower g were trained so that an image is near its own description. With x = f(image) / |f(image)|,
t_c = g(description of c) / |g(description of c)| and a learned scale s, a class scores

    z_c = s x . t_c                                                                     (zero-shot)

Papers, each a technique here:

- `zero-shot`: Radford et al. 2021 (CLIP, arXiv:2103.00020), section 3.1: z as it is, nothing trained.
- `text-probe`: a linear classifier whose rows start as t_c (Radford 2021, section 3.2, has them start at random; Wortsman et al.
  2022, arXiv:2109.01903, section 2, start at t_c).
- `tip-adapter`: Zhang et al. 2022 (arXiv:2111.03930), equations 3 to 5: with training images' vectors F (N, D) and their
  one-hot classes L (N, C), nothing trained,

      z + alpha exp(-beta (1 - x F^T)) L

  its variant `tip-f`, Tip-Adapter-F (section 3.3), trains F, from there, by cross-entropy of the training images' scores.
- `clip-adapter`: Gao et al. 2021 (arXiv:2110.04544), equations 4 and 6: x becomes r relu(W2 relu(W1 x)) + (1 - r) x.
- `coop`: Zhou et al. 2022 (arXiv:2109.01134), section 3.2: vectors v_1 .. v_M before the words of every class are learned.
- `wise-ft`: Wortsman et al. 2022 (arXiv:2109.01903), equation 1: with theta_0 the text-probe's start and theta_1 what fine-tuning made
  of it, (1 - alpha) theta_0 + alpha theta_1, for any alpha from one training.
- `flyp`: Goyal et al. 2023 (arXiv:2212.00638), section 4: both towers are fine-tuned by the loss that they were trained by.

The towers come with the package (`--weights petals`): they were trained on drawn flowers and know 77 words, so that all of this
runs on `petals` and nowhere else. Towers that were trained on photographs are not built in yet.

What differs from the paper: the towers are tiny (0.5 million parameters) and were trained on descriptions of 600 species, not on
400 million pairs; a class has one full description, not a name in 80 templates; the loss contrasts an image with the descriptions
of all classes at once, where CLIP and FLYP contrast it with the batch's and texts with images too; the text's vector is the mean
over its words, CLIP's is the last one's. `clip-adapter` adapts images alone, as the authors advise. `coop` has 4 vectors without
positions, shared by all classes; the authors' 16 replace the words "a photo of a". `tip-adapter` has the authors' default alpha 1 and
beta 5.5, which they then search. `tip-f` has their 20 epochs of batches of 256 by AdamW at 0.001 with a cosine, but on images without augmentation, whose own
vote is left out instead: it would name their class.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flowers_bench import (
    Features,
    Model,
    ModelContext,
    Option,
    Predictor,
    PredictorContext,
    Recipe,
    Technique,
    UsageError,
    Variant,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.nn import Output


def towers(context: ModelContext) -> nn.Module:
    """Create the image tower with its projection and the text tower as `language`, with their initial weights. Raises
    `UsageError` without descriptions."""
    from torch import nn

    from flowers_bench.backbones import replace_classifier
    from flowers_bench_plugins.language.layers import Language

    if not context.descriptions:
        raise UsageError("techniques with language need data that describe their classes, such as --data petals.")
    backbone = context.backbone.create()
    features = backbone.num_features
    replace_classifier(backbone, lambda width, classes: nn.Identity())
    backbone.language = Language(int(features))  # type: ignore[arg-type]
    # Before anything starts from what it says.
    context.backbone.require_beyond("text tower", "Say --weights petals, or --weights none.")
    return backbone


def build_pair(context: ModelContext) -> nn.Module:
    """Build zero-shot's network; frozen unless `train_towers`."""
    from flowers_bench.nn import freeze
    from flowers_bench_plugins.language.layers import Pair

    backbone = towers(context)
    if not context.options.flag("train_towers"):
        freeze(backbone)
    return Pair(backbone, context.descriptions)


def build_text_probe(context: ModelContext) -> nn.Module:
    """Build the linear classifier on the image tower, which is frozen if `freeze_tower`."""
    from flowers_bench.nn import freeze
    from flowers_bench_plugins.language.layers import TextProbe

    backbone = towers(context)
    if context.options.flag("freeze_tower"):
        freeze(backbone)
    return TextProbe(backbone, context.descriptions, context.options.flag("from_text"))


def build_wise_ft(context: ModelContext) -> nn.Module:
    """Build the text-probe between its start and what a finished trial of `text-probe/full` made of it, frozen. Raises `UsageError`
    where the trial is no such one."""
    import torch

    from flowers_bench.nn import freeze, same_shapes
    from flowers_bench_plugins.language.layers import TextProbe

    tuned = context.trial(context.options.text("fine_tuned")).weights()
    model = TextProbe(towers(context), context.descriptions, from_text=True)
    start, alpha = model.state_dict(), context.options.number("alpha")
    if not same_shapes(tuned, start):
        raise UsageError(
            f"fine_tuned={context.options.text('fine_tuned')}: this is no trial of text-probe/full on {context.backbone.name}."
        )
    if not next(model.parameters()).is_meta:  # in planning, there are no values yet
        mixed = {
            name: torch.lerp(value, tuned[name], alpha) if value.is_floating_point() else tuned[name]
            for name, value in start.items()
        }
        model.load_state_dict(mixed)
    freeze(model)
    return model


def build_clip_adapter(context: ModelContext) -> nn.Module:
    """Build the bottleneck on the frozen image tower."""
    from flowers_bench_plugins.language.layers import ClipAdapter

    options = context.options
    return ClipAdapter(towers(context), context.descriptions, options.number("ratio"), options.integer("reduction"))


def build_coop(context: ModelContext) -> nn.Module:
    """Build the learned vectors before the frozen text tower's words."""
    from flowers_bench_plugins.language.layers import ContextOptimization

    return ContextOptimization(towers(context), context.descriptions, context.options.integer("context_length"))


def fit_tip(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Keep the training images, which vote beside the descriptions."""
    from flowers_bench_plugins.language.predictor import fit_tip

    return fit_tip(context, features)


def fit_tip_f(context: PredictorContext, features: Features) -> Callable[[Output, Tensor | None], Tensor]:
    """Train the training images' vectors, which then vote beside the descriptions."""
    from flowers_bench_plugins.language.predictor import fit_tip_f

    return fit_tip_f(context, features)


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "pair",
            "an image tower and a text tower: scores are similarities to the classes' descriptions",
            needs=frozenset({"descriptions"}),
            options={"train_towers": Option(False, "train both towers")},
            build=build_pair,
        ),
        Model(
            "text-probe",
            "a linear classifier on an image tower that starts from the classes' descriptions",
            needs=frozenset({"descriptions"}),
            options={
                "from_text": Option(True, "start from the descriptions; otherwise at random"),
                "freeze_tower": Option(True, "train the classifier alone"),
            },
            build=build_text_probe,
        ),
        Model(
            "wise-ft",
            "a text-probe between its start and what fine-tuning made of it",
            needs=frozenset({"descriptions"}),
            options={
                "fine_tuned": Option("", "id of a finished trial of text-probe/full of the same run store"),
                "alpha": Option(0.5, "share of the fine-tuned weights", minimum=0, maximum=1, search=(0.0, 1.0)),
            },
            build=build_wise_ft,
        ),
        Model(
            "clip-adapter",
            "a trained bottleneck on a frozen image tower",
            needs=frozenset({"descriptions"}),
            options={
                "ratio": Option(0.2, "r, the bottleneck's share", minimum=0, maximum=1, search=(0.1, 0.9)),
                "reduction": Option(4, "how many times narrower the bottleneck is", minimum=1, maximum=16),
            },
            build=build_clip_adapter,
            excused={"overfits one batch": "the text's directions stay, which pictures of noise need not point at"},
        ),
        Model(
            "coop",
            "learned vectors before the words of a frozen text tower",
            needs=frozenset({"descriptions"}),
            options={"context_length": Option(4, "M, how many vectors", minimum=1, maximum=64)},
            build=build_coop,
            excused={"overfits one batch": "a few vectors for all classes together cannot learn pictures by heart"},
        ),
    ]


@hookimpl
def register_predictors() -> list[Predictor]:
    vote = {
        "tip_weight": Option(1.0, "alpha, the vote's weight", minimum=0, maximum=1000, search=(0.1, 10.0)),
        "tip_sharpness": Option(5.5, "beta, how near voters must be", minimum=0, maximum=1000, search=(1.0, 50.0)),
    }
    training = {
        "tip_epochs": Option(20, "passes over the training images", minimum=0, maximum=10000),
        "tip_rate": Option(1e-3, "learning rate of the voters", minimum=1e-9, maximum=10, search=(1e-4, 1e-2)),
    }
    return [
        Predictor(
            "tip-adapter",
            "the descriptions' scores and the vote of similar training images",
            options=vote,
            fit=fit_tip,
            needs=frozenset({"embedding", "logits"}),
            probabilities=False,
        ),
        Predictor(
            "tip-adapter-f",
            "the descriptions' scores and the vote of vectors that start as training images and are trained",
            options={**vote, **training},
            fit=fit_tip_f,
            needs=frozenset({"embedding", "logits"}),
            probabilities=True,
        ),
    ]


RADFORD = "Radford et al. 2021, Learning transferable visual models from natural language supervision, arXiv:2103.00020"
UNTRAINED = Recipe(epochs=0, warmup_epochs=0)
ZERO_SHOT = Variant(
    "the descriptions alone, nothing trained, no image seen",
    model="pair",
    loss="cross-entropy",
    augmentation="none",
    predictor="classifier",
    options={"train_towers": False},
    recipe={"epochs": 0, "warmup_epochs": 0},
)


def _technique(
    name: str, summary: str, paper: str, model: str, recipe: Recipe, variants: dict[str, Variant], augmentation: str
) -> Technique:
    """Declare a technique on the embedded towers; its first variant is the default one."""
    return Technique(
        name=name,
        summary=summary,
        papers=(paper,) if paper == RADFORD else (paper, RADFORD),
        model=model,
        loss="cross-entropy",
        augmentation=augmentation,
        recipe=recipe,
        weights="pretrained",
        variants=variants,
        default=next(iter(variants)),
    )


@hookimpl
def register_techniques() -> list[Technique]:
    light = Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.0, batch_size=32, epochs=20, warmup_epochs=1)
    return [
        _technique(
            "zero-shot",
            "classes told by their descriptions alone, nothing trained",
            RADFORD,
            "pair",
            UNTRAINED,
            {"descriptions": ZERO_SHOT},
            "none",
        ),
        _technique(
            "text-probe",
            "a linear classifier that starts from the classes' descriptions",
            "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903",
            "text-probe",
            light,
            {
                "text": Variant("the classifier alone, from the descriptions", baseline="random"),
                "random": Variant("the classifier alone, from random rows", options={"from_text": False}),
                "full": Variant(
                    "image tower and classifier, from the descriptions",
                    options={"freeze_tower": False},
                    baseline="text",
                ),
            },
            "standard",
        ),
        _technique(
            "tip-adapter",
            "descriptions and the vote of similar training images",
            "Zhang et al. 2022, Tip-Adapter: training-free adaption of CLIP for few-shot classification, arXiv:2111.03930",
            "pair",
            UNTRAINED,
            {
                "tip": Variant("alpha 1, beta 5.5", predictor="tip-adapter", baseline="zero-shot"),
                "tip-f": Variant("Tip-Adapter-F: the vectors are trained", predictor="tip-adapter-f", baseline="tip"),
                "zero-shot": ZERO_SHOT,
            },
            "none",
        ),
        _technique(
            "clip-adapter",
            "a trained bottleneck on the image tower's vector, scored by descriptions",
            "Gao et al. 2021, CLIP-Adapter: better vision-language models with feature adapters, arXiv:2110.04544",
            "clip-adapter",
            light,
            {"adapter": Variant("ratio 0.2", baseline="zero-shot"), "zero-shot": ZERO_SHOT},
            "standard",
        ),
        _technique(
            "coop",
            "learned vectors before the words of the descriptions",
            "Zhou et al. 2022, Learning to prompt for vision-language models, arXiv:2109.01134",
            "coop",
            light,
            {"coop": Variant("four vectors", baseline="zero-shot"), "zero-shot": ZERO_SHOT},
            "standard",
        ),
        _technique(
            "wise-ft",
            "between zero-shot and fine-tuned weights, nothing trained",
            "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903",
            "wise-ft",
            UNTRAINED,
            {
                "half": Variant("half of each", options={"alpha": 0.5}, baseline="zero-shot"),
                **{
                    f"a{alpha:g}": Variant(f"alpha {alpha:g}", options={"alpha": alpha})
                    for alpha in (0.2, 0.4, 0.6, 0.8)
                },
                "zero-shot": ZERO_SHOT,
            },
            "none",
        ),
        _technique(
            "flyp",
            "both towers fine-tuned by the loss that they were trained by",
            "Goyal et al. 2023, Finetune like you pretrain, arXiv:2212.00638",
            "pair",
            Recipe(optimizer="adamw", lr=1e-3, epochs=20, warmup_epochs=1),
            {
                "flyp": Variant("both towers", options={"train_towers": True}, baseline="cross-entropy"),
                "cross-entropy": Variant(
                    "image tower and a classifier from the descriptions, by cross-entropy",
                    model="text-probe",
                    options={"freeze_tower": False},
                ),
                "scratch": Variant(
                    "both towers from random weights: how the embedded ones were made",
                    options={"train_towers": True},
                    weights="none",
                ),
            },
            "standard",
        ),
    ]
