"""Backbones: any timm model, where its initial weights come from, and what its stages are."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flowers_bench.models.network import (
    bare_network,
    classifier_names,
    refusal,
    size_argument,
    timm_with_small_networks,
    usual_size,
)
from flowers_bench.models.weights import Weights, WeightsReport
from flowers_bench.util.errors import UsageError

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer
    from torch import Tensor, nn


@dataclass
class Backbone:
    """A timm model to be created.

    Attributes:
        name: timm model name, without tag.
        weights: initial weights.
        num_classes: C, outputs of the classifier, which is always freshly initialised.
        image_size: side of the square input; given to every model that timm builds for one size.
        report: filled by `create`: how the weights met the model.
        created: filled by `create`: the models.
        required: filled by `require_beyond`: what weights must have beyond the network, and what to do where they do not.
    """

    name: str
    weights: Weights
    num_classes: int
    image_size: int
    report: WeightsReport = field(default_factory=WeightsReport)
    created: list[nn.Module] = field(default_factory=list)
    required: tuple[str, str] | None = None

    def create(self) -> nn.Module:
        """Create the model with its initial weights. Raises `UsageError` if the weights do not fit the model."""
        timm = timm_with_small_networks()
        arguments = {"num_classes": self.num_classes, **size_argument(self.name, self.image_size)}
        model: nn.Module = timm.create_model(self.name, pretrained=False, **arguments)
        if self.weights.path is not None:
            from flowers_bench.models.weights.fit import fitted

            network = replace(bare_network(self.name, self.image_size), model=model)
            values, self.report = fitted(self.weights, network)
            model.load_state_dict(values, strict=False)  # all but the classifier, as `fitted` made sure
        self.created.append(model)
        return model

    def file_tensors(self) -> dict[str, Tensor]:
        """Read every tensor of the weights' file by the file's own names, those too that `create` leaves out, such as a text tower's;
        empty of weights without a file. Raises `UsageError` if it is damaged."""
        from flowers_bench.models.weights.files import read_tensors

        return {} if self.weights.path is None else read_tensors(self.weights.path)

    def load_beyond(self) -> None:
        """Load what only the trained model has, such as the offsets of deformable convolutions, once `create`'s model was
        changed in place to what it was. Raises `UsageError` if the model has no such tensors."""
        if not self.report.beyond:
            return
        from flowers_bench.models.weights.fit import beyond

        found = beyond(self.weights, bare_network(self.name, self.image_size))
        takers = [model for model in self.created if not lacking(found, model)]
        if not takers:
            raise UsageError(_has_more(self.weights, lacking(found, self.created[0])))
        for model in takers:
            model.load_state_dict(found, strict=False)

    def require_beyond(self, what: str, advice: str) -> None:
        """Load as `load_beyond` does, in a model's `build`, what the model cannot do without unless it starts at random. Weights
        that have nothing of the kind are then refused when a trial is planned.

        Args:
            what: a name for it, such as "text tower".
            advice: which weights have it, as a sentence.

        Raises:
            UsageError: the weights have nothing beyond the network.
        """
        self.required = what, advice
        self.load_beyond()
        self.refuse_lacking(self.weights, self.report.beyond)

    def refuse_lacking(self, weights: Weights, found: Collection[str]) -> None:
        """Raise `UsageError` where the model requires more than the network, and of weights nothing more was found."""
        if self.required is not None and weights.path is not None and not found:
            what, advice = self.required
            raise UsageError(f"weights {weights.name} have no {what}. {advice}")


def lacking(tensors: Mapping[str, Tensor], model: nn.Module) -> list[str]:
    """Name the tensors that the model does not have, or in another shape."""
    own = model.state_dict()
    return [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]


def _has_more(weights: Weights, names: Sequence[str]) -> str:
    source = weights.provenance
    assert source is not None
    settings = " ".join(f"{name}={value}" for name, value in source.options.items())
    return (
        f"weights {weights.name} are of a model that has more than the backbone: {len(names)} tensors such as {names[0]}, which "
        f"this one lacks. They were trained as model {source.model!r} with {settings or 'no options'}: say the same, "
        "or choose other weights."
    )


def check_beyond(weights: Weights, backbone: Backbone) -> None:
    """Compare what only the trained model has with a model that was built, without values.

    Raises:
        UsageError: it has no such tensors; or requires some, and the weights have none.
    """
    if weights.provenance is None:
        backbone.refuse_lacking(weights, ())
        return
    from flowers_bench.models.weights.fit import beyond

    found = beyond(weights, bare_network(backbone.name, backbone.image_size))
    backbone.refuse_lacking(weights, found)
    missing = [lacking(found, model) for model in backbone.created]
    if missing and all(missing):
        raise UsageError(_has_more(weights, missing[0]))


@functools.lru_cache(maxsize=8)
def check_weights(weights: Weights, backbone: str, image_size: int) -> WeightsReport:
    """Compare weights with a model before anything trains.

    Returns:
        what will be loaded.

    Raises:
        UsageError: the file is damaged or does not fit; where the image size is the reason, with the one that does.
    """
    from flowers_bench.models.weights.fit import fits, fitted

    if weights.path is None:
        return WeightsReport()
    network = bare_network(backbone, image_size)
    sized = bool(size_argument(backbone, image_size))
    if sized and not fits(weights, network) and fits(weights, bare_network(backbone)):
        raise UsageError(
            f"weights file {weights.path} fits {backbone} at {usual_size(backbone)} px and not at image_size={image_size}: "
            "layers of this model are as large as the image, and timm does not resample them. "
            f"Say --set image_size={usual_size(backbone)}, or --weights none."
        )
    return fitted(weights, network)[1]


#: How far from an image size that a backbone does not take others are tried, as a factor, and how many.
_NEAR, _TRIES = 2.0, 8


@functools.lru_cache(maxsize=256)
def check_image_size(name: str, image_size: int) -> None:
    """Run one image through the model, without values, before anything trains.

    Raises:
        UsageError: it does not take images of that size; with the nearest sizes that it takes.
    """
    problem = refusal(name, image_size, size_argument(name, image_size))
    if problem is None:
        return
    works = sorted(size for direction in (-1, 1) for size in _nearest(name, image_size, direction))
    usual = usual_size(name)
    if not works and refusal(name, usual, {}) is None:
        works = [usual]
    advice = " or ".join(f"--set image_size={size}" for size in works)
    raise UsageError(
        f"backbone {name} does not take images of image_size={image_size} ({problem}). "
        + (f"Say {advice}." if works else "Choose another --backbone.")
    )


def _nearest(name: str, image_size: int, direction: int) -> list[int]:
    """Find the next size up or down that the model takes, if there is one near, among those that models divide into
    patches, windows and strides."""
    far = int(image_size * _NEAR**direction)
    low, high = min(image_size, far), max(image_size, far)
    steps = (14, 16, usual_size(name))
    sizes = {k * step for step in steps for k in range(1, high // step + 1) if low <= k * step <= high} - {image_size}
    tried = sorted(sizes, reverse=direction < 0)[:_TRIES]
    found = (size for size in tried if refusal(name, size, size_argument(name, size)) is None)
    return list(itertools.islice(found, 1))


def check_backbone(name: str) -> None:
    """Raise `UsageError`, with near names, unless timm knows `name`."""
    import difflib

    timm = timm_with_small_networks()
    if "." in name:
        model = name.partition(".")[0]
        raise UsageError(f"--backbone {name}: say --backbone {model} --weights {name}.")
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(
            f"timm has no model {name!r}.{hint} List them: python -c 'import timm; print(timm.list_models())'"
        )


@dataclass(frozen=True)
class Stage:
    """Consecutive modules of a backbone that work at one resolution.

    Attributes:
        name: the module that timm names as the stage's output.
        modules: names of the backbone's direct or nested modules that belong to it.
    """

    name: str
    modules: tuple[str, ...]


def stages(model: nn.Module) -> list[Stage]:
    """List the backbone's stages as timm's `feature_info` names them, in order.

    The stem belongs to the first stage; what follows the last one, but not the classifier, to the last.

    Raises:
        UsageError: the model has no `feature_info`.
    """
    info = getattr(model, "feature_info", None)
    if not info:
        raise UsageError(f"{type(model).__name__} has no feature stages (timm's feature_info).")
    ends = [entry["module"] for entry in (info if isinstance(info, list) else info.info)]
    owners = _parameter_owners(model)
    if any(_inside(owner, end) for owner in owners for end in ends):
        # ResNets list the stem's activation as a feature: a stem is not a stage. (VGGs list activations only.)
        ends = [end for end in ends if any(_inside(owner, end) for owner in owners)]
    order = {name: position for position, (name, _) in enumerate(model.named_modules())}
    found: list[Stage] = []
    start = 0
    for end in ends:
        # VGG names activations, which own nothing: what counts is all that is registered up to there.
        stop = sum(order[owner] <= order[end] or _inside(owner, end) for owner in owners)
        if stop > start:
            found.append(Stage(end, tuple(owners[start:stop])))
            start = stop
    if not found:
        raise UsageError(f"{type(model).__name__} has no feature stages with parameters.")
    last = found[-1]
    found[-1] = Stage(last.name, (*last.modules, *owners[start:]))
    return found


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _parameter_owners(model: Any) -> list[str]:
    """List the modules that hold parameters directly, in forward order of registration, without the classifier."""
    heads = classifier_names(model)
    return [
        name
        for name, module in model.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not any(_inside(name, head) for head in heads)
    ]


def freeze_stages(model: nn.Module, count: int) -> None:
    """Freeze the first `count` stages: they get no gradient. Raises `UsageError` if there are fewer."""
    found = stages(model)
    if not 0 <= count <= len(found):
        raise UsageError(
            f"cannot freeze {count} stages: this backbone has {len(found)} ({', '.join(s.name for s in found)})."
        )
    for stage in found[:count]:
        for name in stage.modules:
            # The owner's own parameters only: for a ViT the root module holds cls_token and pos_embed.
            for parameter in model.get_submodule(name).parameters(recurse=False):
                parameter.requires_grad_(False)


def mean_and_std(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give the mean and standard deviation of the pixels (0 to 1) that the backbone's weights were trained with;
    ImageNet's if it says none."""
    config: Any = next((m.pretrained_cfg for m in model.modules() if hasattr(m, "pretrained_cfg")), {})
    return tuple(config.get("mean") or (0.485, 0.456, 0.406)), tuple(config.get("std") or (0.229, 0.224, 0.225))


