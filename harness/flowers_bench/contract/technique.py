"""What a plugin contributes, as frozen values: models, losses, augmentations, techniques and their variants.

Nothing here imports torch: plugins are discovered, listed and planned without it. The heavy work happens inside
the `build` functions, which the trial's own process calls.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from flowers_bench.contract.options import Option, Options, OptionValue, ReadsOptions, parse_like, parse_options
from flowers_bench.util.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

    from flowers_bench.contract.drawing import DrawsParameters
    from flowers_bench.models.backbones import Backbone
    from flowers_bench.models.layers import Output
    from flowers_bench.training.finished import FinishedTrial

V = TypeVar("V")
#: What a field of a recipe can be; `lr_scale` is the one with a factor for each pattern.
RecipeValue = OptionValue | Mapping[str, float] | None
#: What a training can be computed in.
PRECISIONS = ("float32", "bfloat16", "tf32")
#: In the facts of a recipe that averages weights.
EMA_WARMUP = "ema_warmup"
Need = Literal[
    "hard_targets",  # class indices (N,): not mixed images
    "soft_targets",  # class probabilities (N, C)
    "embedding",  # the model's output has an embedding that is meant to be trained
    "logits",  # the model's output has logits
    "teacher",  # the model's output has a teacher's logits while it trains
    "cosines",  # its logits are scaled cosines between embedding and class vectors
    "class_embedding",  # its embedding has one dimension per class
    "tokens",  # the backbone is a transformer of patch tokens (timm's VisionTransformer)
    "conv3x3",  # the backbone has 3x3 convolutions in the chosen stage
    "stages",  # the backbone has timm's feature stages
    "second_view",  # the augmentation has a `second`
    "effect",  # in training its output has `more["effect"]` (N, C): what attention adds to the logits
    "stage_logits",  # the model's output has logits of its last S stages, `more["stage1"]` to `more["stageS"]`
    "descriptions",  # the data say in words what each class looks like
]


def _patience(value: object) -> OptionValue | None:
    return None if str(value).strip().lower() == "none" else parse_like(1, "patience", value)


def _factors(name: str, value: Any) -> dict[str, float]:
    try:
        return {str(pattern): float(factor) for pattern, factor in dict(value).items()}
    except (TypeError, ValueError):
        raise UsageError(f"{name}={value}: a technique's recipe gives factors by pattern; it cannot be set.") from None


@dataclass(frozen=True)
class Recipe:
    """Everything that training needs beyond model, loss and augmentation. Part of every result.

    Attributes:
        optimizer: `adam`, `adamw` or `sgd` (momentum 0.9, Nesterov); or one that a plugin registers; or any of timm's
            (`timm.optim.list_optimizers()`), with the settings that timm gives it.
        lr: peak learning rate.
        lr_scale: factor on `lr` for parameters whose name matches the pattern (`fnmatch`), first match wins. The classifier of
            a backbone is `classifier.*`, whatever timm calls it.
        layer_decay: layer-wise learning-rate decay, counted from the head, by the layers that timm tells (1 = none;
            Clark 2020).
        weight_decay: decoupled for adamw; never on biases, norms and other one-dimensional parameters, nor on what
            timm exempts (class token, position embedding).
        schedule: `cosine` to zero, or `constant`, after the warm-up; or one that a plugin registers.
        warmup_epochs: linear from zero. Where `--set`, a sweep or a suite gives `epochs` alone, it becomes `warmup_for` them.
        batch_size: images per step.
        epochs: at most this many.
        patience: stop after this many epochs without a better validation accuracy; None: never.
        image_size: side of the square that the model sees, in pixels.
        precision: `float32`; `bfloat16` for training under autocast; or `tf32` for training with TF32 products, on NVIDIA GPUs.
            What is reported is measured in float32 always.
        validation_precision: `float32`, or `training`: each epoch is measured in `precision`, and the best one chosen by that.
        clip_norm: largest norm of the gradient; 0 = no clipping.
        classifier_start: `fresh`, as the backbone makes it; or `probe`: logistic regression on the features of the training images,
            as the network starts (linear probing, then fine-tuning: Kumar 2022).
        ema_decay: evaluate an exponential moving average of the weights with this decay; 0 = none. It warms up as timm's
            `ModelEmaV3` does: update n, from 1, keeps min(ema_decay, 1 - n^(-2/3)) of the average, so that nothing of the
            initial weights stays in it.
    """

    optimizer: str = "adamw"
    lr: float = 1e-3
    lr_scale: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    layer_decay: float = 1.0
    weight_decay: float = 0.05
    schedule: str = "cosine"
    warmup_epochs: int = 1
    batch_size: int = 32
    epochs: int = 20
    patience: int | None = None
    image_size: int = 224
    precision: str = "float32"
    validation_precision: str = "float32"
    clip_norm: float = 0.0
    ema_decay: float = 0.0
    classifier_start: str = "fresh"

    def __post_init__(self) -> None:
        checks: Sequence[tuple[str, bool, str]] = (
            # Which names there are is known in planning, where the plugins are.
            ("optimizer", self.optimizer.isprintable() and bool(self.optimizer), "a name, such as adamw"),
            ("schedule", self.schedule.isprintable() and bool(self.schedule), "a name, such as cosine"),
            ("precision", self.precision in PRECISIONS, "float32, bfloat16 or tf32"),
            ("validation_precision", self.validation_precision in ("float32", "training"), "float32 or training"),
            ("lr", 0 < self.lr <= 100, "above 0 and at most 100"),
            ("lr_scale", all(v >= 0 for v in self.lr_scale.values()), "factors of at least 0"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            ("weight_decay", 0 <= self.weight_decay <= 10, "between 0 and 10"),
            ("epochs", 0 <= self.epochs <= 100000, "between 0 and 100000"),
            (
                "warmup_epochs",
                0 <= self.warmup_epochs <= self.epochs,
                f"between 0 and epochs ({self.epochs}); set both: --set epochs=... --set warmup_epochs=...",
            ),
            ("batch_size", 1 <= self.batch_size <= 65536, "between 1 and 65536"),
            ("patience", self.patience is None or self.patience >= 1, "at least 1, or none"),
            ("image_size", 8 <= self.image_size <= 4096, "between 8 and 4096 pixels"),
            ("clip_norm", 0 <= self.clip_norm < math.inf, "at least 0"),
            ("classifier_start", self.classifier_start in ("fresh", "probe"), "fresh or probe"),
            ("ema_decay", 0 <= self.ema_decay < 1, "at least 0 and below 1"),
        )
        for name, valid, allowed in checks:
            if not valid:
                raise UsageError(f"recipe: {name}={getattr(self, name)} must be {allowed}.")

    def changed(self, **changes: object) -> Recipe:
        """Copy the recipe with some fields replaced; values may be text. Raises `UsageError` for an unknown field or an
        invalid value."""
        fields = {name: getattr(self, name) for name in RECIPE_FIELDS}
        for name, value in changes.items():
            if name not in fields:
                raise unknown_name("recipe field", name, fields)
            if name == "lr_scale":
                fields[name] = MappingProxyType(_factors(name, value))
            else:
                fields[name] = _patience(value) if name == "patience" else parse_like(fields[name], name, value)
        return Recipe(**fields)

    def warmup_for(self, epochs: int) -> int:
        """Compute the warm-up, in epochs, for another number of epochs than the recipe's own.

        Of fewer epochs it is the same share, from one epoch to all but one; of more it stays as long as it is.
        """
        if epochs >= self.epochs:
            return self.warmup_epochs
        share = max(1, round(self.warmup_epochs * epochs / self.epochs))
        return min(share, self.warmup_epochs, max(0, epochs - 1))

    def facts(self) -> dict[str, RecipeValue]:
        """Give every field as a plain JSON value.

        Where weights are averaged there is also `ema_warmup`: the average did not always warm up, and trials from
        before that have other ids. `validation_precision` and `classifier_start` are left out where they change nothing, so that
        trials from before them have the same ids.
        """
        values = {name: getattr(self, name) for name in RECIPE_FIELDS}
        if self.precision == "float32" or self.validation_precision == "float32":
            del values["validation_precision"]
        if self.classifier_start == "fresh":
            del values["classifier_start"]
        averaging = {EMA_WARMUP: True} if self.ema_decay else {}
        return {**values, "lr_scale": dict(self.lr_scale), **averaging}

    @classmethod
    def from_facts(cls, facts: Mapping[str, object]) -> Recipe:
        """Make the recipe that has these facts."""
        return cls().changed(**{name: value for name, value in facts.items() if name != EMA_WARMUP})


#: Names of a recipe's fields.
RECIPE_FIELDS = tuple(field.name for field in dataclasses.fields(Recipe))


def in_use(recipe: Mapping[str, V], *, trained: bool) -> dict[str, V]:
    """Keep the facts of a recipe that influence the outcome: where nothing is trained, the image size alone."""
    return {name: value for name, value in recipe.items() if trained or name == "image_size"}


@dataclass(frozen=True)
class ModelContext(ReadsOptions):
    """What a model's `build` receives.

    Attributes:
        backbone: `backbone.create()` gives the timm model with its initial weights and a fresh classifier.
        num_classes: C.
        image_size: side of the square input, in pixels.
        options: the model's own options, every one with a value.
        dataset: `Dataset.facts()` of what it will be trained on, where known.
        store: the run store that the trial is kept in, where known: other finished trials are found there.
        plugin_files: plugins that the user named: what parts of those other trials may come from.
        class_names: C names, index = label.
        descriptions: C texts, index = label, for models that need `descriptions`.
        finder: what `trial` asks; the host's.
        validation: what `validation_top1` asks; the host's.
    """

    backbone: Backbone
    num_classes: int
    image_size: int
    options: Options
    dataset: Mapping[str, object] = field(default_factory=dict)
    store: Path | None = None
    plugin_files: Sequence[Path] = ()
    class_names: Sequence[str] = ()
    finder: Callable[[str], FinishedTrial] | None = field(default=None, repr=False, compare=False)
    descriptions: Sequence[str] = ()
    validation: Callable[[nn.Module], float] | None = field(default=None, repr=False, compare=False)

    def validation_top1(self, model: nn.Module) -> float | None:
        """Measure top-1 accuracy, from 0 to 1, of a model's classifier on the validation split: for a `build` that chooses among
        models. How long that takes is counted as fitting. The model is left on the trial's device, in evaluation mode.

        Returns:
            None where there are no images: while a run is planned, and when a finished trial is loaded again. What is built then may
            have any values: nobody looks at them, or the stored weights take their place.
        """
        return None if self.validation is None else self.validation(model)

    def trial(self, id: str) -> FinishedTrial:
        """Find a finished trial of the run store by its whole id. What it took is counted in this trial's cost, as inherited.

        Raises:
            UsageError: there is no such trial, it is not finished, or was trained on other images or another split.
        """
        if self.finder is None:
            raise UsageError(f"there is no run store to find trial {id} in.")
        return self.finder(id)


@dataclass(frozen=True)
class LossContext(ReadsOptions):
    """What a loss's `build` receives: the number of classes, the embedding's dimension, the loss's options, and the C classes'
    names, index = label."""

    num_classes: int
    embedding_dim: int
    options: Options
    class_names: Sequence[str] = ()


@dataclass(frozen=True)
class AugmentationContext(ReadsOptions):
    """What an augmentation's `image` and `batch` receive: the input size, the classes, the options."""

    image_size: int
    num_classes: int
    options: Options


