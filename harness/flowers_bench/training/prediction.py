"""How a trained model predicts: its classifier, the nearest class mean, or k nearest neighbours.

Whatever has to be fitted is fitted on the training split, without augmentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench.data.dataset import Images, Split
from flowers_bench.data.pixels import Normalizer, evaluation_batches
from flowers_bench.errors import UsageError, unknown_name

#: Images per evaluation batch. Fixed, so that results do not depend on the training batch size.
EVALUATION_BATCH = 64
PREDICTORS = ("classifier", "nearest-mean", "knn")


@dataclass(frozen=True)
class Evaluator:
    """Runs a model over whole splits and predicts as the trial says.

    Attributes:
        predictor: `classifier`, `nearest-mean` or `knn`.
        options: `k` for knn.
        num_classes: C.
        image_size: pixels.
        normalize: for the backbone's mean and standard deviation.
    """

    predictor: str
    options: Mapping[str, Any]
    num_classes: int
    image_size: int
    normalize: Normalizer

    def __post_init__(self) -> None:
        if self.predictor not in PREDICTORS:
            raise unknown_name("predictor", self.predictor, PREDICTORS)

    def forward(self, model: nn.Module, images: Images) -> tuple[Tensor, Tensor]:
        """Logits (N, C) and embeddings (N, D), float32 on the CPU, in evaluation mode."""
        model.eval()
        logits, embeddings = [], []
        with torch.inference_mode():
            for batch in evaluation_batches(images, self.image_size, self.normalize, EVALUATION_BATCH):
                output = model(batch)
                logits.append(output.logits.float().cpu())
                embeddings.append(output.embedding.float().cpu())
        return torch.cat(logits), torch.cat(embeddings)

    def logits(self, model: nn.Module, train: Split, images: Images) -> np.ndarray:
        """Scores (N, C) float32 of the images: larger is more likely."""
        logits, embeddings = self.forward(model, images)
        if self.predictor == "classifier":
            return logits.numpy()
        _, support = self.forward(model, train.images)
        labels = torch.from_numpy(np.asarray(train.labels))
        if self.predictor == "nearest-mean":
            return nearest_mean_logits(support, labels, embeddings, self.num_classes).numpy()
        return knn_logits(support, labels, embeddings, self.num_classes, int(self.options.get("k", 5))).numpy()


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean embedding of each class: (N, D), (N,) to (C, D). Raises `UsageError` for a class without images."""
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise UsageError(
            f"nearest-mean prediction needs a training image of every class; class {int(counts.argmin())} has none."
        )
    sums = torch.zeros(num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / counts[:, None]


def nearest_mean_logits(support: Tensor, labels: Tensor, queries: Tensor, num_classes: int) -> Tensor:
    """Minus the squared Euclidean distance to each class mean (Snell et al. 2017, equation 2): (Q, C)."""
    return -torch.cdist(queries, class_means(support, labels, num_classes)).square()


def knn_logits(support: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int) -> Tensor:
    """Log of the cosine-weighted vote of the k most similar training images, temperature 0.07 (Wu et al. 2018,
    arXiv:1805.01978): (Q, C). Classes without a vote get the log of 1e-6."""
    similarity = F.normalize(queries, dim=1) @ F.normalize(support, dim=1).T
    nearest, index = similarity.topk(min(k, support.shape[0]), dim=1)
    votes = torch.zeros(queries.shape[0], num_classes)
    votes.scatter_add_(1, labels[index], torch.softmax(nearest / 0.07, dim=1))
    return (votes + 1e-6).log()
