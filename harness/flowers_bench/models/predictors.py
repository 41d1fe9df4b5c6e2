"""How a trained model predicts: its classifier, the nearest class mean, k nearest neighbours, logistic regression.

Whatever has to be fitted is fitted on the training split, without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from flowers_bench.contract.options import Option, Options, OptionValue
from flowers_bench.util.errors import UsageError

#: A model's logits (N, C or 0) and embeddings (N, D) of images, and their rows in the training split (N,) or None if they
#: are not of it, to scores (N, C).
Score = Callable[[Tensor, Tensor, Tensor | None], Tensor]
#: So many similarities between queries and training images are held at a time by `knn` (float32: 256 MiB).
SIMILARITIES = 2**26
#: The predictors, each with its options. A part's option of the same name is the same setting, with the part's default.
PREDICTORS: Mapping[str, Mapping[str, Option]] = {
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
    """Say whether softmax of a predictor's scores is meant as probabilities.

    Those of logistic regression always are, the votes of neighbours never, those of others if the loss `trained` them
    to be.
    """
    return predictor == "logistic" or (predictor != "knn" and trained)


def classifier_scores(logits: Tensor, embeddings: Tensor, rows: Tensor | None) -> Tensor:
    """Give the scores of the model's own classifier: a `Score`."""
    return logits


def fit_predictor(
    predictor: str, options: Mapping[str, OptionValue], support: Tensor, labels: Tensor, num_classes: int
) -> Score:
    """Fit a predictor on the training split.

    Args:
        predictor: a name in `PREDICTORS`, but not `classifier`, which training has fitted.
        options: its own, among others; those that are left out have their defaults.
        support: the training images' embeddings (N, D).
        labels: theirs, int (N,).
        num_classes: C.
    """
    own = Options({name: options.get(name, option.default) for name, option in PREDICTORS[predictor].items()})
    if predictor == "knn":
        k = own.integer("k")
        return lambda logits, queries, rows: knn_logits(support, labels, queries, num_classes, k, rows)
    if predictor == "logistic":
        head = fit_logistic(support, labels, num_classes, own.number("l2"))
        return lambda logits, queries, rows: head(queries)
    return _nearest_mean(support, labels, num_classes, own.text("distance"), own.number("temperature"))


def _nearest_mean(support: Tensor, labels: Tensor, num_classes: int, distance: str, temperature: float) -> Score:
    means = class_means(support, labels, num_classes)

    def score(logits: Tensor, queries: Tensor, rows: Tensor | None) -> Tensor:
        scores = mean_logits(queries, means, distance)
        if rows is not None:
            own = labels[rows]
            count = torch.bincount(labels, minlength=num_classes)[own, None]
            # The mean of the others; an image that is alone in its class is compared with itself.
            left = torch.where(count > 1, (means[own] * count - queries) / (count - 1).clamp_min(1), means[own])
            scores[torch.arange(len(own)), own] = mean_logits(queries, left, distance).diagonal()
        return scores / temperature

    return score


def class_means(embeddings: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Compute the mean embedding of each class: (N, D), (N,) to (C, D). Raises `UsageError` for a class without images."""
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        raise UsageError(
            f"nearest-mean prediction needs a training image of every class; class {int(counts.argmin())} has none."
        )
    sums = torch.zeros(num_classes, embeddings.shape[1]).index_add_(0, labels, embeddings)
    return sums / counts[:, None]


def mean_logits(queries: Tensor, means: Tensor, distance: str) -> Tensor:
    """Compute minus the squared Euclidean distance to each class mean (Snell et al. 2017, equation 2), or the cosine
    with it (Vinyals et al. 2016): (Q, D), (C, D) to (Q, C)."""
    if distance == "cosine":
        return F.normalize(queries, dim=1) @ F.normalize(means, dim=1).T
    # By default it chooses its way by the number of queries, which a graph for any number cannot.
    mode = "use_mm_for_euclid_dist" if torch.compiler.is_exporting() else "use_mm_for_euclid_dist_if_necessary"
    return -torch.cdist(queries, means, compute_mode=mode).square()


def knn_logits(
    support: Tensor, labels: Tensor, queries: Tensor, num_classes: int, k: int, rows: Tensor | None = None
) -> Tensor:
    """Compute the log of the cosine-weighted vote of the k most similar training images, temperature 0.07 (Wu et al.
    2018, arXiv:1805.01978): (Q, C).

    Classes without a vote get the log of 1e-6. Training image `rows[q]` is query q itself, and does not vote on it.
    Queries are taken some at a time, so that memory does not grow with Q times N.
    """
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
    """Fit a multinomial logistic regression on standardised features, by L-BFGS: (N, D), (N,) to a function from (Q, D)
    to (Q, C).

    It minimises the mean cross-entropy plus l2 / 2 times the sum of the squared coefficients.
    """
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