@dataclass(frozen=True)
class Part:
    """What models, losses, augmentations, predictors, steps and optimisers have in common: a name, needs, and options.

    A part may have a method `begin_epoch(epoch, epochs)` on what its `build` (an augmentation's `image`, `batch`, `second`) made.
    It is called before each epoch, from 1, on resuming once more for the last one, and for the best one once it is chosen or
    loaded. What it does must depend on its two arguments alone. A model that has it may freeze and unfreeze parameters there.

    Attributes:
        revision: raised when the same options would give other numbers; part of a trial's identity where it is not 1.
        excused: checks of the conformance kit that do not apply to it, by name, each with the reason.
    """

    name: str
    summary: str
    needs: frozenset[Need] = frozenset()
    options: Mapping[str, Option] = field(default_factory=dict)
    revision: int = field(default=1, kw_only=True)
    excused: Mapping[str, str] = field(default_factory=dict, kw_only=True)

    def option_values(self, given: Mapping[str, object]) -> Options:
        """Give every option of this part its value: the given one, parsed, or the default."""
        return parse_options(self.options, given)


@dataclass(frozen=True)
class Model(Part):
    """Maps images (N, 3, H, W) to `flowers_bench.nn.Output`: logits (N, C) and embedding (N, D).

    Attributes:
        build: makes the module, with its initial weights and what is frozen already set (`requires_grad`).
        provides: what losses and predictors may rely on.
    """

    build: Callable[[ModelContext], nn.Module] = field(kw_only=True)
    provides: frozenset[Need] = frozenset({"logits", "embedding"})


