"""Evaluation of a model on whole splits: what it gives for their images, and what its predictor makes of that."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flowers_bench.contract.dataset import Images, Split
from flowers_bench.contract.predictor import CLASSIFIER, Features, Predictor, PredictorContext
from flowers_bench.data.pixels import Normalizer, evaluation_batches, evaluation_transform, stored_side, whole_square
from flowers_bench.models.layers import Output
from flowers_bench.training.frozen_prefix import CachedActivations
from flowers_bench.training.precision import Context
from flowers_bench.util.errors import UsageError

#: Images per evaluation batch. Fixed, so that results do not depend on the training batch size.
EVALUATION_BATCH = 64
#: A fitted predictor: what the model gives for Q images, and their rows in the training split (Q,) or None, to scores (Q, C).
Score = Callable[[Output, Tensor | None], Tensor]
#: A batch of images to the V views of them that the model sees, (N, 3, S, S) each.
Views = Callable[[Tensor], Sequence[Tensor]]


@dataclass(frozen=True)
class Predictions:
    """What was predicted for N images, in order.

    Attributes:
        logits: scores (N, C) float32: larger is more likely.
        embeddings: (N, D) float32; of several views of an image, their mean.
    """

    logits: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """A model with its predictor, which was fitted on the training split: predicts images.

    Attributes:
        evaluator: how images are prepared and batched.
        model: images to `Output`.
        score: what the model gives to scores.
    """

    evaluator: Evaluator
    model: nn.Module
    score: Score

    def __call__(self, images: Images, rows: np.ndarray | None = None) -> Predictions:
        """Predict a whole split's images. `rows` (N,) are their row numbers where they are training images: then an
        image is not its own neighbour, and is left out of the class mean that it is compared with."""
        return self._predictions(self.evaluator.forward(self.model, images), rows)

    def batches(self, batches: Iterable[Tensor]) -> Predictions:
        """Predict batches made by the evaluator's `transform`, normalised as the model takes them."""
        return self._predictions(forward(self.model, batches, self.evaluator.views, self.evaluator.forward_pass), None)

    def _predictions(self, output: Output, rows: np.ndarray | None) -> Predictions:
        scores = self.score(output, None if rows is None else torch.from_numpy(rows))
        self.evaluator.refuse_other_scores(scores, len(output.embedding))
        embeddings = output.embedding if self.evaluator.views is None else output.embedding.mean(1)
        return Predictions(scores.numpy(), embeddings.numpy())

    def scores(self, batch: Tensor) -> Tensor:
        """Compute scores (N, C) of one batch, as `batches` does, of a model that is in evaluation mode already."""
        output = seen(self.model, batch, self.evaluator.views)
        return self.score(Output(output.logits.float().cpu(), output.embedding.float().cpu()), None)


@dataclass(frozen=True)
class Evaluator:
    """Runs a model over whole splits and predicts as the trial says.

    Attributes:
        predictor: how the model predicts.
        context: the classes, and the predictor's options.
        image_size: pixels.
        normalize: uses the backbone's mean and standard deviation.
        views: what the model sees of an image, where that is not the image itself.
        forward_pass: makes the context of the model's passes, whose precision it is; scores are float32.
    """

    predictor: Predictor
    context: PredictorContext
    image_size: int
    normalize: Normalizer
    views: Views | None = None
    forward_pass: Context = contextlib.nullcontext

    @property
    def side(self) -> int:
        """The side of the squares that images are prepared as, in pixels: S, or R where views are cut from a margin too."""
        return stored_side(self.image_size) if self.predictor.margin else self.image_size

    @property
    def transform(self) -> Callable[[Tensor], Tensor]:
        """What prepares a decoded image, uint8 (3, H, W) to uint8 (3, side, side)."""
        return (whole_square if self.predictor.margin else evaluation_transform)(self.image_size)

    def batches(self, images: Images) -> Iterable[Tensor]:
        """Load images in order, prepared by `transform`, as normalised batches."""
        return evaluation_batches(images, self.transform, self.normalize, EVALUATION_BATCH)

    def forward(self, model: nn.Module, images: Images) -> Output:
        """Compute logits and embeddings of images, as the function `forward` does."""
        model.eval()
        if isinstance(images, CachedActivations):
            return forward(images.prefix.tail(model), images.batches(EVALUATION_BATCH), None, self.forward_pass)
        return forward(model, self.batches(images), self.views, self.forward_pass)

    def fit(self, model: nn.Module, train: Split | None) -> Fitted:
        """Fit what the predictor needs on the training split; where it needs nothing, as a classifier, `train` may be
        None."""
        if not self.predictor.needs_features:
            return Fitted(self, model, self.predictor.fit(self.context, self._no_features()))
        assert train is not None, f"{self.predictor.name} is fitted on training images"
        return Fitted(self, model, self.predictor.fit(self.context, self.features(model, train)))

    def _no_features(self) -> Features:
        return Features(Output(torch.empty(0, self.context.num_classes), torch.empty(0, 0)), torch.empty(0).long())

    def features(self, model: nn.Module, train: Split) -> Features:
        """Compute what the predictor is fitted on."""
        # Out of inference mode, in which they came to be: autograd refuses such tensors.
        output = self.forward(model, train.images).each(torch.clone)
        return Features(output, torch.from_numpy(np.array(train.labels, dtype=np.int64)))

    def refuse_other_scores(self, scores: Tensor, images: int) -> None:
        """Raise `UsageError` where a plugin's predictor gives other than float32 scores of every class."""
        expected = (images, self.context.num_classes)
        if self.predictor.name != CLASSIFIER.name and (scores.shape != expected or scores.dtype != torch.float32):
            raise UsageError(
                f"predictor {self.predictor.name!r} gave {scores.dtype} scores of shape {tuple(scores.shape)}: expected "
                f"torch.float32 of shape {expected}, one for each image and class."
            )

    def logits(self, model: nn.Module, train: Split, images: Images) -> np.ndarray:
        """Compute scores (N, C) float32 of the images. To predict several sets, call `fit` once: it passes over
        `train`."""
        return self.fit(model, train)(images).logits


def seen(model: nn.Module, batch: Tensor, views: Views | None) -> Output:
    """Compute what the model gives for a batch (N, 3, S, S): logits (N, C) and embedding (N, D); of V views of each image
    logits (N, V, C) and embedding (N, V, D)."""
    if views is None:
        output: Output = model(batch)
        return output
    outputs = [model(view) for view in views(batch)]
    return Output(
        torch.stack([output.logits for output in outputs], 1), torch.stack([output.embedding for output in outputs], 1)
    )


def forward(
    model: nn.Module,
    batches: Iterable[Tensor],
    views: Views | None = None,
    forward_pass: Context = contextlib.nullcontext,
) -> Output:
    """Compute what `seen` gives for batches of images, in evaluation mode; float32 on the CPU. A model that only embeds gives
    logits (N, 0). In the context of `forward_pass` runs the model alone: batches are loaded outside of it."""
    model.eval()
    logits, embeddings = [], []
    with torch.inference_mode():
        for batch in batches:
            with forward_pass():
                output = seen(model, batch, views)
            logits.append(output.logits.float().cpu())
            embeddings.append(output.embedding.float().cpu())
    return Output(torch.cat(logits), torch.cat(embeddings))
