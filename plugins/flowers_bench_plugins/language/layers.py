"""Images and texts in one space: a text tower beside a timm backbone, and what is trained on top of the two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench.nn import Classifier, Output, freeze
from flowers_bench_plugins.language.words import LONGEST, WORDS, tokens_of

#: D, the dimension of the common space.
DIMENSION = 64
#: The largest factor on cosines, as in CLIP.
LARGEST_SCALE = 100.0


class TextTower(nn.Module):
    """A transformer over words: numbers (C, L), 0 where a text has ended, to vectors (C, D).

    Two blocks with normalisation before each (GPT-2's, which CLIP's tower has too); the text is the mean over its words.
    """

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(len(WORDS) + 1, width, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(LONGEST, width))
        block = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, DIMENSION, bias=False)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, numbers: Tensor, context: Tensor | None = None) -> Tensor:
        """Encode C texts, each behind the vectors `context` (M, width) if there are some."""
        embedded = self.words(numbers) + self.positions
        ended = numbers == 0
        if context is not None:
            embedded = torch.cat([context.expand(len(numbers), -1, -1), embedded], 1)
            ended = torch.cat([ended.new_zeros(len(numbers), len(context)), ended], 1)
        encoded = self.norm(self.blocks(embedded, src_key_padding_mask=ended))
        there = (~ended).to(encoded.dtype)[..., None]
        pooled = (encoded * there).sum(1) / there.sum(1)
        vectors: Tensor = self.project(pooled)
        return vectors


class Language(nn.Module):
    """What a backbone of F features needs beside it to share a space with texts: a projection, a text tower, and a scale."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.text = TextTower()
        self.project = nn.Linear(features, DIMENSION, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def scale(self) -> Tensor:
        """The factor on cosines, learned, at most `LARGEST_SCALE`."""
        return self.log_scale.exp().clamp(max=LARGEST_SCALE)


class Pair(Classifier):
    """Names the class whose description is nearest: scores are scale * cos(image, text), the embedding is the image's vector
    (N, D) of length 1.

    Args:
        backbone: a timm model without a classifier, with a `Language` as `backbone.language`.
        texts: C descriptions.
    """

    only_backbone_sees_images: ClassVar[bool] = True
    numbers: Tensor

    def __init__(self, backbone: nn.Module, texts: Sequence[str]) -> None:
        super().__init__(backbone)
        self.register_buffer("numbers", torch.tensor(tokens_of(texts)), persistent=False)

    @property
    def language(self) -> Language:
        """What stands beside the backbone."""
        found = self.backbone.language
        assert isinstance(found, Language)
        return found

    def texts(self) -> Tensor:
        """Encode the classes' descriptions: (C, D), of length 1."""
        return F.normalize(self.language.text(self.numbers), dim=-1)

    def images(self, features: Tensor) -> Tensor:
        """Project pooled features (N, F): (N, D), of length 1."""
        return F.normalize(self.language.project(features), dim=-1)

    def classify(self, features: Tensor) -> Output:
        """Score the classes by their descriptions."""
        images = self.images(features)
        return Output(self.language.scale * images @ self.texts().T, images)


class TextProbe(Pair):
    """A linear classifier on the image's vector, whose rows start as the descriptions' vectors: the first step is zero-shot.

    Args:
        from_text: otherwise the rows start at random.
    """

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, texts: Sequence[str], from_text: bool) -> None:
        super().__init__(backbone, texts)
        freeze(self.language)
        self.head = nn.Linear(DIMENSION, len(texts), bias=False)
        if from_text:
            with torch.no_grad():
                self.head.weight.copy_(self.texts())

    def classify(self, features: Tensor) -> Output:
        """Score the classes by the rows of the classifier."""
        images = self.images(features)
        return Output(self.language.scale * self.head(images), images)


class ClipAdapter(Pair):
    """A bottleneck on the image's vector x, mixed with what was there: r relu(W2 relu(W1 x)) + (1 - r) x."""

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, texts: Sequence[str], ratio: float, reduction: int) -> None:
        super().__init__(backbone, texts)
        freeze(backbone)
        self.ratio = ratio
        self.down = nn.Linear(DIMENSION, DIMENSION // reduction, bias=False)
        self.up = nn.Linear(DIMENSION // reduction, DIMENSION, bias=False)

    def images(self, features: Tensor) -> Tensor:
        """Project pooled features (N, F) and adapt them: (N, D), of length 1."""
        before = super().images(features)
        adapted = F.relu(self.up(F.relu(self.down(before))))
        return F.normalize(self.ratio * adapted + (1 - self.ratio) * before, dim=-1)


class ContextOptimization(Pair):
    """Learned vectors (M, width) before the words of every description, in place of a written prompt."""

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, texts: Sequence[str], length: int) -> None:
        super().__init__(backbone, texts)
        freeze(backbone)
        width = self.language.text.words.embedding_dim
        self.context = nn.Parameter(0.02 * torch.randn(length, width))

    def texts(self) -> Tensor:
        """Encode the classes' descriptions behind the learned vectors: (C, D), of length 1."""
        return F.normalize(self.language.text(self.numbers, self.context), dim=-1)
