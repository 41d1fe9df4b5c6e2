"""Linear probing, then fine-tuning (LP-FT; Kumar et al. 2022, arXiv:2202.10054, section 3.4): `classifier_start=probe`.

A fresh classifier's first gradients are large, say little, and change features that were good. So the classifier starts as the
logistic regression on the features of the training images, as the network starts: what `linear-probe/logistic` predicts by.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from flowers_bench.contract.dataset import Split
from flowers_bench.contract.predictor import CLASSIFIER
from flowers_bench.models.layers import Classifier
from flowers_bench.models.logistic import fit_logistic
from flowers_bench.training.distributed import Ranks
from flowers_bench.training.evaluation import Evaluator
from flowers_bench.util.errors import UsageError

#: Weight of the squared coefficients' penalty: the default of `linear-probe/logistic`.
PENALTY = 0.01
#: Of L-BFGS at most: the start of a training need not be solved to the last digit.
STEPS = 50


def linear_classifier(model: nn.Module) -> nn.Linear:
    """Find the linear layer from a model's embedding to its logits. Raises `UsageError` if it has none."""
    found = model.backbone.get_classifier() if isinstance(model, Classifier) else None  # type: ignore[operator]
    if not isinstance(found, nn.Linear) or found.bias is None:
        raise UsageError(
            "classifier_start=probe needs a model whose logits are a linear layer of its embedding, with a bias, such as that of "
            "transfer or deformable. Leave it out."
        )
    return found


def start_from_probe(model: nn.Module, evaluator: Evaluator, train: Split, ranks: Ranks) -> None:
    """Set the classifier's values, in place, to those of the logistic regression on `train`, which the main rank fits."""
    classifier = linear_classifier(model)
    fitted = None
    if ranks.is_main:
        # The classifier sees one view of each image, whatever the trial's predictor shows the model.
        features = replace(evaluator, predictor=CLASSIFIER, views=None).features(model, train)
        probe = fit_logistic(features.output.embedding, features.labels, evaluator.context.num_classes, PENALTY, STEPS)
        fitted = [values.float() for values in probe.on_raw_features()]
    with torch.no_grad():
        for place, parameter in enumerate((classifier.weight, classifier.bias)):
            parameter.copy_(ranks.broadcast_tensor(fitted[place] if fitted else None, 0))
