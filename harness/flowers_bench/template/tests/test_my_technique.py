"""The conformance kit for every variant, and the loss against its equation."""

from __future__ import annotations

import math

import pytest
import torch

import my_technique
from flowers_bench import LossContext
from flowers_bench.nn import Output
from flowers_bench.testing import conformance_tests

test_conformance = conformance_tests("my-technique")


def test_the_loss_is_its_equation():
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    loss = my_technique.build_loss(LossContext(3, 8, {"penalty": 0.3}))(Output(logits, logits), target)
    expected = 0.0
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        total = sum(math.exp(x) for x in row)
        p = [math.exp(x) / total for x in row]
        expected += -math.log(p[label]) + 0.3 * sum(q * math.log(q) for q in p)
    assert loss.item() == pytest.approx(expected / 5)
