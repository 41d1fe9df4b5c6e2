"""The conformance kit for every variant; poolings, square root and loss against plain loops."""

from __future__ import annotations

import math

import pytest
import second_order
import torch

from flowers_bench import LossContext
from flowers_bench.nn import Output
from flowers_bench.testing import conformance_tests

# At the kit's 32 px the features are one position, which has no covariance.
test_conformance = conformance_tests("second-order", settings={"image_size": "64"})


def test_bilinear_pooling_is_its_equation():
    features = torch.randn(2, 3, 2, 4, dtype=torch.float64)
    for image, found in zip(features, second_order.bilinear(features), strict=True):
        products = [
            sum(float(image[a, y, x] * image[b, y, x]) for y in range(2) for x in range(4)) / 8
            for a in range(3)
            for b in range(3)
        ]
        roots = [math.copysign(math.sqrt(abs(value) + 1e-5), value) for value in products]
        length = math.sqrt(sum(root * root for root in roots))
        assert found.tolist() == pytest.approx([root / length for root in roots])


def test_the_square_root_squared_is_the_matrix():
    x = torch.randn(3, 5, 40, dtype=torch.float64)
    matrix = x @ x.mT / 40
    root = second_order.square_root(matrix, iterations=20)
    assert torch.allclose(root @ root, matrix, atol=1e-8)


def test_isqrt_has_the_square_root_of_the_covariance():
    features = torch.randn(2, 4, 6, 6)
    expected = torch.linalg.eigh(torch.stack([torch.cov(f.flatten(1), correction=0) for f in features]))
    root = expected.eigenvectors * expected.eigenvalues.sqrt()[:, None] @ expected.eigenvectors.mT
    rows, columns = torch.triu_indices(4, 4)
    assert torch.allclose(second_order.isqrt(features), root[:, rows, columns], atol=1e-3)


def test_the_loss_confuses_pairs_of_different_classes():
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 0, 2, 1])
    loss = second_order.build_loss(LossContext(3, 8, {"confusion": 0.7}))(Output(logits, logits), target)
    p = [[math.exp(x) / sum(map(math.exp, row)) for x in row] for row in logits.tolist()]
    entropy = -sum(math.log(row[label]) for row, label in zip(p, target.tolist(), strict=True)) / 5
    # Images 0 and 2 are of one class: only 1 and 3 are a pair.
    confusion = sum((a - b) ** 2 for a, b in zip(p[1], p[3], strict=True)) / 2
    assert loss.item() == pytest.approx(entropy + 0.7 * confusion)


def test_a_transformer_is_refused_in_words():
    from flowers_bench import ModelContext, UsageError
    from flowers_bench.backbones import Backbone, Weights

    context = ModelContext(Backbone("test_vit", Weights(), 3, 32), 3, 32, {"pooling": "bilinear", "channels": 4})
    with pytest.raises(UsageError, match="convolutional backbone"):
        second_order.build_model(context)
