"""Building blocks that techniques compose, so that a technique's own file can stay short."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

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
    """

    logits: Tensor
    embedding: Tensor
    teacher: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> Output:
        """The same with `change` made to every tensor in it."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in given.items() if isinstance(value, Tensor)})

    def widened(self) -> Output:
        """The same in float32 where it is in less, as under autocast: what losses get."""
        return self.each(lambda value: value.to(torch.promote_types(value.dtype, torch.float32)))


class Classifier(nn.Module):
    """A timm backbone with its classifier, as images (N, 3, H, W) to `Output`.

    Args:
        backbone: a timm model with `forward_features`, `forward_head` and `get_classifier`.

    Raises:
        UsageError: it has several classifiers, which average their scores, as distilled transformers do.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        if isinstance(backbone.get_classifier(), (tuple, nn.ModuleList)):  # type: ignore[operator]
            raise UsageError(
                f"{type(backbone).__name__} has several classifiers, where one is needed. Choose another --backbone, such as "
                "the model of the same family without distillation."
            )
        self.backbone = backbone

    def forward(self, images: Tensor) -> Output:
        """Features once, then pooled (the embedding), then classified."""
        features = self.backbone.forward_features(images)  # type: ignore[operator]
        return self.classify(self.backbone.forward_head(features, pre_logits=True))  # type: ignore[operator]

    def classify(self, features: Tensor) -> Output:
        """What follows the pooled features (N, D), which are the embedding."""
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

    def __init__(self, backbone: nn.Module, classifier: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.classifier = classifier

    def forward(self, images: Tensor) -> Output:
        """The embedding, then classified if there is a classifier."""
        return self._output(self.backbone(images))

    def classify(self, features: Tensor) -> Output:
        """What follows the backbone's pooled features (N, F): projection and classifier."""
        return self._output(self.backbone.get_classifier()(features))  # type: ignore[operator]

    def _output(self, embedding: Tensor) -> Output:
        return Output(embedding[:, :0] if self.classifier is None else self.classifier(embedding), embedding)


class L2Normalize(nn.Module):
    """Scales vectors to unit length along the last dimension."""

    def forward(self, vectors: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return F.normalize(vectors, dim=-1)


class Residual(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """Any shape that `inner` keeps."""
        return x + self.inner(x)


class Parallel(nn.Module):
    """The same input through several branches, concatenated over channels (dimension 1)."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, sum of the branches' channels, H, W)."""
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Distilled(Classifier):
    """A backbone that is accompanied by a trained network while it trains.

    The teacher is no part of this module: it is not in the state, not among the parameters, and never run in
    evaluation, so the student is saved, counted and timed alone.

    Args:
        backbone: the student, as for `Classifier`.
        load: gives the teacher as a function from images, as the student gets them, to logits; called when training
            starts.
    """

    def __init__(self, backbone: nn.Module, load: Callable[[torch.device], Callable[[Tensor], Tensor]]) -> None:
        super().__init__(backbone)
        self._load = load
        self._teacher: Callable[[Tensor], Tensor] | None = None

    def forward(self, images: Tensor) -> Output:
        """As `Classifier`; in training mode also the teacher's logits."""
        output = super().forward(images)
        if self.training:
            self._teacher = self._teacher or self._load(images.device)
            with torch.no_grad():
                output.teacher = self._teacher(images)
        return output


class Extended(nn.Module):
    """A convolutional backbone with modules of its own after its features, and a head: images to `Output`.

    Args:
        backbone: gives features (N, C, H, W) by `forward_features`; its own head is not used.
        extension: (N, C, H, W) to the same.
        neck: pooled features (N, C) to the embedding (N, D).
        classifier: (N, D) to logits.
    """

    def __init__(self, backbone: nn.Module, extension: nn.Module, neck: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.extension = extension
        self.neck = neck
        self.classifier = classifier

    def forward(self, images: Tensor) -> Output:
        """Features, extension, average over the image, head."""
        features = self.extension(self.backbone.forward_features(images))  # type: ignore[operator]
        embedding = self.neck(features.mean((2, 3)))
        return Output(self.classifier(embedding), embedding)


class CosineLinear(nn.Module):
    """A classifier without biases or norms: scale * cos(x, w_c) (Wang et al. 2018, arXiv:1801.09414, equation 3).

    Args:
        embedding_dim: D.
        num_classes: C.
        scale: s; the logits lie in [-s, s].
    """

    def __init__(self, embedding_dim: int, num_classes: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_classes, embedding_dim))
        self.scale = scale
        nn.init.normal_(self.weight)  # only the directions count: uniform on the sphere

    def forward(self, embedding: Tensor) -> Tensor:
        """(N, D) to (N, C)."""
        return self.scale * F.linear(F.normalize(embedding, dim=-1), F.normalize(self.weight, dim=-1))

    def extra_repr(self) -> str:
        """Shape and scale, for `print`."""
        return f"{self.weight.shape[1]}, {self.weight.shape[0]}, scale={self.scale:g}"


class PromptedBlocks(nn.Sequential):
    """A transformer's blocks with learned tokens among their input (Jia et al. 2022, arXiv:2203.12119).

    Takes the place of a timm VisionTransformer's `blocks`. The prompts stand between the prefix tokens (class,
    registers) and the patches, and are gone from the output: whatever follows, such as norm and pooling, sees the
    tokens that it saw before. With no prompts it computes exactly what the blocks computed.

    Args:
        blocks: the transformer's blocks; they keep their names (`0`, `1`, ...).
        length: p, the number of prompts.
        dim: D, the token width.
        prefix: how many tokens stand before the patches.
        deep: every block gets prompts of its own, in place of what the previous one made of its; otherwise only
            the first block gets prompts, and theirs are passed on.
        bound: prompts start uniform in [-bound, bound].
    """

    def __init__(self, blocks: nn.Sequential, length: int, dim: int, prefix: int, deep: bool, bound: float) -> None:
        super().__init__(*blocks)
        self.prompts = nn.Parameter(torch.empty(len(blocks) if deep else 1, length, dim))
        self.prefix = prefix
        nn.init.uniform_(self.prompts, -bound, bound)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, prefix + patches, D) to the same."""
        before, after = tokens[:, : self.prefix], tokens[:, self.prefix :]
        length = self.prompts.shape[1]
        for index, block in enumerate(self):
            if index < len(self.prompts):
                # Not len(tokens), which an exported graph would take for a constant.
                prompts = self.prompts[index].expand(tokens.shape[0], -1, -1)
            mixed = block(torch.cat([before, prompts, after], dim=1))
            before, prompts, after = mixed.split([self.prefix, length, after.shape[1]], dim=1)
        return torch.cat([before, after], dim=1)


class LowRank(nn.Module):
    """A linear layer plus a learned low-rank update: W x + (alpha / r) B A x (Hu et al. 2021, arXiv:2106.09685).

    B starts at zero, so that the layer begins as the plain one. A layer that computes several projections at once
    (timm's fused query, key and value) is updated by chunks of its output, each with an A and a B of its own.

    Args:
        linear: W, frozen here.
        rank: r.
        alpha: the update's scale, before it is divided by the rank.
        chunks: into how many equal parts the output is divided.
        adapted: which of them get an update.
    """

    chosen: Tensor

    def __init__(self, linear: nn.Linear, rank: int, alpha: float, chunks: int, adapted: Sequence[int]) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        self.chunks = chunks
        self.a = nn.Parameter(torch.empty(len(adapted), rank, linear.in_features))
        self.b = nn.Parameter(torch.zeros(len(adapted), linear.out_features // chunks, rank))
        self.register_buffer("chosen", torch.tensor(list(adapted)), persistent=False)
        bound = linear.in_features**-0.5  # as torch's own linear layer, and as loralib
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) to (..., out)."""
        low = torch.einsum("...i,kri->...kr", x, self.a)
        update = self.scale * torch.einsum("...kr,kor->...ko", low, self.b)
        plain = self.linear(x).unflatten(-1, (self.chunks, -1))
        return plain.index_add(-2, self.chosen, update.to(plain.dtype)).flatten(-2)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """One plain linear layer that computes the same: the technique costs nothing once it is trained."""
        merged = copy.deepcopy(self.linear)
        merged.weight.unflatten(0, (self.chunks, -1)).index_add_(0, self.chosen, self.scale * self.b @ self.a)
        return merged


def freeze(module: nn.Module) -> None:
    """No gradient for anything inside `module`. `train_mode` then keeps it in evaluation mode as well."""
    module.requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Training mode, except that a module whose parameters are all frozen stays in evaluation mode.

    A frozen batch norm that went on updating its running statistics would not be frozen, and a frozen layer with
    dropout would not be deterministic.
    """
    model.train()
    for module in model.modules():
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            module.eval()
