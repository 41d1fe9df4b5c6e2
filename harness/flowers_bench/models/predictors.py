"""How a trained model predicts: its classifier, the nearest class mean, k nearest neighbours, logistic regression.

Whatever has to be fitted is fitted on the training split, without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowers_bench.contract.dataset import Images, Split
from flowers_bench.contract.technique import Option
from flowers_bench.data.pixels import Normalizer, evaluation_batches
from flowers_bench.training.frozen_prefix import CachedActivations
from flowers_bench.util.errors import UsageError, unknown_name

#: Images per evaluation batch. Fixed, so that results do not depend on the training batch size.
EVALUATION_BATCH = 64
#: So many similarities between queries and training images are held at a time by `knn` (float32: 256 MiB).
SIMILARITIES = 2**26
#: The predictors, each with its options. A part's option of the same name is the same setting, with the part's default.
PREDICTORS: dict[str, dict[str, Option]] = {
    "classifier": {},
    "nearest-mean": {
        "distance": Option("euclidean", "between an embedding and a class mean", choices=("euclidean", "cosine")),
        "temperature": Option(1.0, "scores are minus the distance over this", minimum=1e-3, maximum=1e3),
    },
    "knn": {"k": Option(5, "how many nearest neighbours vote", minimum=1, maximum=100000, search=(1, 20))},
    "logistic": {
        "l2": Option(0.01, "weight of the squared coefficients' penalty", minimum=0, maximum=1e3, search=(1e-4, 1.0))
    },
}


def gives_probabilities(predictor: str, trained: bool) -> bool:
    """Whether softmax of a predictor's scores is meant as probabilities: those of logistic regression always are, the
    votes of neighbours never, those of others if the loss `trained` them to be."""
    return predictor == "logistic" or (predictor != "knn" and trained)


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
        score: a model's logits and embeddings (N, D), and the images' rows in the training split (N,) or None, to
            scores (N, C).
    """

    evaluator: Evaluator
    model: nn.Module
    score: Callable[[Tensor, Tensor, Tensor | None], Tensor]

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
    options: Mapping[str, Any]
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
            return Fitted(self, model, lambda logits, queries, rows: logits)
        assert train is not None, f"{self.predictor} is fitted on training images"
        _, support = self.forward(model, train.images)
        labels, classes = torch.from_numpy(np.asarray(train.labels)), self.num_classes
        options: dict[str, Any] = {
            name: self.options.get(name, option.default) for name, option in PREDICTORS[self.predictor].items()
        }
        if self.predictor == "knn":
            k = options["k"]
            return Fitted(self, model, lambda _, queries, rows: knn_logits(support, labels, queries, classes, k, rows))
        if self.predictor == "logistic":
            head = fit_logistic(support, labels, classes, options["l2"])
            return Fitted(self, model, lambda _, queries, rows: head(queries))
        means = class_means(support, labels, classes)

        def nearest_mean(_: Tensor, queries: Tensor, rows: Tensor | None) -> Tensor:
            scores = mean_logits(queries, means, options["distance"])
            if rows is not None:
                own = labels[rows]
                count = torch.bincount(labels, minlength=classes)[own, None]
                # The mean of the others; an image that is alone in its class is compared with itself.
                left = torch.where(count > 1, (means[own] * count - queries) / (count - 1).clamp_min(1), means[own])
                scores[torch.arange(len(own)), own] = mean_logits(queries, left, options["distance"]).diagonal()
            return scores / float(options["temperature"])

        return Fitted(self, model, nearest_mean)

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


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean embedding of each class: (N, D), (N,) to (C, D). Raises `UsageError` for a class without images."""
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise UsageError(
            f"nearest-mean prediction needs a training image of every class; class {int(counts.argmin())} has none."
        )
    sums = torch.zeros(num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / counts[:, None]


def mean_logits(queries: Tensor, means: Tensor, distance: str) -> Tensor:
    """Minus the squared Euclidean distance to each class mean (Snell et al. 2017, equation 2), or the cosine with it
    (Vinyals et al. 2016): (Q, D), (C, D) to (Q, C)."""
    if distance == "cosine":
        return F.normalize(queries, dim=1) @ F.normalize(means, dim=1).T
    # By default it chooses its way by the number of queries, which a graph for any number cannot.
    mode = "use_mm_for_euclid_dist" if torch.compiler.is_exporting() else "use_mm_for_euclid_dist_if_necessary"
    return -torch.cdist(queries, means, compute_mode=mode).square()


def knn_logits(
    support: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int, rows: Tensor | None = None
) -> Tensor:
    """Log of the cosine-weighted vote of the k most similar training images, temperature 0.07 (Wu et al. 2018,
    arXiv:1805.01978): (Q, C). Classes without a vote get the log of 1e-6. Training image `rows[q]` is query q itself
    and does not vote on it. Many queries are taken in turns, so that memory does not grow with Q times N."""
    turn = max(1, SIMILARITIES // support.shape[0])
    if not torch.compiler.is_exporting() and len(queries) > turn:  # a graph is for any number of queries
        parts = (
            (queries[i : i + turn], None if rows is None else rows[i : i + turn]) for i in range(0, len(queries), turn)
        )
        return torch.cat([knn_logits(support, labels, part, num_classes, k, own) for part, own in parts])
    similarity = F.normalize(queries, dim=1) @ F.normalize(support, dim=1).T
    if rows is not None:
        similarity[torch.arange(len(rows)), rows] = -torch.inf
    nearest, index = similarity.topk(min(k, support.shape[0]), dim=1)
    votes = torch.zeros(queries.shape[0], num_classes)
    weights = torch.softmax(nearest.float() / 0.07, dim=1)  # under autocast, similarities are not float32
    votes.scatter_add_(1, labels[index], weights)
    return (votes + 1e-6).log()


def fit_logistic(features: Tensor, labels: Tensor, num_classes: int, l2: float) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression on standardised features, by L-BFGS: (N, D), (N,) to a function from (Q, D)
    to (Q, C). Minimises the mean cross-entropy plus l2 / 2 times the sum of the squared coefficients."""
    # Out of inference mode, in which the features came to be: autograd refuses those.
    x, y = features.clone().double(), labels.clone()
    mean, deviation = x.mean(0), x.std(0, correction=0).clamp_min(1e-8)
    x = (x - mean) / deviation
    weight = torch.zeros(num_classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, y) + l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)
    fitted_weight, fitted_bias = weight.detach(), bias.detach()
    return lambda queries: (((queries.double() - mean) / deviation) @ fitted_weight.T + fitted_bias).float()
