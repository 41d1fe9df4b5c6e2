"""ridge: its solution is scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from built import build
from lives import live
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler
from test_gaussian_head import drawn, fitted


@pytest.mark.parametrize("dim", [3, 40])
@pytest.mark.parametrize("penalty", [0.001, 0.1, 10.0])
def test_ridge_is_scikit_learns(dim: int, penalty: float) -> None:
    x, labels, queries = drawn(dim)
    scaler = StandardScaler().fit(x)
    peer = RidgeClassifier(alpha=penalty * len(x)).fit(scaler.transform(x), labels)
    expected = peer.decision_function(scaler.transform(queries))
    assert fitted("ridge", x, labels, ridge_l2=penalty)(queries) == pytest.approx(expected, abs=1e-3)


def test_without_a_penalty_it_is_the_shortest_solution() -> None:
    x, labels, queries = drawn(40)
    z, q = ((v - x.mean(0)) / x.std(0) for v in (x, queries))
    aims = 2.0 * np.eye(5)[labels] - 1
    weight = np.linalg.lstsq(z, aims - aims.mean(0), rcond=None)[0]
    assert fitted("ridge", x, labels, ridge_l2=0.0)(queries) == pytest.approx(q @ weight + aims.mean(0), abs=1e-2)


def test_nothing_is_trained() -> None:
    built = build("ridge")
    assert built.trainable() == set()
    assert built.recipe.epochs == 0


def test_a_trial_knows_easy_patterns(tmp_path: Path) -> None:
    result = live(tmp_path, "ridge/ridge").result()
    assert result.test.top1 > 0.5  # random features; chance is 0.25
    assert not {"nll", "brier", "ece"} & set(result.test.json())  # its outputs are no probabilities