def vision_transformer(model: nn.Module) -> VisionTransformer:
    """Check that `model` is a plain timm VisionTransformer (patch tokens through `blocks`, one classifier), and give
    it.

    Raises:
        UsageError: it is something else.
    """
    from timm.models.vision_transformer import VisionTransformer

    if not isinstance(model, VisionTransformer) or isinstance(model.get_classifier(), tuple):
        raise UsageError(
            f"{type(model).__name__} is not a vision transformer with one classifier. Choose a timm VisionTransformer such "
            "as --backbone vit_base_patch16_224, vit_small_patch14_dinov2 or deit3_small_patch16_224."
        )
    return model


def train_only_classifier(model: nn.Module) -> None:
    """Freeze everything but the classifier."""
    model.requires_grad_(False)
    for name in classifier_names(model):
        model.get_submodule(name).requires_grad_(True)


def replace_classifier(model: nn.Module, build: Callable[[int, int], nn.Module]) -> None:
    """Put `build(embedding_dim, num_classes)` in place of the backbone's linear classifier.

    Raises:
        UsageError: the backbone's classifier is not one linear layer.
    """
    from torch import nn

    names = classifier_names(model)
    linear = model.get_submodule(names[0])
    if len(names) != 1 or not isinstance(linear, nn.Linear):
        raise UsageError(f"the classifier of {type(model).__name__} is not one linear layer, so it cannot be replaced.")
    model.set_submodule(names[0], build(linear.in_features, linear.out_features))