@dataclass(frozen=True)
class Loss(Part):
    """Maps an `Output` in float32 and a target, hard (N,) int64 or soft (N, C) float, to a scalar.

    Attributes:
        build: makes the callable; a `nn.Module` may have parameters of its own, which are then trained too.
        sampler: how batches are drawn for it: `shuffled`, `pk` (P classes x K images) or `episodes`.
        predictor: how the model that it trained predicts: `classifier`, or the name of a registered predictor.
        probabilities: whether softmax of the predictor's scores is what it trains; False where only their order is.
    """

    build: Callable[[LossContext], Callable[[Output, Tensor], Tensor]] = field(kw_only=True)
    sampler: str = "shuffled"
    predictor: str = "classifier"
    probabilities: bool = True


@dataclass(frozen=True)
class Augmentation(Part):
    """What happens to training images.

    Attributes:
        image: makes the per-image transform, uint8 (3, H, W) to uint8 (3, image_size, image_size); typically
            a `torchvision.transforms.v2` transform. Its randomness must come from torch's global generator.
        batch: makes the per-batch transform, (images (N, 3, S, S) float, labels (N,)) to (images, targets), or None.
        provides: `soft_targets` where `batch` mixes labels, else `hard_targets`.
        views: how many versions of each training image there are, drawn once and for all (the same for every seed), of
            which each epoch shows one; None: `image` draws a new one at every step.
        second: as `image`, for a second view of each image, drawn anew at every step for the losses and steps that need
            `second_view`; None: there is none.
        parameters: makes what states the transform of `image` as parameters (`ImageParameters`): box, mirror image and colours. Images
            are then drawn by these, several times as fast, and those of an image depend on seed, epoch and image alone. It must draw as
            `image` does, which stays for whoever wants a single image. None: `image` draws.
    """

    image: Callable[[AugmentationContext], Callable[[Tensor], Tensor]] = field(kw_only=True)
    batch: Callable[[AugmentationContext], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] | None = None
    provides: frozenset[Need] = frozenset({"hard_targets"})
    views: Callable[[AugmentationContext], int] | None = None
    second: Callable[[AugmentationContext], Callable[[Tensor], Tensor]] | None = None
    parameters: Callable[[AugmentationContext], DrawsParameters] | None = None

    def offers(self) -> frozenset[Need]:
        """Give what losses and steps may rely on: what it provides, and `second_view` where it has one."""
        return self.provides | ({"second_view"} if self.second else frozenset())


