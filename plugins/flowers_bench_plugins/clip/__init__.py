"""CLIP with its real weights: classes of photographs are told by their names, alone or as the start of a linear classifier.

Papers: Radford et al. 2021, "Learning transferable visual models from natural language supervision" (CLIP, arXiv:2103.00020), sections 3.1
and 3.2; Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv:2109.01903), section 2, for the classifier's start. With image tower
f and text tower g, trained together so that an image is near its caption, the templates T ("a photo of a {}.") and a learned scale s,

    x   = f(image) / |f(image)|
    t_c = mean over templates of  g(template with the name of class c) / | |,   then of length 1 again
    z_c = s x . t_c

    zero-shot   z as it is: nothing trained, no image seen
    probe       a linear classifier in place of t, which starts at t; the image tower stays
    full        that, and the image tower is fine-tuned

The image tower is timm's vision transformer of that name (`--backbone vit_base_patch32_clip_224`), the text tower that of the package
open_clip (`pip install 'flowers-bench[clip]'`). Both are read from one file of open_clip's:

    flowers-bench --plugin clip --weights open_clip_model.safetensors --data ../my/photos

A trial stores the vectors of its class names, not the text tower: whoever predicts with it needs neither the package nor the file.

What differs from the paper: CLIP averages 80 templates for ImageNet, and has one for flowers, "a photo of a {}, a type of flower."; the default here is
the one that fits everything, `templates` takes others. The linear probe of Radford 2021 starts at random and is solved by L-BFGS; this one starts at t, as Wortsman's,
and is trained by AdamW. Names of classes are taken as the data have them, with underscores as spaces.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from flowers_bench import Model, ModelContext, Option, Recipe, Technique, UsageError, Variant, hookimpl

if TYPE_CHECKING:
    from torch import nn

#: What may be trained.
NOTHING, HEAD, ALL = "nothing", "head", "all"
#: Between templates, in the option.
SEPARATOR = "|"


def build_clip(context: ModelContext) -> nn.Module:
    """Build the image tower with its projection and a classifier whose rows are the class names' vectors; of weights `none` both are
    random. Raises `UsageError` where the weights have no text tower, or the package that runs it is missing."""
    from torch import nn

    from flowers_bench.backbones import replace_classifier
    from flowers_bench.nn import freeze
    from flowers_bench_plugins.clip.layers import Clip, refuse_unfit, start_from_text

    options, backbone = context.options, context.backbone.create()
    features = int(backbone.num_features)  # type: ignore[arg-type]
    replace_classifier(backbone, lambda width, classes: nn.Identity())
    model = Clip(backbone, features, options.integer("clip_dimension"), context.num_classes)
    tensors = context.backbone.file_tensors()
    if tensors:
        refuse_unfit(tensors, model, context.backbone.weights.name)
        start_from_text(model, tensors, texts_of(context), quick="quickgelu" in context.backbone.name)
    if options.text("clip_tuned") != ALL:
        freeze(model)
        model.head.requires_grad_(options.text("clip_tuned") == HEAD)
    return model


def texts_of(context: ModelContext) -> list[list[str]]:
    """Put each class's name into each template: C lists of texts. Raises `UsageError` for a template without a place for it."""
    templates = [part.strip() for part in context.options.text("templates").split(SEPARATOR) if part.strip()]
    for template in templates or [""]:
        if template.count("{}") != 1:
            raise UsageError(
                f"templates={context.options.text('templates')!r}: each has {{}} once, where the class's name goes; several are separated "
                f"by {SEPARATOR}."
            )
    names = [name.replace("_", " ") for name in context.class_names]
    return [[template.replace("{}", name) for template in templates] for name in names]


@hookimpl
def register_models() -> list[Model]:
    return [
        Model(
            "clip",
            "CLIP's image tower with a classifier that starts from the classes' names",
            options={
                "clip_tuned": Option(NOTHING, "what is trained", choices=(NOTHING, HEAD, ALL)),
                "clip_dimension": Option(
                    512, "D of the common space, which the weights have", minimum=1, maximum=65536
                ),
                "templates": Option(
                    "a photo of a {}.", f"what is said of a class, {{}} for its name; several separated by {SEPARATOR}"
                ),
            },
            build=build_clip,
        )
    ]


@hookimpl
def register_techniques() -> list[Technique]:
    untrained = {"epochs": 0, "warmup_epochs": 0}
    nothing = {"clip_tuned": NOTHING}
    return [
        Technique(
            name="clip",
            summary="photographs told by the names of their classes, with weights of open_clip's",
            papers=(
                "Radford et al. 2021, Learning transferable visual models from natural language supervision, arXiv:2103.00020",
                "Wortsman et al. 2022, Robust fine-tuning of zero-shot models, arXiv:2109.01903",
            ),
            model="clip",
            loss="cross-entropy",
            augmentation="standard",
            recipe=Recipe(optimizer="adamw", lr=1e-3, weight_decay=0.0, epochs=20, warmup_epochs=1),
            backbone="vit_base_patch32_clip_224",
            weights="pretrained",
            variants={
                "probe": Variant(
                    "a linear classifier from the names", options={"clip_tuned": HEAD}, baseline="zero-shot"
                ),
                "full": Variant(
                    "image tower and classifier, from the names",
                    options={"clip_tuned": ALL},
                    recipe={"lr": 3e-5, "weight_decay": 0.1, "epochs": 10},
                    baseline="probe",
                ),
                "tip": Variant(
                    "the names and the vote of similar training images (Tip-Adapter)",
                    options=nothing,
                    predictor="tip-adapter",
                    augmentation="none",
                    recipe=untrained,
                    baseline="zero-shot",
                ),
                "zero-shot": Variant(
                    "the names alone, nothing trained, no image seen",
                    options=nothing,
                    augmentation="none",
                    recipe=untrained,
                ),
            },
            default="probe",
        )
    ]
