"""cosine-loss: the loss against its sums written out, and what the model embeds."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from built import CLASSES, build
from hypothesis import given, settings
from hypothesis import strategies as st
from lives import planned
from torch.nn import functional as F

from flowers_bench import LossContext, UsageError
from flowers_bench.nn import Output
from flowers_bench_plugins.cosine_loss import build_cosine

CNN = "test_resnet"


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), classes=st.integers(2, 6), weight=st.sampled_from([0.0, 0.1, 2.0]))
def test_it_is_one_minus_the_cosine_plus_weighted_cross_entropy(seed: int, classes: int, weight: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    f, logits = torch.randn(2, 5, classes, dtype=torch.float64, generator=generator)
    labels = torch.randint(classes, (5,), generator=generator)
    total = 0.0
    for output, row, y in zip(f.tolist(), logits.tolist(), labels.tolist(), strict=True):
        total += 1 - output[y] / math.sqrt(sum(v * v for v in output))
        total += weight * (math.log(sum(math.exp(z) for z in row)) - row[y])
    loss = build_cosine(LossContext(classes, classes, {"cross_entropy_weight": weight}))
    assert loss(Output(logits, F.normalize(f, dim=1)), labels).item() == pytest.approx(total / 5)
    soft = F.one_hot(labels, classes).double()
    assert loss(Output(logits, F.normalize(f, dim=1)), soft).item() == pytest.approx(total / 5)


def test_the_embedding_has_a_unit_vector_per_class_and_alone_it_predicts() -> None:
    for variant in ("combined", "cosine"):
        built = build("cosine-loss", variant, backbone=CNN)
        with torch.inference_mode():
            output = built.model.eval()(built.images)
        assert output.embedding.shape == (8, CLASSES)
        assert output.embedding.norm(dim=1).allclose(torch.ones(8))
        assert torch.allclose(output.logits, output.embedding)  # g starts as the identity
        assert any("classifier" in name for name in built.trainable()) == (variant == "combined")


def test_baselines_learn_at_their_authors_rates() -> None:
    """For Flowers102 in batches of 96: the table in the authors' repository, cvjena/semantic-embeddings."""
    for variant, theirs in (("cross-entropy", 1.0), ("label-smoothing", 0.1)):
        recipe = build("cosine-loss", variant, backbone=CNN).recipe
        assert recipe.lr == pytest.approx(theirs * recipe.batch_size / 96, rel=0.02)


def test_it_needs_a_dimension_per_class(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs class_embedding, which model 'classifier' does not provide"):
        planned(tmp_path, "transfer/scratch", loss="cosine")
    planned(tmp_path, "cosine-loss/combined", augmentation="mixup")
