"""A model over whole splits: what it gives for their images, and what its predictor makes of that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flowers_bench.contract.dataset import Images, Split
from flowers_bench.contract.options import Options
from flowers_bench.data.pixels import Normalizer, evaluation_batches
from flowers_bench.models.predictors import PREDICTORS, Score, classifier_scores, fit_predictor
from flowers_bench.training.frozen_prefix import CachedActivations
from flowers_bench.util.errors import unknown_name

#: Images per evaluation batch. Fixed, so that results do not depend on the training batch size.
EVALUATION_BATCH = 64


@dataclass(frozen=True)
class Predictions:
    """Of N images, in order.

    Attributes:
        logits: scores (N, C) float32: larger is more likely.
        embeddings: (N, D) float32.
    """

    logits: np.ndarray
    embeddings: np.ndarray


@dataclass(frozen=True)
class Fitted:
    """A model and what its predictor took from the training split: predicts images.

    Attributes:
        evaluator: how.
        model: images to `Output`.
        score: from what the model gives to scores.
    """

    evaluator: Evaluator
    model: nn.Module
    score: Score

    def __call__(self, images: Images, rows: np.ndarray | None = None) -> Predictions:
        """Predict a whole split's images. `rows` (N,) says which training images they are, if they are: an image is
        not its own neighbour, and no part of the class mean that it is compared with."""
        return self._predictions(*self.evaluator.forward(self.model, images), rows)

    def batches(self, batches: Iterable[Tensor]) -> Predictions:
        """Predict batches (N, 3, S, S) as the model takes them."""
        return self._predictions(*forward(self.model, batches), None)

    def _predictions(self, logits: Tensor, embeddings: Tensor, rows: np.ndarray | None) -> Predictions:
        own = None if rows is None else torch.from_numpy(rows)
        return Predictions(self.score(logits, embeddings, own).numpy(), embeddings.numpy())

    def scores(self, batch: Tensor) -> Tensor:
        """Scores (N, C) of one batch, as `batches` gives them, of a model that is in evaluation mode already."""
        output = self.model(batch)
        return self.score(output.logits.float().cpu(), output.embedding.float().cpu(), None)


@dataclass(frozen=True)
class Evaluator:
    """Runs a model over whole splits and predicts as the trial says.

    Attributes:
        predictor: a name in `PREDICTORS`.
        options: its options, among others.
        num_classes: C.
        image_size: pixels.
        normalize: for the backbone's mean and standard deviation.
    """

    predictor: str
    options: Options
    num_classes: int
    image_size: int
    normalize: Normalizer

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise unknown_name("predictor", self.predictor, PREDICTORS)

    def batches(self, images: Images) -> Iterable[Tensor]:
        """Images in order, in evaluation crops, normalised."""
        return evaluation_batches(images, self.image_size, self.normalize, EVALUATION_BATCH)

    def forward(self, model: nn.Module, images: Images) -> tuple[Tensor, Tensor]:
        """Logits and embeddings of images, as `forward` below."""
        model.eval()
        if isinstance(images, CachedActivations):
            return forward(images.prefix.tail(model), images.batches(EVALUATION_BATCH))
        return forward(model, self.batches(images))

    def fit(self, model: nn.Module, train: Split | None) -> Fitted:
        """Fit what the predictor needs on the training split, which a classifier does without."""
        if self.predictor == "classifier":
            return Fitted(self, model, classifier_scores)
        assert train is not None, f"{self.predictor} is fitted on training images"
        _, support = self.forward(model, train.images)
        labels = torch.from_numpy(np.asarray(train.labels))
        return Fitted(self, model, fit_predictor(self.predictor, self.options, support, labels, self.num_classes))

    def logits(self, model: nn.Module, train: Split, images: Images) -> np.ndarray:
        """Scores (N, C) float32 of the images. To predict several sets, `fit` once: that passes over `train`."""
        return self.fit(model, train)(images).logits


def forward(model: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (N, C), or (N, 0) of a model that only embeds, and embeddings (N, D) of batches of images (N, 3, S, S);
    float32 on the CPU, in evaluation mode."""
    model.eval()
    logits, embeddings = [], []
    with torch.inference_mode():
        for batch in batches:
            output = model(batch)
            logits.append(output.logits.float().cpu())
            embeddings.append(output.embedding.float().cpu())
    return torch.cat(logits), torch.cat(embeddings)