@dataclass(frozen=True)
class Variant:
    """A named ablation of a technique: what it changes, and nothing else.

    Attributes:
        summary: one line.
        options: values for options of the technique's parts.
        recipe: recipe fields that differ from the technique's.
        model, loss, augmentation, predictor, step, backbone, weights: replacements, or None to keep the technique's.
        baseline: the variant it is to be compared with (its twin without the idea), or None. Where the variant is a
            technique's default one, a bare `--plugin NAME` runs both.
    """

    summary: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    recipe: Mapping[str, object] = field(default_factory=dict)
    model: str | None = None
    loss: str | None = None
    augmentation: str | None = None
    predictor: str | None = None
    backbone: str | None = None
    weights: str | None = None
    baseline: str | None = None
    step: str | None = None


@dataclass(frozen=True)
class Technique:
    """A model, a loss and an augmentation by name, the recipe that it is trained by, and named variants.

    Attributes:
        name: what `--plugin` takes.
        summary: one line.
        papers: citations, each with its arXiv number or DOI.
        model, loss, augmentation: names of parts, of this plugin or any other.
        recipe: the default one.
        backbone: default timm model name.
        weights: default initial weights: `none`, or `pretrained` for timm's default tag of the backbone.
        variants: by name.
        default: the variant that a bare `--plugin NAME` means.
        step: name of what happens with a batch.
    """

    name: str
    summary: str
    papers: tuple[str, ...]
    model: str
    loss: str
    augmentation: str
    recipe: Recipe
    variants: Mapping[str, Variant]
    default: str
    backbone: str = "resnet18"
    weights: str = "none"
    step: str = "usual"

    def variant(self, name: str | None) -> tuple[str, Variant]:
        """Find the variant of that name, or the default one. Raises `UsageError` with the valid names."""
        chosen = name or self.default
        if chosen not in self.variants:
            raise unknown_name(f"variant of {self.name}", chosen, self.variants)
        return chosen, self.variants[chosen]
