"""CLIP's image side as a classifier, and its text side, which open_clip runs once to say where the classifier starts."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench import UsageError
from flowers_bench.nn import Classifier, Output

#: CLIP's text tower has a head for so many channels, and so many words.
HEAD_WIDTH, WORDS = 64, 49408
#: Texts that are encoded at a time.
BATCH = 256
#: What a file must have beside the image tower.
NEEDED = (
    "visual.proj",
    "logit_scale",
    "text_projection",
    "positional_embedding",
    "token_embedding.weight",
    "ln_final.weight",
    "transformer.resblocks.0.attn.in_proj_weight",
)


class Clip(Classifier):
    """Scores classes by scale * cos(image, row of the classifier): the embedding is the image's vector (N, D), of length 1.

    Args:
        backbone: the image tower, without a classifier.
        features: F, what it gives for an image.
        dimension: D.
        classes: C.
    """

    only_backbone_sees_images: ClassVar[bool] = True

    def __init__(self, backbone: nn.Module, features: int, dimension: int, classes: int) -> None:
        super().__init__(backbone)
        self.project = nn.Linear(features, dimension, bias=False)
        self.head = nn.Linear(dimension, classes, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def classify(self, features: Tensor) -> Output:
        """Score the classes, given pooled features (N, F)."""
        vectors = F.normalize(self.project(features), dim=-1)
        return Output(self.log_scale.exp() * self.head(vectors), vectors)


def clip_tensors(tensors: Mapping[str, Tensor], weights: str) -> dict[str, Tensor]:
    """Choose a CLIP's tensors from a file's, by CLIP's own names. Raises `UsageError` where there is none."""
    prefixes = [name.removesuffix(NEEDED[0]) for name in tensors if name.endswith(NEEDED[0])]
    found = {name.removeprefix(prefixes[0]): t for name, t in tensors.items()} if prefixes else {}
    missing = [name for name in NEEDED if name not in found]
    if missing:
        raise UsageError(
            f"weights {weights} are of no CLIP with both towers: there is no {missing[0]}. Name a file of open_clip's, --weights FILE, such as "
            "open_clip_model.safetensors of laion/CLIP-ViT-B-32-laion2B-s34B-b79K, copied from the Hugging Face hub."
        )
    return found


def refuse_unfit(tensors: Mapping[str, Tensor], model: Clip, weights: str) -> None:
    """Raise `UsageError` where a file has no text tower, or towers of other sizes than the model, or open_clip is not installed."""
    found = clip_tensors(tensors, weights)
    features, dimension = found["visual.proj"].shape
    if (features, dimension) != (model.project.in_features, model.project.out_features):
        raise UsageError(
            f"weights {weights} have a common space of {dimension} dimensions for {features} features; clip_dimension is "
            f"{model.project.out_features}, and the backbone gives {model.project.in_features}. Say --set clip_dimension={dimension}."
        )
    words = len(found["token_embedding.weight"])
    if words != WORDS:
        raise UsageError(
            f"weights {weights} know {words:,} words, and CLIP's tokenizer has {WORDS:,}: their texts cannot be read."
        )
    if importlib.util.find_spec("open_clip") is None:
        raise UsageError("clip needs open_clip, which is not installed: pip install 'flowers-bench[clip]'.")


def start_from_text(model: Clip, tensors: Mapping[str, Tensor], texts: Sequence[Sequence[str]], quick: bool) -> None:
    """Give a model its projection and scale, and its classifier the vectors of C classes' texts. Without values, as while a run is
    planned, nothing is done.

    Args:
        tensors: of the file.
        texts: of each class, one for each template.
        quick: whether the towers have OpenAI's approximation of GELU.
    """
    if model.log_scale.is_meta:
        return
    found = clip_tensors(tensors, "")
    with torch.no_grad():
        model.project.weight.copy_(found["visual.proj"].float().T)
        model.log_scale.copy_(found["logit_scale"].float().reshape(()))
        model.head.weight.copy_(text_vectors(found, texts, quick))


def text_vectors(found: Mapping[str, Tensor], texts: Sequence[Sequence[str]], quick: bool) -> Tensor:
    """Encode C classes' texts, T of each: the mean of their vectors of length 1, of length 1 again (C, D)."""
    from open_clip import SimpleTokenizer

    tower = text_tower(found, quick)
    flat = [text for of_class in texts for text in of_class]
    tokens = SimpleTokenizer(context_length=len(found["positional_embedding"]))(flat)
    with torch.random.fork_rng(devices=()), torch.no_grad():
        vectors = torch.cat([F.normalize(tower(part), dim=-1) for part in tokens.split(BATCH)])
    return F.normalize(vectors.unflatten(0, (len(texts), -1)).mean(1), dim=-1)


def text_tower(found: Mapping[str, Tensor], quick: bool) -> nn.Module:
    """Build open_clip's text tower of the sizes that its tensors have, with their values, in evaluation mode."""
    from open_clip.transformer import QuickGELU, TextTransformer

    length, width = found["positional_embedding"].shape
    layers = {name.split(".")[2] for name in found if name.startswith("transformer.resblocks.")}
    with torch.random.fork_rng(devices=()):
        tower: Any = TextTransformer(
            context_length=length,
            vocab_size=len(found["token_embedding.weight"]),
            width=width,
            heads=width // HEAD_WIDTH,
            layers=len(layers),
            output_dim=found["text_projection"].shape[1],
            act_layer=QuickGELU if quick else nn.GELU,
        )
    values = {name: found[name].float() for name in tower.state_dict() if name in found}
    tower.load_state_dict(values)
    module: nn.Module = tower.eval()
    return module
