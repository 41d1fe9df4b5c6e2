"""Layers that several techniques share, what models return, and how they are frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench.util.errors import UsageError


@dataclass
class Output:
    """What every model returns.

    Attributes:
        logits: (N, C); (N, 0) of a model that only embeds.
        embedding: (N, D), the features that the classifier sees.
        teacher: (N, C), another network's logits for the same images, from models that provide `teacher`, while they
            train.
        more: other tensors of the images, (N, ...), by name: for losses and steps that know the model.
        second: what the model gives for the second view of the images, for losses that need `second_view`.
    """

    logits: Tensor
    embedding: Tensor
    teacher: Tensor | None = None
    more: Mapping[str, Tensor] = field(default_factory=dict)
    second: Output | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Output:
        """Apply `change` to every tensor, and give a new `Output`."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: _changed(value, change) for name, value in given.items()})

    def widened(self) -> Output:
        """Convert reduced precision, as under autocast, to float32: what losses get."""
        return self.each(lambda value: value.to(torch.promote_types(value.dtype, torch.float32)))


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Output):
        return value.each(change)
    return {name: change(tensor) for name, tensor in value.items()} if isinstance(value, Mapping) else value


class Classifier(nn.Module):
    """A timm backbone with its classifier, as images (N, 3, H, W) to `Output`.

    Attributes:
        only_backbone_sees_images: stated by a class whose `forward` gives the images to `self.backbone` and to nothing else;
            its frozen first layers are then computed once per image. A subclass that holds to it must state it anew.

    Args:
        backbone: a timm model with `forward_features`, `forward_head` and `get_classifier`.

    Raises:
        UsageError: it has several classifiers, which average their scores, as distilled transformers do.
    """

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if isinstance(backbone.get_classifier(), (tuple, nn.ModuleList)):  # type: ignore[operator]
            raise UsageError(
                f"{type(backbone).__name__} has several classifiers, where one is needed. Choose another --backbone, such as "
                "the model of the same family without distillation."
            )
        self.backbone = backbone

    def forward(self, images: Tensor) -> Output:
        """Compute the features once, then pool them (the embedding), then classify them."""
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        return self.classify(self.backbone.forward_head(features, pre_logits=True))  # type: ignore[operator]

    def classify(self, features: Tensor) -> Output:
        """Compute logits from the pooled features (N, D), which are the embedding."""
        classifier = self.backbone.get_classifier()  # type: ignore[operator]
        if isinstance(
            classifier, nn.Conv2d
        ):  # of one pixel, as the first residual networks of identity mappings have it
            return Output(classifier(features[..., None, None]).flatten(1), features)
        return Output(classifier(features), features)


class Embedder(nn.Module):
    """A timm backbone whose classifier was replaced by a projection: images (N, 3, H, W) to `Output`.

    Args:
        backbone: images to embeddings (N, D).
        classifier: embeddings to logits (N, C); None: the model only embeds, and its logits are (N, 0).
    """

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, classifier: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Output:
        """Compute the embedding, and the logits if there is a classifier."""
        return self._output(self.backbone(images))

    def classify(self, features: Tensor) -> Output:
        """Compute projection and logits from the backbone's pooled features (N, F)."""
        return self._output(self.backbone.get_classifier()(features))  # type: ignore[operator]

    def _output(self, embedding: Tensor) -> Output:
        return Output(embedding[:, :0] if self.classifier is None else self.classifier(embedding), embedding)


class L2Normalize(nn.Module):
    """Scales vectors to unit length along the last dimension."""

    def forward(self, vectors: Tensor) -> Tensor:
        """Scale (..., D) to unit length: (..., D)."""
        return F.normalize(vectors, dim=-1)


def freeze(module: nn.Module) -> None:
    """Freeze everything inside `module`: it gets no gradient. `train_mode` then keeps it in evaluation mode as well."""
    module.requires_grad_(False)


def same_shapes(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Say whether two networks' tensors have the same names and shapes, so that one's can be loaded into the other."""
    return {name: tensor.shape for name, tensor in first.items()} == {name: t.shape for name, t in second.items()}


def train_mode(model: nn.Module) -> None:
    """Set training mode, except that a module whose parameters are all frozen stays in evaluation mode.

    A frozen batch norm that went on updating its running statistics would not be frozen, and a frozen layer with
    dropout would not be deterministic.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
